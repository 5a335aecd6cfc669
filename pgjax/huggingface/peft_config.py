"""Reads PEFT's adapter_config.json: which fields change the sums, and which module has which alpha.

Fields that change what an adapter adds, and fields that are unknown, are refused by name. Patterns
match module paths as in PEFT, in the spelling of any version of transformers.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from pgjax.errors import UserError
from pgjax.formats import typed_json
from pgjax.params import names as param_names

CONFIG = "adapter_config.json"
# Fields that change the sums, and what they are called.
_UNSUPPORTED = dict(
  use_qalora="QA-LoRA",
  use_bdlora="BD-LoRA",
  lora_bias="a bias in each adapter",
  fan_in_fan_out="transposed matrices",
  layer_replication="repeated layers",
  alora_invocation_tokens="aLoRA",
  trainable_token_indices="single rows of the token table",
  target_parameters="adapters of parameters outside of linear modules",
  kasa_config="KaSA",
  monteclora_config="MonteCLoRA",
  arrow_config="Arrow",
  megatron_config="Megatron's layers",
)
# The values that these fields may have, if they are present.
_ALLOWED = dict(
  peft_type=("LORA",),
  bias=("none",),
  init_lora_weights=(True, False, "gaussian", "eva", "orthogonal"),  # The others change the base.
)
_UNSET = (None, False, [], {}, "")
# Fields that do not change what the tensors of a folder add to their matrices.
_HARMLESS = {
  *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config"),
  *("ensure_weight_tying", "exclude_modules", "inference_mode", "layers_pattern", "loftq_config"),
  *("layers_to_transform", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core"),
  *("merge_weights", "modules_to_save", "peft_version", "qalora_group_size", "r", "rank_pattern"),
  *("revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora"),
  "velora_config",
}
# What a tensor that is not read belongs to.
_UNREAD = {
  r"lora_magnitude_vector": "magnitudes of DoRA (use_dora) of a module without factors",
  r"lora_[AB]\.bias$": "a bias in an adapter (lora_bias)",
  r"trainable_tokens": "single trained rows of the token table (trainable_token_indices)",
  r"lora_embedding_[AB]|embed_tokens\.lora_": "an adapter of the token table (embed_tokens)",
  r"lm_head\.": "an adapter of the head (lm_head)",
  r"position_embedding\.": "an adapter of the position embedding",
  r"patch_embedding\.": "an adapter of the patch embedding, a convolution",
  r"\.bias$": "a trained bias (bias)",
}
_MERGE_FIRST = (
  "Merge the adapter with PEFT (merge_and_unload(), then save_pretrained(FOLDER)) and give that"
  " folder."
)
_Alpha = Annotated[int, Meta(gt=0, le=10**6)] | Annotated[float, Meta(gt=0, le=1e6)]
_Rank = Annotated[int, Meta(gt=0, le=2**20)]


class _Config(TypedDict, total=False):
  """The fields that are read, besides _ALLOWED."""

  base_model_name_or_path: str | None
  revision: str | None
  lora_alpha: _Alpha
  alpha_pattern: dict[str, _Alpha] | None
  rank_pattern: dict[str, _Rank] | None
  use_rslora: bool | None
  use_dora: bool | None
  lora_dropout: Annotated[float, Meta(ge=0, lt=1)]
  modules_to_save: list[str] | str | None
  ensure_weight_tying: bool | None


def read(path: pathlib.Path) -> dict[str, Any]:
  """The fields of a folder's adapter_config.json, checked."""
  file = path / CONFIG
  config = typed_json.read(file, dict[str, Any])
  typed_json.check(config, _Config, file)
  for field in ("alpha_pattern", "rank_pattern"):
    for pattern in config.get(field) or ():
      _compiled(pattern, f"{file}, {field}")
  for field, allowed in _ALLOWED.items():
    if field in config and config[field] not in allowed:
      raise UserError(
        f"{file}: {field}={config[field]!r} is not supported; it must be"
        f" {' or '.join(map(repr, allowed))}. {_MERGE_FIRST}"
      )
  for field, value in config.items():
    if value in _UNSET or field in _HARMLESS or field in _ALLOWED:
      continue
    what = f" ({_UNSUPPORTED[field]})" if field in _UNSUPPORTED else ""
    known = "is not supported" if what else "is a field that this version of pgjax does not know"
    raise UserError(f"{file}: {field}={_short(value)}{what} {known}. {_MERGE_FIRST}")
  return config


def check_read(name: str, rest: Sequence[str]) -> None:
  """Raises for a tensor of `rest`, those that are not read, that belongs to something known."""
  for pattern, what in _UNREAD.items():
    if found := next((tensor for tensor in rest if re.search(pattern, tensor)), None):
      raise UserError(
        f"'{name}' has {what}, which pgjax does not read: {found}. pgjax adapts the linear modules"
        f" of both towers and the connector. {_MERGE_FIRST}"
      )


def spellings(module: str) -> list[str]:
  """The paths of a module in memory under any version of transformers, alone and inside of PEFT.

  module: as the hub's files name it, such as language_model.model.layers.0.mlp.up_proj.
  """
  spelled = [module, f"model.{module}"]
  for tower, inside in (("language_model.", "model."), ("vision_tower.", "vision_model.")):
    if module.startswith(tower + inside):
      rest = module.removeprefix(tower + inside)
      spelled += [f"{tower}{rest}", f"model.{tower}{rest}"]
  if module == "language_model.lm_head":
    spelled.append("lm_head")
  return spelled + [f"base_model.model.{path}" for path in spelled]


def by_pattern(
  config: Mapping[str, Any],
  field: str,
  adapted: Mapping[str, str],
  modules: Iterable[str],
  name: str,
) -> dict[str, Any]:
  """{adapted module: value of the first pattern of `field` that matches its path}, as in PEFT.

  A pattern that matches no path as the folder spells them is compared with all spellings. It is an
  error if it then matches no module of the model.

  Args:
    config: the fields of adapter_config.json.
    field: "alpha_pattern" or "rank_pattern".
    adapted: {adapted module, as the hub's files name it: its path in the adapter's file}.
    modules: all modules of the model, as the hub's files name them.
    name: the user's name of the folder.
  """
  values: dict[str, Any] = {}
  for pattern, value in (config.get(field) or {}).items():
    regex = _compiled(pattern, f"'{name}', {CONFIG}, {field}")
    matched = [module for module, path in adapted.items() if regex.match(path)]
    if not matched:
      matched = [m for m in modules if any(map(regex.match, spellings(m)))]
    if not matched:
      raise UserError(
        f"'{name}', {CONFIG}: {field}[{pattern!r}]={value} matches no module of a PaliGemma of this"
        " size, in the names of any version of transformers. Correct or remove it."
      )
    values = {module: value for module in matched if module in adapted} | values
  return values


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
  """PEFT's rule: the pattern matches the end of a path, from a dot or from its start."""
  param_names.compile_pattern(pattern, where)
  return param_names.compile_pattern(rf"(.*\.)?({pattern})$", where)


def _short(value: Any) -> str:
  return text if len(text := repr(value)) <= 60 else text[:57] + "..."
