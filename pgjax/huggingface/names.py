"""Converts between our names and layouts of weights and Hugging Face's, with one table.

Ours are big_vision's, with layers stacked on axis 0; Hugging Face has one tensor per layer, with
heads flattened and matrices transposed. Both directions are lazy: arrays are computed when read.
"""

import functools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import einops
import numpy as np

from pgjax.errors import UserError
from pgjax.formats.lazy_array import LazyArray
from pgjax.formats.safetensors import Tensor
from pgjax.models import gemma, paligemma

POS_EMBEDDING = "img/pos_embedding"
VOCAB_SIZE = gemma.VOCAB_SIZE
IMAGE_ROWS = 64  # Hugging Face adds <image> and 63 unused rows to the token table.


class NameRow(NamedTuple):
  """einops patterns of one leaf, or of each layer if `hf` has {i}; N names: N parts on axis 0."""

  name: str
  ours: str
  theirs: str
  hf: tuple[str, ...]

  @property
  def stacked(self) -> bool:
    """Whether our axis 0 is the layer."""
    return "{i}" in self.hf[0]


def _rows(ours: str, theirs: str, names: Mapping[str, str | tuple[str, ...]]) -> Iterator[NameRow]:
  """Rows with the same patterns; the prefixes of `names` are abbreviated."""
  for name, hf in names.items():
    parts = (hf,) if isinstance(hf, str) else hf
    yield NameRow(_expanded(name, _OURS), ours, theirs, tuple(_expanded(n, _HF) for n in parts))


_OURS = {"V": "img/Transformer/encoderblock/", "G": "llm/layers/"}
_HF = {
  "E": "vision_tower.vision_model.embeddings.",
  "V": "vision_tower.vision_model.encoder.layers.{i}.",
  "G": "language_model.model.layers.{i}.",
}


def _expanded(name: str, prefixes: Mapping[str, str]) -> str:
  letter, colon, rest = name.partition(":")
  return prefixes[letter] + rest if colon else name


_QKV = ("query", "key", "value")
_ATTENTION = "V:MultiHeadDotProductAttention_0/"
_SIGLIP = {
  ("d", "d"): {
    "img/Transformer/encoder_norm/bias": "vision_tower.vision_model.post_layernorm.bias",
    "img/Transformer/encoder_norm/scale": "vision_tower.vision_model.post_layernorm.weight",
    "V:LayerNorm_0/bias": "V:layer_norm1.bias",
    "V:LayerNorm_0/scale": "V:layer_norm1.weight",
    "V:LayerNorm_1/bias": "V:layer_norm2.bias",
    "V:LayerNorm_1/scale": "V:layer_norm2.weight",
    "V:MlpBlock_0/Dense_0/bias": "V:mlp.fc1.bias",
    "V:MlpBlock_0/Dense_1/bias": "V:mlp.fc2.bias",
    f"{_ATTENTION}out/bias": "V:self_attn.out_proj.bias",
    "img/embedding/bias": "E:patch_embedding.bias",
    "img/head/bias": "multi_modal_projector.linear.bias",
  },
  ("i o", "o i"): {
    "V:MlpBlock_0/Dense_0/kernel": "V:mlp.fc1.weight",
    "V:MlpBlock_0/Dense_1/kernel": "V:mlp.fc2.weight",
    "img/head/kernel": "multi_modal_projector.linear.weight",
  },
  ("n h", "(n h)"): {
    f"{_ATTENTION}{name}/bias": f"V:self_attn.{name[0]}_proj.bias" for name in _QKV
  },
  ("d n h", "(n h) d"): {
    f"{_ATTENTION}{name}/kernel": f"V:self_attn.{name[0]}_proj.weight" for name in _QKV
  },
  ("n h d", "d (n h)"): {f"{_ATTENTION}out/kernel": "V:self_attn.out_proj.weight"},
  ("h w c d", "d c h w"): {"img/embedding/kernel": "E:patch_embedding.weight"},
  ("1 p d", "p d"): {POS_EMBEDDING: "E:position_embedding.weight"},
}
_GEMMA = {
  ("v d", "v d"): {paligemma.TOKEN_TABLE: "language_model.model.embed_tokens.weight"},
  ("d", "d"): {
    "llm/final_norm/scale": "language_model.model.norm.weight",
    "G:pre_attention_norm/scale": "G:input_layernorm.weight",
  },
  ("n h d", "d (n h)"): {"G:attn/attn_vec_einsum/w": "G:self_attn.o_proj.weight"},
  ("i o", "o i"): {
    "G:mlp/gating_einsum": ("G:mlp.gate_proj.weight", "G:mlp.up_proj.weight"),
    "G:mlp/linear": "G:mlp.down_proj.weight",
  },
}
_Q, _K, _V = (f"G:self_attn.{name}_proj.weight" for name in "qkv")
_GROUPED = {"G:attn/q_einsum/w": _Q, "G:attn/kv_einsum/w": (_K, _V)}
_MULTI_HEAD = {"G:attn/qkv_einsum/w": (_Q, _K, _V)}  # As many key heads as query heads.
_GEMMA1 = {"G:pre_ffw_norm/scale": "G:post_attention_layernorm.weight"}
_GEMMA2 = {  # post_attention_layernorm is elsewhere than in Gemma 1.
  "G:post_attention_norm/scale": "G:post_attention_layernorm.weight",
  "G:pre_ffw_norm/scale": "G:pre_feedforward_layernorm.weight",
  "G:post_ffw_norm/scale": "G:post_feedforward_layernorm.weight",
}


