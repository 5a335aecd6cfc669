"""Opens a user's CKPT: which format is it, and which model?

One reader for --ckpt, --src and model_init: a workdir of pgjax.train or one of its step folders, a
big_vision `.npz`, a checkpoint folder of big_vision or openpi, a folder in Hugging Face format, a
folder of PEFT with an adapter. Only headers and small files are read.
"""

import functools
import logging
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from pgjax.checkpoints import orbax_params, resolve, trainer_folder, workdir
from pgjax.config import load as config_load
from pgjax.data import sentencepiece_model, tokenizer as tokenizer_lib, tokenizer_folder
from pgjax.errors import UserError, naming
from pgjax.formats import buckets, foreign, npz, safetensors, typed_json, weight_sets
from pgjax.formats.lazy_array import LazyArray
from pgjax.huggingface import (
  config_fields,
  config_json as hf_config,
  image_config,
  names as hf_names,
  peft,
)
from pgjax.models import gemma, paligemma, siglip
from pgjax.params import lazy, of_model, storage, tree as param_tree
from pgjax.params.lazy import Adapter

log = logging.getLogger("pgjax")

SIDECARS = (".pgjax.json", ".tokenizer.model")  # x.npz.pgjax.json: what an .npz cannot store.


class _Beside(msgspec.Struct):
  """x.npz.pgjax.json."""

  model: dict[str, dict[str, Any]]
  res: typed_json.Size
  image_token: typed_json.Count | None = None
  images: str | None = None  # Ops.


class Source(NamedTuple):
  """An opened checkpoint; its arrays are not read yet."""

  name: str  # As the user wrote it.
  path: pathlib.Path
  kind: str  # "orbax", "bv", "hf", "peft", or "trainer" (trainer_folder.py)
  leaves: dict[str, LazyArray]  # Quantized ones are decoded.
  model: dict[str, Any]  # {"img": fields, "llm": fields} of paligemma.Model.
  res: int
  tokenizer: bytes | None
  image_token: int | None  # Hugging Face's <image>, if known.
  run: workdir.Checkpoint | None  # Of a workdir or step folder.
  notes: tuple[str, ...] = ()  # For the user, about how it was read.
  adapters: Mapping[str, Adapter] = {}  # By the name of the leaf; not merged.
  folder: peft.Folder | None = None  # Of kind "peft": then all else is the base's.
  averages: bool = False  # The leaves are EMA weights (config.ema_decay) where the run has them.
  images: Callable[[], image_config.Images | None] = lambda: (
    None
  )  # How they are prepared, if known.


def open_source(
  name: str,
  step: int | None = None,
  base: str | None = None,
  *,
  ema: bool = True,
  weights: str | None = None,
  dtype: str | None = None,
) -> Source:
  """Resolves, recognises and checks a checkpoint: it has exactly the leaves of its model.

  Args:
    name: the user's CKPT.
    step: of a workdir; without it the newest.
    base: the base model of a PEFT adapter, if not the one that its folder names.
    ema: take EMA weights (config.ema_decay) where a run has them.
    weights: the file or index to read, where a Hugging Face folder has several sets of weights.
    dtype: the weights will be cast to it (resolve.py).
  """
  path = resolve.resolve(name, dtype=dtype, step=step)
  is_adapter = peft.is_folder(path) and _chooses_adapter(name, path, weights)
  if weights is not None and not is_adapter and not _has_safetensors(path):
    raise UserError(
      f"--weights={weights} chooses between files of a Hugging Face folder, and '{name}' is none."
    )
  if is_adapter:
    return _open_peft(name, path, base)
  if path.suffix == ".npz" and not path.is_dir():
    source = _open_bv(name, path, npz.read_npz(path))
  elif not path.is_dir():
    foreign.check_file(path, name)
  elif _has_safetensors(path):
    source = _open_hf(name, path, weights)
  elif arrays := trainer_folder.find(path):
    params = trainer_folder.read(arrays)
    source = _open_bv(name, arrays, params.leaves)._replace(kind="trainer", path=path)
    source = source._replace(notes=(*params.notes, *source.notes))
  else:
    if not (path / "run.json").is_file() and not (path / workdir.FOLDER).is_dir():
      foreign.check_folder(path, name)
    source = _open_run(name, path, step, ema)
  facts = path.with_name(path.name + SIDECARS[0])
  if source.kind not in ("bv", "trainer"):
    facts = source.path / ("run.json" if source.run else "config.json")
  with naming(facts if facts.is_file() else path):
    shapes = _shapes_of(source.model, source.res)
    have = {leaf_name: leaf.shape for leaf_name, leaf in source.leaves.items()}
    hf_names.check_same(shapes, have, f"'{name}'")
  return source


