"""What does this run ask for, and can it be done?

`load` builds a config from its file, its argument string and overrides; `validated` checks every
field before anything expensive happens; `steps` turns durations into steps. Defaults are not here
but in configs/common.py; which fields there are is in schema.py; what needs devices or parameter
shapes is checked by sharding.py, params/rules.py and optim.py.
"""

import ast
import contextlib
import importlib
import importlib.util
import logging
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from pgjax import big_vision, decode_method, schema
from pgjax.errors import UserError
from pgjax.params import names as param_names
from pgjax.params import rules as param_rules

log = logging.getLogger("pgjax")
UNITS = ("steps", "epochs", "examples", "percent")
_ROOT = pathlib.Path(__file__).resolve().parents[1]  # Holds configs/ in a source checkout.


def load(spec: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
  """`configs/chartqa.py:res=448,tune=attention`, with overrides such as {"lr": "3e-6"}.

  Fields that the file leaves out get their values in configs/common.py; nothing is checked yet.
  """
  file, found, arg = spec.partition(".py:")
  path = pathlib.Path(file + ".py" if found else spec)
  if not path.is_file():
    near = [str(p) for p in sorted(path.parent.glob("*.py"))]
    raise UserError(f"--config={spec}: there is no file {path}.{schema.did_you_mean(path, near)}")
  with _import_paths(path):
    common = importlib.import_module("configs.common")
    with big_vision.stand_ins(common.parse_arg):
      config = ConfigDict(_get_config(path, arg), type_safe=False)
    if big_vision.is_original(config):
      config, ignored = big_vision.translated(config)
      log.warning("%s: without a meaning here: %s.", path, ", ".join(ignored))
    _fill(config, common.base())
    _fill(config.input, common.base().input)
    for entry in config.evals.values():
      _fill(entry, common.EVAL)
  return overridden(config, overrides or {})


def from_dict(fields: Mapping[str, Any]) -> ConfigDict:
  """A config that was saved as plain data, in JSON for example; not checked yet.

  Fields that are younger than it get their defaults, which do what was done before them.
  """
  config = ConfigDict(dict(fields), type_safe=False)
  with _import_paths(_ROOT / "configs/common.py"):
    common = importlib.import_module("configs.common")
  _fill(config, common.base())
  for entry in config.evals.values():
    _fill(entry, common.EVAL)
  return config


def overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
  """A copy with fields replaced; a text is read as what the field held before, or as a literal.

  Setting one unit of a duration, `total_steps` say, takes back the other units.
  """
  config = ConfigDict(config.to_dict(), type_safe=False)
  for dotted, value in overrides.items():
    *path, name = dotted.split(".")
    node = config
    for depth, key in enumerate(path):
      known = schema.fields_at(tuple(path[:depth]))
      if key not in node:
        _unknown(".".join(path[: depth + 1]), key, [*(known or ()), *node])
      node = node[key]
      if not isinstance(node, ConfigDict):
        raise UserError(
          f"--config.{dotted}: config.{'.'.join(path[: depth + 1])} is "
          f"{schema.shown(node)}, which has no fields; replace it as a whole."
        )
    known = schema.fields_at(tuple(path))
    if known is not None and name not in known and name not in node:
      _unknown(dotted, name, [*known, *node])
    node[name] = _read(value, node.get(name, None), dotted)
    if node[name] is not None:
      _clear_other_units(node, name)
  return config


def _unknown(dotted: str, name: str, known: list[str]) -> None:
  hint = schema.did_you_mean(name, dict.fromkeys(known))
  raise UserError(f"--config.{dotted}: there is no field {name!r}.{hint}")


def _read(value: Any, before: Any, dotted: str) -> Any:
  """The text of an override as a value; a field that held text keeps it as it is."""
  if not isinstance(value, str) or (isinstance(before, str) and value != "None"):
    return value
  if isinstance(before, bool) and value.lower() in ("true", "false"):
    return value.lower() == "true"
  try:
    read = ast.literal_eval(value)
  except (ValueError, SyntaxError):
    if before is None:
      return value
    kind = "a dict" if isinstance(before, ConfigDict) else f"like {schema.shown(before)}"
    raise UserError(f"--config.{dotted}={value} cannot be read; it must be {kind}.") from None
  return float(read) if isinstance(before, float) and type(read) is int else read


def _other_units(name: str) -> list[str]:
  """`total_steps` -> the names of the same duration in the other units; none for other fields."""
  prefix, _, unit = name.rpartition("_")
  return [f"{prefix}_{u}" for u in UNITS if u != unit] if prefix and unit in UNITS else []


def _clear_other_units(node: ConfigDict, name: str) -> None:
  for other in _other_units(name):
    if other in node:
      node[other] = None


def _fill(section: ConfigDict, defaults: Mapping[str, Any]) -> None:
  """Adds the fields that are missing; a duration only if no other unit of it is there."""
  for name, value in defaults.items():
    if not any(other in section for other in (name, *_other_units(name))):
      section[name] = value


@contextlib.contextmanager
def _import_paths(path: pathlib.Path) -> Iterator[None]:
  """Lets a config file say `from configs import common`, wherever the program was started."""
  added = [str(path.resolve().parent.parent), str(pathlib.Path.cwd()), str(_ROOT)]
  sys.path[:0] = added
  try:
    yield
  finally:
    for entry in added:
      sys.path.remove(entry)


def _get_config(path: pathlib.Path, arg: str) -> Any:
  """Runs a config file; what goes wrong in it is told with its line."""
  try:
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.get_config(arg or None)
  except ValueError as e:  # What configs/common.py says about an argument.
    message, *rest = e.args or ("",)
    hint = schema.did_you_mean(*rest, always=False) if len(rest) == 2 else ""
    raise UserError(f"{path}: {message}{hint}") from e
  except SyntaxError as e:
    raise UserError(f"{e.filename}, line {e.lineno}: {e.msg}.") from e
  except Exception as e:
    frames = traceback.extract_tb(e.__traceback__)
    line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), "?")
    raise UserError(f"{path}, line {line}: {type(e).__name__}: {e}") from e