def table(shapes: Mapping[str, Sequence[int]]) -> list[NameRow]:
  """The rows of a model with leaves {our name: shape}, one row per leaf."""
  gemma2 = "llm/layers/post_ffw_norm/scale" in shapes
  heads = _MULTI_HEAD if "llm/layers/attn/qkv_einsum/w" in shapes else _GROUPED
  parts = [
    *_SIGLIP.items(),
    *_GEMMA.items(),
    (("n d h", "(n h) d"), heads),
    (("d", "d"), _GEMMA2 if gemma2 else _GEMMA1),
  ]
  rows = [row for (ours, theirs), names in parts for row in _rows(ours, theirs, names)]
  names = {row.name for row in rows}
  if names != set(shapes):
    raise UserError(
      "These are not the parameters of a PaliGemma:"
      + _listed(dict(missing=names - set(shapes), unexpected=set(shapes) - names))
    )
  return sorted(rows, key=lambda row: row.name)


def hf_shapes(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
  """{Hugging Face's name: shape} of a model with our `shapes`."""
  return {
    hf: their_shape(row, shapes[row.name])
    for row in table(shapes)
    for _, hf in names_of(row, shapes[row.name])
  }


def _axes(row: NameRow, shape: Sequence[int]) -> dict[str, int]:
  """{axis of our pattern: size}."""
  inside = shape[row.stacked + (len(row.hf) > 1) :]
  return dict(zip(row.ours.split(), inside, strict=True))


def their_shape(row: NameRow, shape: Sequence[int]) -> tuple[int, ...]:
  """The shape of each of their tensors, for a leaf of ours with `shape`."""
  sizes = _axes(row, shape)
  groups = re.findall(r"\(.*?\)|\S+", row.theirs)
  return tuple(math.prod(sizes[a] for a in group.strip("()").split()) for group in groups)


def names_of(row: NameRow, shape: Sequence[int]) -> list[tuple[tuple[int, ...], str]]:
  """(index into our array, their name), in the order of our bytes."""
  layers = range(shape[0]) if row.stacked else [None]
  parts = range(len(row.hf)) if len(row.hf) > 1 else [None]
  return [
    (tuple(n for n in (i, part) if n is not None), row.hf[part or 0].format(i=i))
    for i in layers
    for part in parts
  ]


def canonical(name: str) -> str:
  """The name in the hub's files, from that of any transformers (4.4x to 5.x; files or memory)."""
  name = name.removeprefix("model.")
  if name == "lm_head.weight":
    return "language_model.lm_head.weight"
  for tower, inside in (("vision_tower.", "vision_model."), ("language_model.", "model.")):
    rest = name.removeprefix(tower)
    if rest != name and not rest.startswith((inside, "lm_head.")):
      return tower + inside + rest
  return name


def from_hf(
  files: Mapping[str, LazyArray], shapes: Mapping[str, Sequence[int]]
) -> dict[str, LazyArray]:
  """Our leaves with these shapes, from tensors by their names in any version of transformers."""
  tensors = {canonical(name): leaf for name, leaf in files.items()}
  if len(tensors) != len(files):
    raise UserError("Two tensors of the checkpoint have names of the same weight.")
  table_of_text = tensors.get("language_model.model.embed_tokens.weight")
  head = tensors.pop("language_model.lm_head.weight", None)
  if head is not None and (table_of_text is None or not same(head, table_of_text)):
    raise UserError(
      "lm_head.weight differs from embed_tokens.weight: PaliGemma ties the two, and pgjax has one"
      " array for both."
    )
  wanted = hf_shapes(shapes)
  check_same(wanted, {n: leaf.shape for n, leaf in tensors.items()}, "The Hugging Face folder")
  return {row.name: joined(row, tuple(shapes[row.name]), tensors) for row in table(shapes)}


def same(a: LazyArray, b: LazyArray) -> bool:
  """Whether two arrays have the same bytes."""
  return a.shape == b.shape and all(
    x.tobytes() == y.tobytes() for x, y in zip(a.chunks(), b.chunks(), strict=True)
  )


def joined(row: NameRow, shape: Sequence[int], tensors: Mapping[str, LazyArray]) -> LazyArray:
  """Our leaf, computed from their tensors as they are read."""
  pieces = [(index, tensors[hf]) for index, hf in names_of(row, shape)]
  dtype = np.result_type(*(leaf.dtype for _, leaf in pieces))
  if row.ours == row.theirs and not row.stacked:
    return pieces[0][1]
  sizes = {axis: size for axis, size in _axes(row, shape).items() if axis != "1"}
  back = functools.partial(einops.rearrange, pattern=f"{row.theirs} -> {row.ours}", **sizes)

  def read(start, stop):
    if not row.stacked:
      return back(pieces[0][1].whole())[start:stop]
    rows = np.empty((stop - start, *shape[1:]), dtype)
    for (layer, *part), leaf in pieces:
      if start <= layer < stop:
        rows[(layer - start, *part)] = back(leaf.whole())
    return rows

  return LazyArray(shape, dtype, read)


def to_hf(leaves: Mapping[str, LazyArray], rows: int | None = None) -> list[Tensor]:
  """The tensors of a Hugging Face checkpoint of all our leaves, in the order of reading.

  rows: of the token table; additional ones are zeros, fewer are not allowed.
  """
  tensors = []
  for row in table({name: leaf.shape for name, leaf in leaves.items()}):
    leaf = leaves[row.name]
    if row.name == paligemma.TOKEN_TABLE:
      leaf = with_rows(leaf, rows or leaf.shape[0])
      tensors.append(Tensor(row.hf[0], leaf.shape, leaf.dtype, leaf.chunks))
    else:
      tensors += pieces_of(row, leaf)
  return tensors


def pieces_of(row: NameRow, leaf: LazyArray) -> list[Tensor]:
  """Their tensors of one of our leaves."""
  shape = their_shape(row, leaf.shape)
  return [
    Tensor(hf, shape, leaf.dtype, functools.partial(_cut, row, leaf, index))
    for index, hf in names_of(row, leaf.shape)
  ]


def _cut(row: NameRow, leaf: LazyArray, index: tuple[int, ...]) -> Iterator[np.ndarray]:
  """One of their tensors, cut out of our leaf."""
  if row.stacked:
    layer, *part = index
    array = leaf.read(layer, layer + 1)[(0, *part)]
  else:
    array = leaf.whole()
  yield einops.rearrange(array, f"{row.ours} -> {row.theirs}")


def with_rows(leaf: LazyArray, rows: int, new: np.ndarray | None = None) -> LazyArray:
  """The first `rows` rows; additional ones are those of `new`, or zeros."""
  have = leaf.shape[0]
  if rows == have:
    return leaf

  def read(start, stop):
    old = leaf.read(min(start, have), min(stop, have))
    if new is None:
      more = np.zeros((max(stop - max(start, have), 0), *leaf.shape[1:]), leaf.dtype)
    else:
      more = new[max(start - have, 0) : max(stop - have, 0)].astype(leaf.dtype)
    return np.concatenate([old, more])

  return LazyArray((rows, *leaf.shape[1:]), leaf.dtype, read)


def check_same(
  want: Mapping[str, Sequence[int]],
  have: Mapping[str, Sequence[int]],
  source: str,
  fits: Callable[[str, tuple, tuple], bool] = lambda name, have, want: have == want,
) -> None:
  """Raises unless model (want) and checkpoint (have) have the same leaves, with fitting shapes."""
  wrong = [
    f"{name} is {tuple(have[name])}, the model has {tuple(want[name])}"
    for name in want.keys() & have.keys()
    if not fits(name, tuple(have[name]), tuple(want[name]))
  ]
  mismatches = {"missing": want.keys() - have.keys(), "unexpected": have.keys() - want.keys()}
  mismatches["wrong shape"] = wrong
  if any(mismatches.values()):
    raise UserError(
      f"{source} does not fit the model;{_listed(mismatches)} Check model.img.variant,"
      " model.llm.variant and res against the checkpoint."
    )


def _listed(mismatches: Mapping[str, Collection[str]], limit: int = 40) -> str:
  """ " missing: a, b; unexpected: c and 3 more."."""
  parts = []
  for kind, names in mismatches.items():
    if names:
      more = f" and {len(names) - limit} more" * (len(names) > limit)
      parts.append(f" {kind}: {', '.join(sorted(names)[:limit])}{more}")
  return ";".join(parts) + "."
