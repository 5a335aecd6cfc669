"""Does a converted checkpoint equal its source? Compares hashes of all arrays, and logits.

Both sides are read from their files a layer at a time: the forward pass runs layer by layer, in
float32, on a random image of at most 16 x 16 patches and a short text.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from pgjax.checkpoints.orbax_items import under
from pgjax.checkpoints.source import Source
from pgjax.formats.lazy_array import LazyArray
from pgjax.huggingface import names as hf_names
from pgjax.layers import embedding, placement, residual, rotary
from pgjax.models import gemma, paligemma, siglip
from pgjax.params import tree as param_tree

PATCHES = 16  # Per side; the whole image of 896 pixels has 64.
PREFIX, SUFFIX = 5, 3  # Tokens.


def compare(leaves: Mapping[str, LazyArray], source: Source, copy: Source) -> tuple[str, bool]:
  """(a table of the comparison, whether all is equal).

  leaves: the source's arrays, cast, as they should have been written. copy: the written checkpoint.
  """
  lines, same = compare_arrays(leaves, copy.leaves)
  tables = leaves, copy.leaves, {paligemma.TOKEN_TABLE: source.leaves[paligemma.TOKEN_TABLE]}
  rows = min(of[paligemma.TOKEN_TABLE].shape[0] for of in tables)  # One may have <image>'s.
  first, second = logits(leaves, source, rows), logits(copy.leaves, copy, rows)
  difference = float(np.abs(first - second).max())
  largest = float(np.abs(first).max())
  lines.append(f"logits: largest {largest:.6g}, largest difference {difference:.6g}")
  return "\n".join(lines), same and difference == 0 and math.isfinite(largest)


def compare_arrays(
  leaves: Mapping[str, LazyArray], written: Mapping[str, LazyArray]
) -> tuple[list[str], bool]:
  """(a line for each array, whether all are equal)."""
  lines, same = [], True
  for name in sorted(leaves.keys() | written.keys()):
    want, have = leaves.get(name), written.get(name)
    if want is None or have is None:
      lines.append(f"{name:58} {'is missing' if have is None else 'was not asked for'}")
      same = False
      continue
    if name == paligemma.TOKEN_TABLE:  # One side may have rows for <image>; they are zeros.
      rows = max(want.shape[0], have.shape[0])
      want, have = hf_names.with_rows(want, rows), hf_names.with_rows(have, rows)
    ours, theirs = _digest(want), _digest(have)
    equal = ours == theirs and want.shape == have.shape and want.dtype == have.dtype
    same &= equal
    shape = ",".join(map(str, want.shape))
    verdict = "equal" if equal else f"DIFFERENT: {theirs[:12]}"
    lines.append(f"{name:58} {want.dtype.name:9} {shape:20} {ours[:12]}  {verdict}")
  return lines, same


def _digest(leaf: LazyArray) -> str:
  """SHA-256 of the bytes in C order."""
  digest = hashlib.sha256()
  for rows in leaf.chunks():
    digest.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
  return digest.hexdigest()


def example(source: Source, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """(image [1, H, W, 3], tokens [T]) that this model can read, always the same.

  rows: of the token table to choose from; without it all of the text's.
  """
  patch = siglip.get(**source.model["img"]).patch_size
  side = min(PATCHES, source.res // patch[0])
  rows = min(rows or source.leaves[paligemma.TOKEN_TABLE].shape[0], hf_names.VOCAB_SIZE)
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (1, side * patch[0], side * patch[1], 3)).astype(np.float32)
  return image, rng.integers(0, rows, PREFIX + SUFFIX)


def logits(leaves: Mapping[str, LazyArray], source: Source, rows: int | None = None) -> np.ndarray:
  """float32 [T, V] of the example's text; V is `rows`, or all without those for <image>."""
  img, llm = siglip.get(**source.model["img"]), gemma.get(**source.model["llm"])
  image, tokens_T = example(source, rows)
  return _text_logits(leaves, llm, _image_tokens(leaves, img, image), tokens_T, rows)


def _image_tokens(leaves, img, image):
  """The image tower's [1, P, D] for the upper left part of its grid of positions."""
  part = lambda name: jnp.asarray(leaves[f"img/{name}"].whole(), jnp.float32)  # noqa: E731
  side = image.shape[1] // img.patch_size[0]
  pattern = "1 (a h) (b w) c -> 1 (a b) (h w c)"
  patches = einops.rearrange(image, pattern, a=side, b=side)
  positions = part("pos_embedding")
  grid = math.isqrt(positions.shape[1])
  positions = positions.reshape(grid, grid, -1)[:side, :side].reshape(1, side * side, -1)
  kernel = part("embedding/kernel")
  x_1PD = jnp.asarray(patches) @ kernel.reshape(-1, kernel.shape[-1])
  x_1PD = x_1PD + part("embedding/bias") + positions
  block = siglip.Block(img, "float32", placement.NO_MESH)
  for i in range(img.depth):
    x_1PD, _ = block.apply(_layer(leaves, "img/Transformer/encoderblock", i), x_1PD, None)
  norm = {name: part(f"Transformer/encoder_norm/{name}") for name in ("bias", "scale")}
  x_1PD = nn.LayerNorm().apply({"params": norm}, x_1PD)
  return x_1PD @ part("head/kernel") + part("head/bias")


def _text_logits(leaves, llm, z_1PD, tokens_T, rows) -> np.ndarray:
  table = leaves[paligemma.TOKEN_TABLE]
  rows = min(rows or table.shape[0], hf_names.VOCAB_SIZE)
  embedded_TD = np.concatenate([table.read(t, t + 1) for t in tokens_T]).astype(np.float32)
  x_1TD = jnp.asarray(embedded_TD[None]) * math.sqrt(llm.width)
  P, T = z_1PD.shape[1], len(tokens_T)
  mask_ar = jnp.zeros((1, P + T), jnp.int32).at[:, P + PREFIX :].set(1)
  mask_1LL = paligemma.prefix_lm_mask(mask_ar)
  turn = rotary.table(P + T, llm.head_dim)
  x_1LD = jnp.concatenate([z_1PD, x_1TD], axis=1)
  block = gemma.Block(llm, "float32", placement.NO_MESH)
  for i in range(llm.depth):
    layer = _layer(leaves, "llm/layers", i)
    x_1LD, _ = block.apply(layer, x_1LD, turn, mask_1LL, gemma.Mode())
  scale = jnp.asarray(leaves["llm/final_norm/scale"].whole(), jnp.float32)
  h_TD = residual.normed(x_1LD[0, P:], residual.Norm(scale, None), llm.norm_eps)
  parts = [
    embedding.logits(h_TD, jnp.asarray(block, jnp.float32), llm.final_logits_softcap)
    for block in hf_names.with_rows(table, rows).chunks()
  ]
  return np.concatenate([np.asarray(part) for part in parts], axis=-1)


def _layer(leaves: Mapping[str, LazyArray], prefix: str, i: int) -> dict[str, Any]:
  """Variables of one layer, in float32."""
  stacked = under(leaves, prefix)
  flat = {n: jnp.asarray(leaf.read(i, i + 1)[0], jnp.float32) for n, leaf in stacked.items()}
  return {"params": param_tree.unflatten(flat)}