def validated(config: ConfigDict) -> ConfigDict:
  """A checked, complete and locked copy: names, types, ranges, and the rules between fields."""
  config = ConfigDict(config.to_dict(), type_safe=False)
  _merge_frozen(config)
  schema.require(config, [n for n in schema.RUN if not n.endswith(UNITS)], "config")
  schema.check(config, schema.RUN, "config")
  schema.require(config.input, schema.INPUT, "config.input")
  schema.check(config.input, schema.INPUT, "config.input")
  config.model.dtype, config.model.remat = config.dtype, config.remat
  schema.require(config.model, ("img", "llm"), "config.model")
  schema.check(config.model, schema.MODEL, "config.model")
  schema.check(config.model.img, schema.IMG, "config.model.img")
  schema.check(config.model.llm, schema.LLM, "config.model.llm")
  _check_training(config)
  _check_sizes(config)
  decode_method.parse(config.decode, "config.decode")
  for name, entry in config.evals.items():
    _check_eval(entry, f"config.evals[{name!r}]")
  best = config.keep_best.removeprefix("-")
  if best and not any(best.startswith(f"{name}/") for name in config.evals):
    raise UserError(
      f"config.keep_best={config.keep_best!r} must be an evaluator's name, a slash and its metric;"
      f" the evaluators are {', '.join(config.evals) or 'none'}."
    )
  return config.lock()


def _merge_frozen(config: ConfigDict) -> None:
  """big_vision freezes by schedule=[(regex, None)]; here that is said in `params`."""
  if not isinstance(config.schedule, list | tuple):
    return
  if not schema.RUN["schedule"].accepts(config.schedule):
    return  # `check` says what is wrong with it.
  frozen, rest = param_rules.from_schedule(config.schedule)
  if frozen is None:
    return
  said = [tuple(pair) for pair in config.params]
  if said not in ([(".*", "train")], frozen):
    raise UserError(
      f"config.schedule freezes {[p for p, v in config.schedule if v is None]} with None, and "
      f"config.params={said} says something else; say what trains in one of the two."
    )
  if not rest:
    raise UserError("config.schedule freezes everything: at least one pattern needs a schedule.")
  config.params, config.schedule = frozen, rest


