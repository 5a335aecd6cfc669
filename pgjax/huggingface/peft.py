"""Reads and writes LoRA adapters in PEFT's folders (PEFT 0.21, transformers 4.57 and 5).

PEFT has two matrices for each linear module of Hugging Face, we have two arrays with the same
numbers for each leaf; the table in names.py maps the names.
"""

import collections
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
from msgspec import Meta

from pgjax import disk
from pgjax.errors import UserError
from pgjax.formats import safetensors, typed_json
from pgjax.formats.lazy_array import LazyArray
from pgjax.huggingface import names as hf_names
from pgjax.huggingface.names import NameRow
from pgjax.layers import lora
from pgjax.params import names as param_names
from pgjax.params.lazy import Adapter
from pgjax.params.rules import Rule
from pgjax.params.storage import StoredParams

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
CONNECTOR, _CONNECTOR = "img/head/", "multi_modal_projector"  # Ours, theirs.
_PREFIX = "base_model.model."
_UNSUPPORTED = (
  *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "layer_replication"),
  *("alora_invocation_tokens", "trainable_token_indices", "kasa_config", "monteclora_config"),
)
# The values that these fields may have, if they are present.
_ALLOWED = dict(
  peft_type=("LORA",),
  bias=("none",),
  init_lora_weights=(True, False, "gaussian", "eva", "orthogonal"),  # The others change the base.
  **dict.fromkeys(_UNSUPPORTED, (None, False, [], {})),
)
_Alpha = Annotated[int, Meta(gt=0, le=10**6)] | Annotated[float, Meta(gt=0, le=1e6)]


class _Config(TypedDict, total=False):
  """The fields of adapter_config.json besides _ALLOWED."""

  base_model_name_or_path: str | None
  lora_alpha: _Alpha
  alpha_pattern: dict[str, _Alpha] | None
  use_rslora: bool | None
  lora_dropout: Annotated[float, Meta(ge=0, lt=1)]


class Folder(NamedTuple):
  """The content of a folder; the arrays are not read yet."""

  adapters: dict[str, Adapter]  # By our name of the leaf.
  whole: dict[str, LazyArray]  # Fully trained leaves.
  base: str | None  # The model that the adapters were trained on, if known.
  uneven: tuple[str, ...] = ()  # Adapted leaves whose Hugging Face parts differ.


def arrays(folder: Folder) -> dict[str, LazyArray]:
  """All arrays of a folder by our names: factors as LEAF/a and LEAF/b."""
  factors = {
    f"{name}/{factor}": getattr(adapter, factor)
    for name, adapter in folder.adapters.items()
    for factor in "ab"
  }
  return factors | folder.whole


def with_arrays(folder: Folder, leaves: Mapping[str, LazyArray]) -> Folder:
  """The folder with other arrays under these names, such as rounded ones."""
  adapters = {
    name: adapter._replace(a=leaves[f"{name}/a"], b=leaves[f"{name}/b"])
    for name, adapter in folder.adapters.items()
  }
  return folder._replace(adapters=adapters, whole={name: leaves[name] for name in folder.whole})


def is_folder(path: pathlib.Path) -> bool:
  """Whether the folder has an adapter."""
  return (path / CONFIG).is_file()


def base_of(path: pathlib.Path) -> str | None:
  """The model that the adapter was trained on, according to its folder."""
  return _config_of(path).get("base_model_name_or_path") or None


def _factor_rows(row: NameRow) -> dict[str, NameRow]:
  """The rows of both factors of a leaf; PEFT's are [rank, in] and [out, rank]."""
  out, into = (group.strip("()") for group in re.findall(r"\(.*?\)|\S+", row.theirs))
  patterns = dict(a=(f"{into} r", f"r ({into})"), b=(f"r {out}", f"({out}) r"))
  return {
    factor: NameRow(f"{row.name}/{factor}", *both, tuple(_factor(hf, factor) for hf in row.hf))
    for factor, both in patterns.items()
  }


def _factor(weight_name: str, factor: str) -> str:
  return f"{weight_name.removesuffix('.weight')}.lora_{factor.upper()}.weight"


def _path(name: str) -> str:
  """The name of a parameter in memory in transformers 4.52 to 5.x, which also load files by it."""
  return "model." + name.replace("language_model.model.", "language_model.")


def write(path: pathlib.Path, folder: Folder, shapes: Mapping[str, Sequence[int]]) -> None:
  """Writes what peft.PeftModel.from_pretrained loads onto the base in Hugging Face format."""
  tensors = []
  for row in hf_names.table(shapes):
    if adapter := folder.adapters.get(row.name):
      for factor, part in _factor_rows(row).items():
        tensors += hf_names.pieces_of(part, getattr(adapter, factor))
    elif row.name in folder.whole:
      tensors += hf_names.pieces_of(row, folder.whole[row.name])
  renamed = [tensor._replace(name=_PREFIX + _path(tensor.name)) for tensor in tensors]
  path.mkdir()
  safetensors.write_safetensors_file(path / FILE, renamed)
  (path / CONFIG).write_text(disk.dumps(config_json(folder, shapes)))