def _has_safetensors(path: pathlib.Path) -> bool:
  return path.is_dir() and any(path.glob("*.safetensors*"))


def needs_download(name: str, base: str | None = None) -> bool:
  """Whether a checkpoint, or the base of an adapter, has to be downloaded from the hub."""
  if not resolve.is_local(name):
    return True
  if buckets.is_url(name):
    return False
  if not peft.is_folder(path := resolve.resolve(name)):
    return False
  base = base or peft.base_of(path)
  return base is not None and not resolve.is_local(base)


def check_base(source: Source, base: str | None) -> None:
  """Raises if a base was given for a checkpoint that needs none."""
  if base and source.folder is None:
    raise UserError(
      f"--base={base} is for PEFT's adapters, and '{source.name}' is none: leave it out."
    )


def _chooses_adapter(name: str, path: pathlib.Path, weights: str | None) -> bool:
  """Whether a folder with an adapter is opened as one, not as the model that is in it too."""
  others = [found for found in weight_sets.sets_of(path) if found.name != peft.FILE]
  if others and weights is None:
    adapter = weight_sets.WeightSet(peft.FILE, (path / peft.FILE,))
    weight_sets.chosen([adapter, *others], None, f"'{name}'")
  return not others or weights == peft.FILE


def _shapes_of(model: Mapping[str, Any], res: int) -> dict[str, tuple[int, ...]]:
  """{our name: shape} of the model that a file describes."""
  try:
    return of_model.param_shapes(paligemma.Model(**model), res)
  except UserError:
    raise
  except Exception as error:  # Of many types: sizes that do not fit together.
    reason = str(error).splitlines()[0]
    raise UserError(f"No model has these fields (model, res={res}): {reason}") from error


def _open_run(name: str, path: pathlib.Path, step: int | None, ema: bool) -> Source:
  run = workdir.find(str(path), step)
  file, config = run.path / "run.json", run.config
  config_load.check_saved(config, str(file))
  image_token = run.identity.get("image_token")
  typed_json.check(image_token, typed_json.Count | None, f"{file}, $.identity.image_token")
  tokenizer = pathlib.Path(run.tokenizer).read_bytes() if run.tokenizer else None
  model = {part: dict(config["model"][part]) for part in ("img", "llm")}
  ema = ema and any(n.startswith("ema/") for n in run.shapes)
  stored = orbax_params.leaves(run, ema=ema)
  if not (table := stored.get(paligemma.TOKEN_TABLE)) or not table.shape:
    raise UserError(f"{file}: $.shapes has no token table, params/{paligemma.TOKEN_TABLE}.")
  model["llm"]["vocab_size"] = table.shape[0]
  res, leaves, adapters, notes = config["res"], stored, {}, run.notes
  with naming(file):
    shapes = _shapes_of(model, res)
    if "params" in config:  # A run's; converted weights are neither quantized nor adapted.
      how = storage.of(shapes, config["params"], config["dtype"])
      want = {n: leaf.shape for n, leaf in param_tree.flatten(how.abstract()).items()}
      hf_names.check_same(want, {n: leaf.shape for n, leaf in stored.items()}, "$.shapes")
      leaves, adapters = lazy.decode_all(stored, how)
  if quantized := leaves.keys() - stored.keys():
    notes += (f"{len(quantized)} arrays are stored quantized, and decoded as they are read.",)
  if ema:
    notes += (
      "The trained parameters are their EMA weights (config.ema_decay); --ema=False takes those of"
      " the last step.",
    )
  source = Source(name, run.path, "orbax", leaves, model, res, tokenizer, image_token, run)
  images = functools.partial(_images_of_run, run, str(file))
  return source._replace(notes=notes, adapters=adapters, averages=ema, images=images)


