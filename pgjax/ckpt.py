"""What does a user's CKPT name: which file or folder, in which format, and which model is it?

One resolver for --ckpt, --src and model_init: a workdir of pgjax.train or one of its step folders,
a big_vision `.npz`, a folder in Hugging Face format, a published name such as pt_3b_224 or
paligemma2-3b-pt-224 (looked for in the folder that PGJAX_WEIGHTS_DIR names, then on the hub), or a
hub id such as google/paligemma2-3b-pt-224. Opening reads headers and small files alone.
"""

import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from pgjax import checkpoint_params, hf, kept_leaves, loading, params, runs, weight_files, weights
from pgjax import leaves as leaves_lib
from pgjax.errors import UserError
from pgjax.kept_leaves import Adapter
from pgjax.leaves import Leaves
from pgjax.models import gemma, paligemma, siglip
from pgjax.weight_files import Leaf

log = logging.getLogger("pgjax")

WEIGHTS_DIR = "PGJAX_WEIGHTS_DIR"
BESIDE = (".pgjax.json", ".tokenizer.model")  # x.npz.pgjax.json: what an .npz cannot say.
_SHORT = re.compile(r"pt_(?:(3b|10b|28b)_)?(224|448|896)(?:\.(bf16|f16))?")
_PUBLISHED = re.compile(
  r"paligemma2?-(?:3b|10b|28b)-(?:pt|mix|ft-[a-z0-9-]+)-(?:224|448|896)(?:-jax)?"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.npz"]
ALLOWED = (
  "allowed are a workdir of pgjax.train or one of its step folders, a big_vision .npz, a folder in"
  " Hugging Face format, a name such as pt_224 (PaliGemma 1), pt_3b_448 (PaliGemma 2) or"
  " paligemma2-3b-mix-448, and a hub id such as google/paligemma2-3b-pt-224"
)


class Source(NamedTuple):
  """An opened checkpoint; its arrays are not read yet."""

  name: str  # As the user wrote it.
  path: pathlib.Path
  kind: str  # "orbax", "bv" or "hf"
  leaves: dict[str, Leaf]  # Quantized ones as the numbers that they stand for.
  model: dict[str, Any]  # {"img": fields, "llm": fields} of paligemma.Model.
  res: int
  tokenizer: bytes | None
  image_token: int | None  # Hugging Face's <image>, where the source says it.
  run: runs.Checkpoint | None  # Of a workdir or step folder.
  notes: tuple[str, ...] = ()  # What a user should know about how it was read.
  adapters: Mapping[str, Adapter] = {}  # By the name of the leaf; not folded in.
  averages: bool = False  # Its leaves are averages (config.ema_decay) where the run kept them.


def open_source(name: str, step: int | None = None, *, ema: bool = True) -> Source:
  """Finds, recognises and checks a checkpoint: every leaf of its model is there, and no other.

  Of a run that kept averages of what trains (config.ema_decay) these are the leaves, unless `ema`
  is False.
  """
  path = resolve(name)
  if path.suffix == ".npz":
    source = _open_npz(name, path)
  elif path.is_dir() and any(path.glob("*.safetensors*")):
    source = _open_hf(name, path)
  else:
    source = _open_run(name, path, step, ema)
  shapes = model_shapes(source.model, source.res)
  have = {leaf_name: leaf.shape for leaf_name, leaf in source.leaves.items()}
  weights.check_same(shapes, have, f"'{name}'")
  return source


def model_shapes(model: Mapping[str, Any], res: int) -> dict[str, tuple[int, ...]]:
  """{our name: shape} of the model with these fields; nothing is allocated."""
  module = paligemma.Model(img=dict(model["img"]), llm=dict(model["llm"]))
  image = jax.ShapeDtypeStruct((1, res, res, 3), "float32")
  text = jax.ShapeDtypeStruct((1, 1), "int32")
  tree = jax.eval_shape(module.init, jax.random.key(0), image, text, text)["params"]
  return {name: leaf.shape for name, leaf in params.flatten(tree).items()}


def _open_run(name: str, path: pathlib.Path, step: int | None, ema: bool) -> Source:
  found = runs.find(str(path), step)
  tokenizer = pathlib.Path(found.tokenizer).read_bytes() if found.tokenizer else None
  model = {part: dict(found.config["model"][part]) for part in ("img", "llm")}
  averages = ema and any(n.startswith("ema/") for n in found.shapes)
  kept = checkpoint_params.leaves(found, averages=averages)
  model["llm"]["vocab_size"] = kept[weights.TOKEN_TABLE].shape[0]
  res, leaves, adapters = found.config["res"], kept, {}
  if "params" in found.config:  # A run's; converted weights are neither quantized nor adapted.
    how = leaves_lib.of(model_shapes(model, res), found.config["params"], found.config["dtype"])
    leaves, adapters = kept_leaves.plain(kept, how)
  image_token = found.identity.get("image_token")
  source = Source(name, found.path, "orbax", leaves, model, res, tokenizer, image_token, found)
  return source._replace(
    notes=(_AVERAGES,) if averages else (), adapters=adapters, averages=averages
  )


_AVERAGES = (
  "What the run trained is taken from its averages (config.ema_decay); --ema=False takes the"
  " weights of the last step."
)


def _open_hf(name: str, path: pathlib.Path) -> Source:
  if not (path / "config.json").is_file():
    raise UserError(
      f"{name} has .safetensors files and no config.json, which says what model they are: download"
      " the whole folder."
    )
  with weight_files.explained(path / "config.json", "config.json"):
    config = json.loads((path / "config.json").read_text())
  model, res = hf.model_fields(config), hf.res(config)
  model["llm"]["vocab_size"] = hf.vocab_size(config)  # With <image>, and padding where it has some.
  found = weight_files.read_safetensors(path)
  return Source(
    name,
    path,
    "hf",
    weights.from_hf(found, model_shapes(model, res)),
    model,
    res,
    _bytes_of(path / "tokenizer.model"),
    hf.image_token_id(config),
    None,
    tuple(hf.notes(config)),
  )


def _open_npz(name: str, path: pathlib.Path) -> Source:
  leaves = weight_files.read_npz(path)
  beside = path.with_name(path.name + BESIDE[0])
  said, notes = {}, ()
  if beside.is_file():
    with weight_files.explained(beside, "JSON"):
      said = json.loads(beside.read_text())
      model, res = said["model"], said["res"]
  else:
    model, res = model_of({n: leaf.shape for n, leaf in leaves.items()}, name)
    softcap = gemma.get(**model["llm"]).final_logits_softcap
    if softcap:
      notes = (
        f"{path.name} does not say how its logits are capped; taken: {softcap:g}, as Gemma 2 was"
        " trained. Weights of a transfer in big_vision were trained without: --softcap=0.",
      )
  return Source(
    name,
    path,
    "bv",
    leaves,
    model,
    res,
    _tokenizer_beside(path),
    said.get("image_token"),
    None,
    notes,
  )


def model_of(shapes: Mapping[str, Sequence[int]], name: str) -> tuple[dict[str, Any], int]:
  """(fields of the model, resolution) that have these shapes; what shapes don't say is Gemma's."""
  try:
    depth, width, heads, head_dim = shapes[_QUERY]
    patch = shapes["img/embedding/kernel"][0]
    img = dict(width=width, depth=depth, num_heads=heads, patch_size=patch)
    img["mlp_dim"] = shapes["img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias"][1]
    res = math.isqrt(shapes[weights.POS_EMBEDDING][1]) * patch
    llm_depth, mlp_dim, llm_width = shapes["llm/layers/mlp/linear"]
    _, num_heads, llm_head_dim, _ = shapes["llm/layers/attn/attn_vec_einsum/w"]
    kv_heads = shapes.get("llm/layers/attn/kv_einsum/w", (0, 0, num_heads))[2]
    vocab_size = shapes[weights.TOKEN_TABLE][0]
  except (KeyError, ValueError, IndexError) as error:
    raise UserError(
      f"'{name}' does not hold a PaliGemma: {error} is missing or has another number of axes."
    ) from error
  if head_dim * heads != width:
    raise UserError(f"'{name}': {heads} heads of {head_dim} do not make an image width of {width}.")
  llm = dict(width=llm_width, depth=llm_depth, mlp_dim=mlp_dim, num_heads=num_heads)
  llm |= dict(num_kv_heads=kv_heads, head_dim=llm_head_dim)
  gemma2 = "llm/layers/post_ffw_norm/scale" in shapes
  return dict(img=_named_img(img), llm=_named_llm(llm, gemma2) | dict(vocab_size=vocab_size)), res


def _named_img(sizes: dict[str, int]) -> dict[str, Any]:
  """The variant's name where it is a published one, else the sizes."""
  published = dict(variant="So400m/14")
  custom = dict(variant="custom", **sizes)
  return published if siglip.get(**published) == siglip.get(**custom) else custom


def _named_llm(sizes: dict[str, int], gemma2: bool) -> dict[str, Any]:
  for variant, fields in gemma.VARIANTS.items():
    if fields.get("post_norms", False) == gemma2 and sizes.items() <= fields.items():
      return dict(variant=variant)
  softcaps = dict(post_norms=True, attn_logits_softcap=50.0, final_logits_softcap=30.0)
  return dict(variant="custom", **sizes, **(softcaps if gemma2 else {}))


_QUERY = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"


def initial(
  model_init: str | Mapping[str, str], kept: Mapping[str, Any], leaves: Leaves
) -> dict[str, Any]:
  """The parameters that a run starts from, nested, cast and placed; see loading.load.

  Args:
    model_init: a CKPT, or "x.npz:img" for a part of a file, or a dict from the parts of the model
      to such strings; parts that it leaves out are not returned.
    kept: nested dict of what the run keeps, with shapes, dtypes and shardings.
    leaves: the model's own shapes, and how each is kept.
  """
  if isinstance(model_init, str):
    found, adapters = _leaves_of(model_init)
    return loading.load(found, kept, leaves, model_init, adapters)
  parts = {name.split("/")[0] for name in leaves.shapes}
  if unknown := sorted(set(model_init) - parts):
    raise UserError(f"model_init has no part {unknown}; the model has {sorted(parts)}.")
  found, adapters = {}, {}
  for part, spec in model_init.items():
    there, adapted = _leaves_of(spec)  # Of the part alone, or of a whole model.
    found |= {f"{part}/{name}": leaf for name, leaf in (_inside(there, part) or there).items()}
    adapters |= {f"{part}/{name}": leaf for name, leaf in _inside(adapted, part).items()}
  inside = Leaves(*({n: x for n, x in d.items() if n.split("/")[0] in model_init} for d in leaves))
  return loading.load(found, kept, inside, ", ".join(model_init.values()), adapters)


def tokenizer_of(model_init: str) -> bytes | None:
  """The tokenizer.model that comes with initial weights, if one does."""
  path = resolve(_name_and_part(model_init)[0])
  if path.suffix == ".npz":
    return _tokenizer_beside(path)
  if any(path.glob("*.safetensors*")):
    return _bytes_of(path / "tokenizer.model")
  found = runs.find(str(path))
  return pathlib.Path(found.tokenizer).read_bytes() if found.tokenizer else None


def _name_and_part(spec: str) -> tuple[str, str]:
  """ "x.npz:img" is a checkpoint and a part of it; a path may have colons of its own."""
  name, _, part = spec.rpartition(":")
  return (spec, "") if not name or "/" in part or part.endswith(".npz") else (name, part)


def _tokenizer_beside(path: pathlib.Path) -> bytes | None:
  own = path.with_name(path.name + BESIDE[1])
  return _bytes_of(own if own.is_file() else path.with_name("tokenizer.model"))


def _bytes_of(path: pathlib.Path) -> bytes | None:
  return path.read_bytes() if path.is_file() else None


def _leaves_of(spec: str) -> tuple[dict[str, Leaf], dict[str, Adapter]]:
  """What one string of model_init names, under the names it has in there, and its adapters."""
  name, part = _name_and_part(spec)
  path = resolve(name)
  if path.suffix == ".npz":
    leaves, adapters = weight_files.read_npz(path), {}
  else:
    source = open_source(name)
    leaves, adapters = source.leaves, source.adapters
  if part and not _inside(leaves, part):
    tops = sorted({name.split("/")[0] for name in leaves})
    raise UserError(f"model_init='{spec}': the file has no part '{part}', but {tops}.")
  return (_inside(leaves, part), _inside(adapters, part)) if part else (leaves, adapters)


def _inside(leaves: Mapping[str, Any], part: str) -> dict[str, Any]:
  start = f"{part}/"
  return {n.removeprefix(start): leaf for n, leaf in leaves.items() if n.startswith(start)}


def resolve(name: str) -> pathlib.Path:
  """The file or folder; what is not on this machine is downloaded from the hub."""
  path = pathlib.Path(name).expanduser()
  if path.exists():
    return path.absolute()
  if short := _SHORT.fullmatch(name):
    files, repo = _files_of(*short.groups())
  elif _PUBLISHED.fullmatch(name):
    endings = ("", ".bf16.npz", ".b16.npz", ".npz", ".f16.npz")
    files, repo = [f"{name}{ending}" for ending in endings], f"google/{name}"
  elif _HUB_ID.fullmatch(name) and not name.endswith(".npz"):
    files, repo = [], name
  else:
    raise UserError(f"There is no checkpoint '{name}': no such file or folder; {ALLOWED}.")
  folder = os.environ.get(WEIGHTS_DIR)
  for file in files if folder else ():
    if (path := pathlib.Path(folder, file).expanduser()).exists():
      return path.absolute()
  where = (
    f"is in {folder} ({WEIGHTS_DIR})" if folder else f"was looked for: {WEIGHTS_DIR} is not set"
  )
  looked = f"none of {', '.join(files)} {where}" if files else "it is no path here"
  return _downloaded(name, repo, looked)


def _files_of(size: str | None, res: str, precision: str | None) -> tuple[list[str], str]:
  """(file and folder names that a short name stands for, the preferred first; its hub id)."""
  if size is None:
    model, short = f"paligemma-3b-pt-{res}", f"pt_{res}"
    endings = ["", ".bf16", ".f16"]
  else:
    model, short = f"paligemma2-{size}-pt-{res}", f"pt_{size}_{res}"
    endings = [".b16", ".bf16", "", ".f16"]  # Kaggle spells PaliGemma 2's bfloat16 b16.
  if precision:
    spellings = {"bf16": (".b16", ".bf16"), "f16": (".f16",)}[precision]
    endings = [ending for ending in endings if ending in spellings]
  files = [f"{stem}{ending}.npz" for ending in endings for stem in (model, short)]
  return files + ([] if precision else [model]), f"google/{model}"


def _downloaded(name: str, repo: str, looked: str) -> pathlib.Path:
  """The hub's copy, from its cache where it has been downloaded before."""
  import huggingface_hub  # Only who downloads waits for it.
  from huggingface_hub import errors

  page = f"https://huggingface.co/{repo}"
  log.info("%s: from %s, or from what was downloaded before.", name, page)
  try:
    folder = huggingface_hub.snapshot_download(repo, allow_patterns=_HUB_FILES)
  except errors.GatedRepoError as error:
    raise UserError(
      f"'{name}': {repo} asks you to accept its licence: open {page} in a browser, accept it, make"
      " a token that may read it, and set HF_TOKEN to the token."
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(
      f"There is no checkpoint '{name}': {looked}, and the hub shows no {page} to this user (is"
      f" HF_TOKEN set?); {ALLOWED}."
    ) from error
  except Exception as error:  # No network, a full disk, a broken answer: many types, one meaning.
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(
      f"'{name}' is not on this machine ({looked}), and {page} could not be downloaded ({reason})."
      f" Download it elsewhere, and set {WEIGHTS_DIR} to the folder that holds it."
    ) from error
  arrays = sorted(pathlib.Path(folder).glob("*.npz"))
  return arrays[0] if arrays else pathlib.Path(folder)