def check_faithful(folder: Folder) -> None:
  """Raises for fully trained leaves other than a connector without an adapter."""
  lost = [name for name in folder.whole if not name.startswith(CONNECTOR)]
  if not lost and any(name.startswith(CONNECTOR) for name in folder.adapters):
    lost = list(folder.whole)
  if lost:
    raise UserError(
      f"--to=peft: {min(lost)} and {len(lost) - 1} more were fully trained beside adapters, and"
      " PEFT's folder can store only a connector (img/head/.*) in that way, if it has no adapter:"
      " write full weights with --merge --to=hf."
    )


def config_json(folder: Folder, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
  """adapter_config.json: the most common rank and alpha, and patterns for the others."""
  rules = {name: adapter.rule for name, adapter in folder.adapters.items()}
  rslora = all(rule.rslora for rule in rules.values())
  ranks, alphas = {}, {}
  for row in hf_names.table(shapes):
    if rule := rules.get(row.name):
      alpha = rule.alpha if rslora else rule.scale * rule.rank
      for module in map(_pattern, row.hf):
        ranks[module], alphas[module] = rule.rank, int(alpha) if alpha == int(alpha) else alpha
  rank, alpha = (collections.Counter(v.values()).most_common(1)[0][0] for v in (ranks, alphas))
  return dict(
    peft_type="LORA",
    task_type="CAUSAL_LM",
    base_model_name_or_path=folder.base,
    r=rank,
    lora_alpha=alpha,
    rank_pattern={module: r for module, r in ranks.items() if r != rank},
    alpha_pattern={module: a for module, a in alphas.items() if a != alpha},
    use_rslora=rslora,
    lora_dropout=max(rule.dropout for rule in rules.values()),
    target_modules=rf"(.*\.)?({'|'.join(ranks)})",
    modules_to_save=[_CONNECTOR] if folder.whole else None,
    bias="none",
    inference_mode=True,
  )


def _pattern(weight_name: str) -> str:
  """A regex over the module of all layers, in any spelling of transformers."""
  module = weight_name.removesuffix(".weight")
  tower, stacked, inside = module.partition(".layers.{i}.")
  if not stacked:
    return re.escape(module)
  return rf"{tower.partition('.')[0]}\.(.*\.)?layers\.\d+\.{re.escape(inside)}"


def read(path: pathlib.Path, name: str, shapes: Mapping[str, Sequence[int]]) -> Folder:
  """The adapter in a folder, for a model of these shapes; `name` is the user's name of it.

  If only some of Hugging Face's parts of a leaf are adapted, or their ranks or scales differ, the
  leaf gets factors of the largest rank, padded with zeros: the sum is the same.
  """
  config, tensors = _config_of(path), _tensors_of(path)
  adapters, whole, used, uneven = {}, {}, set(), []
  for row in hf_names.table(shapes):
    ours = tuple(shapes[row.name])
    parts = [hf for _, hf in hf_names.names_of(row, ours)]
    adapted = [hf for hf in parts if _factor(hf, "a") in tensors]
    if adapted and param_names.matrix(row.name):
      used |= {_factor(hf, factor) for hf in adapted for factor in "ab"}
      adapters[row.name], even = _adapter(row, ours, adapted, name, tensors, config)
      uneven += [] if even else [row.name]
    elif tensors.keys() >= set(parts):
      used |= set(parts)
      theirs = dict.fromkeys(parts, hf_names.their_shape(row, ours))
      hf_names.check_same(theirs, {hf: tensors[hf].shape for hf in parts}, f"'{name}'")
      whole[row.name] = hf_names.joined(row, ours, tensors)
  rest = sorted(tensors.keys() - used)
  if rest or not adapters:
    what = f"its {rest[0]} belongs to none" if rest else "it has no factors for any"
    raise UserError(
      f"'{name}' does not fit the model: {what} of the linear modules of a PaliGemma of this size."
      " Is its base the model that it was trained on?"
    )
  return Folder(adapters, whole, config.get("base_model_name_or_path") or None, tuple(uneven))


def check_start(path: pathlib.Path, name: str, leaves: StoredParams) -> None:
  """A run with adapters can only start from an adapter of exactly the same matrices."""
  asked = {n for n, rule in leaves.rules.items() if rule.kind == "lora"}
  if not asked:
    return
  folder = read(path, name, {n: leaf.shape for n, leaf in leaves.shapes.items()})
  if different := sorted(asked ^ (folder.adapters.keys() - set(folder.uneven))):
    whose = "config.params adapts and it does not, or not all layers and parts of it alike"
    if different[0] not in asked:
      whose = "it adapts and config.params does not"
    raise UserError(
      f"model_init='{name}' is an adapter of other matrices than config.params asks for:"
      f" {different[0]} is one of {len(different)} that {whose}. Make the patterns of lora(...)"
      " match it, or merge it first: pgjax.convert --merge --to=orbax."
    )


def _adapter(row, ours, adapted, name, tensors, config) -> tuple[Adapter, bool]:
  """(the adapter of one leaf, whether all of its parts have the same rank and scale)."""
  out, into = hf_names.their_shape(row, ours)
  parts = [hf for _, hf in hf_names.names_of(row, ours)]
  scales = {hf: _checked_scale(name, hf, (out, into), tensors, config) for hf in adapted}
  rule, even = _rule(scales, len(parts), tensors, config)
  padded = {}
  for hf in parts:
    relative = scales[hf] / rule.scale if hf in scales else 0.0
    a, b = (_factor(hf, factor) for factor in "ab")
    padded[a] = _padded(tensors.get(a), (rule.rank, into), 1.0)
    padded[b] = _padded(tensors.get(b), (out, rule.rank), relative)
  shapes = lora.factor_shapes(param_names.matrix(row.name), ours, rule.rank)
  factors = {
    factor: hf_names.joined(part, shapes[factor], padded)
    for factor, part in _factor_rows(row).items()
  }
  return Adapter(**factors, rule=rule), even


def _config_of(path: pathlib.Path) -> dict[str, Any]:
  config = typed_json.read(path / CONFIG, dict[str, Any])
  typed_json.check(config, _Config, path / CONFIG)
  for pattern in config.get("alpha_pattern") or ():
    param_names.compile_pattern(rf"(.*\.)?({pattern})$", f"{path / CONFIG}, alpha_pattern")
  for field, allowed in _ALLOWED.items():
    if field in config and config[field] not in allowed:
      raise UserError(
        f"{path / CONFIG}: {field}={config[field]!r} is not supported; it must be"
        f" {' or '.join(map(repr, allowed))}."
      )
  return config


def _tensors_of(path: pathlib.Path) -> dict[str, LazyArray]:
  """{name in names.table, with PEFT's ending: tensor}."""
  if not (path / FILE).is_file():
    raise UserError(
      f"{path} has no {FILE}: pgjax reads no pickles (.bin), so save the adapter again with"
      " save_pretrained(folder, safe_serialization=True)."
    )
  tensors = safetensors.read_safetensors_file(path / FILE)
  return {hf_names.canonical(name.removeprefix(_PREFIX)): leaf for name, leaf in tensors.items()}


def _checked_scale(name, hf, sizes, tensors, config) -> float:
  """The scale of the product of a module's factors; raises if their shapes do not fit."""
  a, b = (tensors.get(_factor(hf, factor)) for factor in "ab")
  rank = a.shape[0] if a.shape else 0
  (out, into), have = sizes, (a.shape, b and b.shape)
  if have != ((rank, into), (out, rank)) or not rank:
    raise UserError(
      f"'{name}' does not fit the model: the factors of {hf} are {have[0]} and {have[1]}, for a"
      f" matrix of [{out}, {into}] they must be [rank, {into}] and [{out}, rank]. It was trained on"
      " a model of another size."
    )
  return _alpha(hf, config) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _alpha(hf: str, config: Mapping[str, Any]) -> float:
  """As in PEFT: that of the first pattern that matches the end of the module's path."""
  path = _path(hf).removesuffix(".weight")
  for module in (path, path.replace("vision_tower.vision_model.", "vision_tower.")):
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
      if re.match(rf"(.*\.)?({pattern})$", module):
        return alpha
  return config.get("lora_alpha", 8)


def _rule(scales, num_parts, tensors, config) -> tuple[Rule, bool]:
  """(the rule of a leaf, whether it holds for each of its parts)."""
  ranks = [tensors[_factor(hf, "a")].shape[0] for hf in scales]
  scale = next(iter(scales.values()))
  even = len({*ranks}) == len({*scales.values()}) == 1 and len(scales) == num_parts
  rank, rslora = max(ranks), even and bool(config.get("use_rslora"))
  alpha = round(scale * (math.sqrt(rank) if rslora else rank), 9)
  dropout = config.get("lora_dropout", 0.0)
  return Rule("lora", rank=rank, alpha=alpha, dropout=dropout, rslora=rslora), even


def _padded(leaf: LazyArray | None, shape: tuple[int, int], times: float) -> LazyArray:
  def read(start, stop):
    rows = np.zeros(shape, np.float32)
    if leaf is not None:
      rows[: leaf.shape[0], : leaf.shape[1]] = leaf.whole().astype(np.float32) * np.float32(times)
    return rows[start:stop]

  return LazyArray(shape, np.dtype(np.float32), read)