def _images_of_run(run: workdir.Checkpoint, file: str) -> image_config.Images | None:
  """From the ops of training, or from the folder that was converted."""
  section = run.config.get("input")
  pp = section.get("pp") if isinstance(section, Mapping) else run.identity.get("images")
  return image_config.of_pp(pp, file) if isinstance(pp, str) else None


def _open_hf(name: str, path: pathlib.Path, weights: str | None = None) -> Source:
  if not (path / "config.json").is_file():
    raise UserError(
      f"{name} has .safetensors files and no config.json, which describes the model: download"
      " the whole folder."
    )
  config = config_fields.read(path / "config.json")
  tensors = safetensors.read_safetensors(path, weights)
  with naming(path / "config.json"):
    model, res = hf_config.model_fields(config), hf_config.res(config)
    model["llm"]["vocab_size"] = hf_config.vocab_size(config)  # With rows for <image> and padding.
    leaves = hf_names.from_hf(tensors, _shapes_of(model, res))
  tokenizer, image_token = tokenizer_folder.source_of(path), hf_config.image_token_id(config)
  if _is_padded(table := leaves[paligemma.TOKEN_TABLE], image_token, tokenizer):
    leaves[paligemma.TOKEN_TABLE] = hf_names.with_rows(table, image_token)
    model["llm"]["vocab_size"] = image_token
  notes = tuple(hf_config.notes(config))
  source = Source(name, path, "hf", leaves, model, res, tokenizer, image_token, None, notes)
  return source._replace(images=functools.partial(image_config.read, path, res))


def _is_padded(table: LazyArray, image_token: int, tokenizer: bytes | None) -> bool:
  """Whether the rows from <image> on are what pgjax adds: zeros that no word of a text uses."""
  if table.shape[0] != image_token + hf_names.IMAGE_ROWS:
    return False
  if tokenizer and tokenizer_lib.Tokenizer(tokenizer, "tokenizer.model").vocab_size > image_token:
    return False
  return not table.read(image_token, table.shape[0]).any()


def _open_peft(name: str, path: pathlib.Path, base: str | None) -> Source:
  """The base, with the adapters and leaves of the folder."""
  own = peft.base_of(path)
  peft.check_file(path)
  if base is None and own is None:
    raise UserError(
      f"'{name}' is an adapter of PEFT that does not name its base model: {_GIVE_BASE}, or"
      f" set base_model_name_or_path in {path / peft.CONFIG}."
    )
  try:
    below = _open_base(base or own, path)
  except UserError as error:
    origin = ""
    if base is None:
      origin = f" ({peft.CONFIG}: base_model_name_or_path). If it is elsewhere, {_GIVE_BASE}"
    raise UserError(f"'{name}' is an adapter on '{base or own}'{origin}. {error}") from error
  base = base or own
  if below.adapters:
    raise UserError(f"'{name}' is an adapter on '{base}', which has adapters: merge those first.")
  folder = peft.read(path, name, {n: leaf.shape for n, leaf in below.leaves.items()})

  def images() -> image_config.Images | None:
    return image_config.read(path, below.res) or below.images()

  tokenizer = tokenizer_folder.source_of(path) or below.tokenizer
  leaves = {**below.leaves, **folder.whole}
  adapted = below._replace(name=name, path=path, kind="peft", leaves=leaves, run=None)
  adapted = adapted._replace(images=images, tokenizer=tokenizer)
  return adapted._replace(adapters=folder.adapters, folder=folder._replace(base=base))


_GIVE_BASE = (
  "give --base=CKPT, the model that it was trained on (in config.model_init: ckpt('ADAPTER',"
  " base='CKPT'))"
)