def _check_training(config: ConfigDict) -> None:
  for prefix in ("total", "log_training", "ckpt", "keep_ckpt"):
    _check_duration(config, prefix, "config")
  if not _given(config, "total"):
    raise UserError(
      "The config does not say how long to train: set one of total_epochs, total_steps or "
      "total_examples."
    )
  for _, spec in config.params:
    param_rules.parse_spec(spec)
  for name in ("params", "lr_mults", "wd_mults", "sharding_strategy"):
    schema.check_patterns(config[name], f"config.{name}")
  single = isinstance(config.schedule, ConfigDict)
  for pattern, fields in [("", config.schedule)] if single else config.schedule:
    where = f"config.schedule[{pattern!r}]" if pattern else "config.schedule"
    param_names.compile_pattern(pattern, "config.schedule")
    schema.check(fields, schema.SCHEDULE, where)
    for prefix in ("warmup", "cooldown"):
      _check_duration(fields, prefix, where)


def _check_duration(section: Any, prefix: str, where: str) -> None:
  given = _given(section, prefix)
  if len(given) > 1:
    raise UserError(f"{where}: only one of {' and '.join(given)} can be set.")


def _given(section: Any, prefix: str) -> list[str]:
  names = [f"{prefix}_{unit}" for unit in UNITS]
  return [name for name in names if name in section and section[name] is not None]


def _check_sizes(config: ConfigDict) -> None:
  batch_size = config.input.batch_size
  if batch_size % config.microbatches:
    raise UserError(
      f"config.microbatches={config.microbatches} must divide config.input.batch_size={batch_size}."
    )
  img = config.model.img
  patch = img.patch_size if "patch_size" in img else None
  if patch is None:  # "So400m/14" names it too; what else the name means is the model's business.
    found = re.fullmatch(r".*/(\d+)", img.variant if "variant" in img else "")
    patch = int(found[1]) if found else 1
  for size in [patch] if isinstance(patch, int) else patch:
    if config.res % size:
      near = config.res // size * size
      raise UserError(
        f"config.res={config.res} must be a multiple of the patch size {size}; "
        f"try {near or size} or {near + size}."
      )


def _check_eval(entry: Any, where: str) -> None:
  if not isinstance(entry, ConfigDict):
    raise UserError(f"{where}={schema.shown(entry)} must be a dict; see configs/common.py.")
  needed = [n for n in schema.EVAL if not n.endswith(UNITS)]
  schema.require(entry, needed, where)
  schema.check(entry, schema.EVAL, where)
  _check_duration(entry, "log", where)
  if entry.decode is not None:
    decode_method.parse(entry.decode, f"{where}.decode")


def steps(
  section: Mapping[str, Any],
  prefix: str,
  *,
  batch_size: int | None = None,
  num_examples: int | None = None,
  total_steps: int | None = None,
  default: int | None = None,
) -> int | None:
  """The duration `<prefix>_steps|_epochs|_examples|_percent` of a section, in steps.

  Rounded to the nearest step, but at least 1 unless it is 0, as in big_vision's `steps`. If none of
  the four is set, the default.
  """
  fields = {f"{prefix}_{unit}": section.get(f"{prefix}_{unit}") for unit in UNITS}
  given = {name: value for name, value in fields.items() if value is not None}
  if not given:
    return default
  if len(given) > 1:
    raise UserError(f"Only one of {', '.join(given)} can be set; now all of them are: {given}.")
  [(name, value)] = given.items()
  if value < 0 or (name.endswith("_percent") and value > 1):
    raise UserError(f"{name}={value} must be at least 0, and a percentage at most 1 (100%).")
  unit = name.removeprefix(f"{prefix}_")
  if unit == "steps":
    return int(value)
  needed = dict(
    epochs=dict(num_examples=num_examples, batch_size=batch_size),
    examples=dict(batch_size=batch_size),
    percent=dict(total_steps=total_steps),
  )[unit]
  missing = [key for key, known in needed.items() if known is None]
  if missing:
    raise UserError(f"{name}={value} needs {' and '.join(missing)}, not known here; use _steps.")
  if unit == "epochs":
    exact = value * num_examples / batch_size
  else:
    exact = value / batch_size if unit == "examples" else value * total_steps
  return max(1, round(exact)) if exact else 0


def total_steps(config: Any, num_examples: int) -> int:
  """The length of the run; `num_examples` is one epoch, over all parts of a mixture."""
  total = steps(config, "total", batch_size=config.input.batch_size, num_examples=num_examples)
  if total is None:
    raise UserError("Set one of total_epochs, total_steps or total_examples: how long to train.")
  return total
