"""How do a config file and its overrides become a complete config?"""

import contextlib
import importlib
import importlib.util
import logging
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

import pgjax
from pgjax import call_syntax
from pgjax.config import big_vision, durations, mesh_spec, original_modules, schema
from pgjax.errors import UserError, cut, did_you_mean

log = logging.getLogger("pgjax")
_ROOT = pathlib.Path(pgjax.__path__[0]).resolve().parent  # Contains configs/ in a checkout.


def load(spec: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
  """`configs/chartqa.py:res=448,tune=attention`, with overrides such as {"lr": "3e-6"}.

  Missing fields get their values in configs/common.py; nothing is checked yet.
  """
  file, colon, arg = spec.partition(".py:")
  path = pathlib.Path(os.path.expanduser(file + ".py" if colon else spec))
  if not os.path.isfile(path):  # Of a Path, is_file raises where a name is too long.
    folder = os.path.dirname(path) or "."
    near = sorted(map(str, path.parent.glob("*.py"))) if os.path.isdir(folder) else []
    raise UserError(
      f"--config={cut(spec)}: there is no file {cut(str(path))}.{did_you_mean(path, near)}"
    )
  with _import_paths(path):
    common = _common()
    with original_modules.stand_ins(common.parse_arg) as arguments:
      config = _as_config(_get_config(path, arg), path)
    if big_vision.is_original(config):
      config, ignored = _translated(config, arguments, path)
      log.warning("%s: ignored fields: %s.", path, ", ".join(ignored))
    _fill_all(config, common)
  return overridden(config, overrides or {})


def from_dict(fields: Mapping[str, Any]) -> ConfigDict:
  """An unchecked config from saved JSON; newer fields get defaults that preserve the behaviour."""
  config = ConfigDict(dict(fields), type_safe=False)
  with _import_paths(_ROOT / "configs/common.py"):
    _fill_all(config, _common())
  return config


def _as_config(made: Any, path: pathlib.Path) -> ConfigDict:
  """What get_config returned, without references between fields."""
  if not isinstance(made, Mapping | ConfigDict):
    raise UserError(
      f"{path}: get_config returned {schema.shown(made)}; it must return the config, which begins"
      " with c = common.base()."
    )
  try:
    plain = ConfigDict(made, type_safe=False).to_dict()
    if numbers := [name for name in _names(plain) if not isinstance(name, str)]:
      raise UserError(f"{path}: a field is called {numbers[0]!r}; names of fields are text.")
    return ConfigDict(plain, type_safe=False)
  except UserError:
    raise
  except RecursionError:
    raise UserError(f"{path}: the config contains itself, or is nested too deep.") from None
  except Exception as e:  # Of ml_collections: a placeholder without a value, a name with a dot.
    raise UserError(f"{path}: the config cannot be read: {e}") from None


def _names(fields: Mapping[Any, Any]) -> Iterator[Any]:
  """The names of all fields, at any depth."""
  for name, value in fields.items():
    yield name
    if isinstance(value, Mapping):
      yield from _names(value)


def _translated(
  config: ConfigDict, arguments: Iterable[str], path: pathlib.Path
) -> tuple[ConfigDict, list[str]]:
  try:
    return big_vision.translated(config, arguments)
  except (AttributeError, KeyError, TypeError) as e:
    raise UserError(
      f"{path}: it has model_name or pp_modules, as a config of big_vision, but not all that one"
      f" has ({type(e).__name__}: {e})."
    ) from None


def set_mesh(config: ConfigDict) -> None:
  """Checks config.mesh; a preset's name becomes its mesh and, unless that is set, its strategy."""
  if config.mesh == mesh_spec.AUTO:
    return
  if not isinstance(config.mesh, str):
    mesh_spec.check(config.mesh)
    return
  common = shared("common")
  preset = mesh_spec.named(config.mesh, common.STRATEGIES)
  plain = [tuple(pair) for pair in config.sharding_strategy]
  if plain == common.base().sharding_strategy:
    config.sharding_strategy = preset["sharding_strategy"]
  config.mesh = preset["mesh"]


def shared(name: str) -> Any:
  """The module configs/NAME.py, such as `published`."""
  with _import_paths(_ROOT / "configs/common.py"):
    return _common(name)


def _common(name: str = "common") -> Any:
  """configs/common.py, which has every default, or another file that configs share."""
  try:
    module = importlib.import_module(f"configs.{name}")
    if name != "common" or hasattr(module, "base"):
      return module
    # Of another project, such as big_vision, in the working directory: ours comes first.
    theirs = sys.modules["configs"].__path__
    for imported in [n for n in sys.modules if n.partition(".")[0] == "configs"]:
      del sys.modules[imported]
    sys.modules["configs"] = package = types.ModuleType("configs")
    package.__path__ = [str(_ROOT / "configs"), *theirs]
    return importlib.import_module("configs.common")
  except ModuleNotFoundError as error:
    if error.name not in ("configs", f"configs.{name}"):
      raise
    raise UserError(
      f"configs/{name}.py, which pgjax reads, is not part of the installed "
      "package: run from a checkout of pgjax, or install it from there with pip install -e ."
    ) from None


def check_saved(fields: Mapping[str, Any], where: str) -> None:
  """Raises if a field of a checkpoint's config has a wrong type; unknown fields are ignored."""

  def check(section, known, name, required=()):
    if not isinstance(section, Mapping):
      raise UserError(f"{where}: {name}={schema.shown(section)} must be a dict.")
    section = {n: value for n, value in section.items() if n in known}
    schema.check(section, known, f"{where}: {name}", required)

  required = ("model", "res", *(("dtype",) if "params" in fields else ()))
  check(fields, schema.RUN, "config", required)
  check(fields["model"], schema.MODEL, "config.model", ("img", "llm"))
  check(fields["model"]["img"], schema.IMG, "config.model.img")
  check(fields["model"]["llm"], schema.LLM, "config.model.llm")
  check(fields.get("input", {}), schema.INPUT, "config.input")
  for name, entry in fields.get("evals", {}).items():
    check(entry, schema.EVAL, f"config.evals[{name!r}]", ("data", "pp"))


def overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
  """A copy with fields replaced; a text is parsed by the type of the old value, or as a literal.

  Setting one unit of a duration, such as `total_steps`, unsets the others.
  """
  config = ConfigDict(config.to_dict(), type_safe=False)
  for dotted, value in overrides.items():
    *path, name = dotted.split(".")
    node = config
    for depth, key in enumerate(path):
      known = schema.fields_at(tuple(path[:depth]))
      if key not in node:
        _unknown(".".join(path[: depth + 1]), key, [*(known or ()), *node], value)
      node = node[key]
      if not isinstance(node, ConfigDict):
        raise UserError(
          f"--config.{dotted}: config.{'.'.join(path[: depth + 1])} is "
          f"{schema.shown(node)}, which has no fields; replace it as a whole."
        )
    known = schema.fields_at(tuple(path))
    if known is not None and name not in known and name not in node:
      _unknown(dotted, name, [*known, *node], value)
    read = _read(value, node.get(name, None), dotted)
    schema.check_text(read, f"--config.{dotted}")
    if isinstance(read, bool) and type(node.get(name, None)) is float:  # Else it becomes 1.0.
      raise UserError(f"--config.{dotted}={read} must be a number.")
    try:
      node[name] = read
    except (TypeError, ValueError) as error:  # A dict with invalid field names.
      raise UserError(f"--config.{dotted}={schema.shown(read)} cannot be used: {error}.") from None
    for other in _other_units(name) if node[name] is not None else ():
      if other in node:
        node[other] = None
  return config


def _unknown(dotted: str, name: str, known: list[str], value: Any) -> None:
  hint = schema.hint(name, dict.fromkeys(known), str(value))
  raise UserError(f"--config.{cut(dotted)}: there is no field {cut(repr(name))}.{hint}")


def _read(value: Any, before: Any, dotted: str) -> Any:
  """Parses the text of an override; for a text field it is returned unchanged."""
  if not isinstance(value, str):
    return value
  is_text = isinstance(before, str) and value != "None"
  if is_text if dotted != "mesh" else value.isidentifier():  # A mesh is a list or a name.
    return value
  if isinstance(before, bool) and value.lower() in ("true", "false"):
    return value.lower() == "true"
  try:
    read = call_syntax.literal(value)
  except ValueError:
    if before is None:
      return value
    kind = "a dict" if isinstance(before, ConfigDict) else f"like {schema.shown(before)}"
    raise UserError(f"--config.{dotted}={cut(value)} cannot be read; it must be {kind}.") from None
  return float(read) if isinstance(before, float) and type(read) is int else read


def _other_units(name: str) -> list[str]:
  """`total_steps` -> the same duration in the other units; [] if it is no duration."""
  prefix, _, unit = name.rpartition("_")
  if not prefix or unit not in durations.UNITS:
    return []
  return [f"{prefix}_{other}" for other in durations.UNITS if other != unit]


def _fill_all(config: ConfigDict, common: Any) -> None:
  _fill(config, common.base())
  _fill(config.input, common.base().input)
  for entry in config.evals.values() if isinstance(config.evals, ConfigDict) else ():
    _fill(entry, common.EVAL)


def _fill(section: Any, defaults: Mapping[str, Any]) -> None:
  """Adds missing fields; a duration only if it is not set in another unit."""
  if not isinstance(section, ConfigDict):
    return  # `validated` reports it.
  for name, value in defaults.items():
    if not any(other in section for other in (name, *_other_units(name))):
      section[name] = value


@contextlib.contextmanager
def _import_paths(path: pathlib.Path) -> Iterator[None]:
  """Makes `from configs import common` work in any working directory."""
  added = [str(path.resolve().parent.parent), str(pathlib.Path.cwd()), str(_ROOT)]
  sys.path[:0] = added
  try:
    yield
  finally:
    for entry in added:
      sys.path.remove(entry)


def _get_config(path: pathlib.Path, arg: str) -> Any:
  """Runs a config file; errors in it are reported with their line."""
  try:
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.get_config(arg or None)
  except ValueError as e:  # Raised by configs/common.py for an argument.
    message, *rest = e.args or ("",)
    hint = schema.hint(*rest) if len(rest) == 3 else ""
    raise UserError(f"{path}: {message}{hint}") from e
  except SyntaxError as e:
    where = f"{e.filename}, line {e.lineno}" if e.lineno else path  # The null byte has no line.
    raise UserError(f"{where}: {e.msg}.") from e
  except Exception as e:
    frames = traceback.extract_tb(e.__traceback__)
    line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), "?")
    if isinstance(e, NotImplementedError) and "reader" in str(e):  # big_vision's video configs.
      raise UserError(
        f"{path}, line {line} raises NotImplementedError for want of a reader of videos; replace it"
        " by `from pgjax.data.sources import video`: then it reads the frames that pgjax.prepare or"
        " you have stored (docs/data.md)."
      ) from None
    raise UserError(f"{path}, line {line}: {type(e).__name__}: {e}") from e