def _open_base(base: str, adapter: pathlib.Path) -> Source:
  """The base of an adapter; it may be in the same folder."""
  path = resolve.resolve(base)
  if path == adapter:
    return _open_hf(base, adapter, _only_model(adapter))
  if peft.is_folder(path) and not _only_model(path):
    raise UserError("It has adapters itself: merge those first (pgjax.convert --merge).")
  return open_source(base)


def _only_model(folder: pathlib.Path) -> str | None:
  """The set of weights beside an adapter, if there is one."""
  others = [found.name for found in weight_sets.sets_of(folder) if found.name != peft.FILE]
  return others[0] if len(others) == 1 else None


def _open_bv(name: str, path: pathlib.Path, leaves: dict[str, LazyArray]) -> Source:
  """Arrays by big_vision's names; a file beside them has what their shapes leave open."""
  beside = path.with_name(path.name + SIDECARS[0])
  image_token, notes, images = None, (), None
  if beside.is_file():
    facts = typed_json.read(beside, _Beside)
    model, res, image_token = facts.model, facts.res, facts.image_token
    images = facts.images and image_config.of_pp(facts.images, str(beside))
    config_load.check_saved(dict(model=model, res=res), str(beside))
  else:
    model, res = _model_of({n: leaf.shape for n, leaf in leaves.items()}, name)
    if softcap := gemma.get(**model["llm"]).final_logits_softcap:
      notes = (
        f"{path.name} does not define the cap of its logits; taken: {softcap:g}, as Gemma 2 was"
        " trained. big_vision's transfers were trained without: --softcap=0.",
      )
  tokenizer = tokenizer_beside(path)
  source = Source(name, path, "bv", leaves, model, res, tokenizer, image_token, None, notes)
  return source._replace(images=lambda: images)


def _model_of(shapes: Mapping[str, Sequence[int]], name: str) -> tuple[dict[str, Any], int]:
  """(fields of the model, resolution) with these shapes; other fields are Gemma's defaults."""
  try:
    depth, width, heads, head_dim = shapes[_QUERY]
    patch = shapes["img/embedding/kernel"][0]
    img = dict(width=width, depth=depth, num_heads=heads, patch_size=patch)
    img["mlp_dim"] = shapes["img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias"][1]
    res = math.isqrt(shapes[hf_names.POS_EMBEDDING][1]) * patch
    llm_depth, mlp_dim, llm_width = shapes["llm/layers/mlp/linear"]
    _, num_heads, llm_head_dim, _ = shapes["llm/layers/attn/attn_vec_einsum/w"]
    kv_heads = shapes.get("llm/layers/attn/kv_einsum/w", (0, 0, num_heads))[2]
    vocab_size = shapes[paligemma.TOKEN_TABLE][0]
  except (KeyError, ValueError, IndexError) as error:
    raise UserError(
      f"'{name}' does not hold a PaliGemma: {error} is missing or has another number of axes."
    ) from error
  if head_dim * heads != width:
    raise UserError(f"'{name}': {heads} heads of {head_dim} do not make an image width of {width}.")
  llm = dict(width=llm_width, depth=llm_depth, mlp_dim=mlp_dim, num_heads=num_heads)
  llm |= dict(num_kv_heads=kv_heads, head_dim=llm_head_dim)
  gemma2 = "llm/layers/post_ffw_norm/scale" in shapes
  if variant := gemma.find_variant(llm, post_norms=gemma2):
    llm = dict(variant=variant)
  else:
    softcaps = dict(post_norms=True, attn_logits_softcap=50.0, final_logits_softcap=30.0)
    llm = dict(variant="custom", **llm, **(softcaps if gemma2 else {}))
  return dict(img=siglip.find_variant(img), llm=llm | dict(vocab_size=vocab_size)), res


_QUERY = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"


def tokenizer_beside(path: pathlib.Path) -> bytes | None:
  """The tokenizer file next to an .npz, if there is one."""
  own = path.with_name(path.name + SIDECARS[1])
  file = own if own.exists() else path.with_name("tokenizer.model")
  return sentencepiece_model.read_file(file) if file.exists() else None
