"""What may the free parts of a config hold: names of evaluators, sources, optimizer arguments?

schema.py has the fields with a fixed type. All values are plain data, so that a run can save them
as JSON and read them back.
"""

import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pgjax import call_syntax
from pgjax.call_syntax import Between
from pgjax.config import schema
from pgjax.errors import UserError, cut
from pgjax.formats import input_files

MAX_DEPTH = 20  # Dicts and lists inside each other.
_EVAL_NAME = re.compile(r"\w[\w .,:;+=@()#%&!-]*")  # Of each part between slashes.
# The second part is a class or a kind of question: "AP/white cell".
_METRIC = re.compile(r"\w[\w.@:-]*(/[^/\x00-\x1f][^\x00-\x1f]*)?(?<![/ ])")
_RESULTS = (
  "predictions.jsonl",
  "submission.json",
  "metrics.json",
  "metrics.json.tmp",
)  # In the evaluator's folder.
BUCKETS = "PGJAX_BUCKETS"  # Environment variable: the folder with copies of buckets.
_SHARED = ("split", "data_dir", "root")  # Fields that all sources of a mixture share.
_WEIGHT = Annotated[float, Between(0, 1_000_000_000)]
_BELOW_1 = Annotated[float, Between(0, 1, but_not=(1,))]
_SMALL = Annotated[float, Between(0, 1)]
# Arguments of optimizers that have a range; others must be finite.
_OPTAX = dict.fromkeys(("b1", "b2", "b3", "momentum", "rho"), _BELOW_1) | dict.fromkeys(
  ("eps", "eps_root", "epsilon", "beta2_cap", "decay", "decay_rate"), _SMALL
)


def check_plain(value: Any, where: str, depth: int = 0) -> None:
  """Raises unless it is text, a finite number, a boolean, None, or lists and dicts of them."""
  if depth > MAX_DEPTH:
    raise UserError(f"{where} has over {MAX_DEPTH} dicts or lists in each other.")
  if isinstance(value, Mapping) or hasattr(value, "keys"):
    for name in value:
      if not isinstance(name, str):
        raise UserError(f"{where} has a field {schema.shown(name)}; names of fields are text.")
      check_plain(name, f"the name of a field of {where}")
      check_plain(value[name], f"{where}.{name}", depth + 1)
  elif isinstance(value, list | tuple):
    for i, item in enumerate(value):
      check_plain(item, f"{where}[{i}]", depth + 1)
  elif type(value) is str:
    schema.check_text(value, where)
  elif type(value) is float:
    if not math.isfinite(value):
      raise UserError(f"{where}={value} must be a finite number.")
  elif type(value) is int:
    if not -(2**63) <= value < 2**63:
      raise UserError(f"{where}={schema.shown(value)} must be a number of up to 64 bits.")
  elif value is not None and type(value) is not bool:
    raise UserError(
      f"{where}={schema.shown(value)} is a {type(value).__name__}; a config holds text, numbers,"
      " True, False, None, and lists and dicts of them: write str(...), int(...) or float(...)."
    )


def check_eval_names(names: Iterable[str]) -> None:
  """Raises unless each name is a relative path of plain words, and no two share a file."""
  files: dict[str, str] = {}
  for name in names:
    parts = name.split("/")
    if len(name) > 200 or not all(_EVAL_NAME.fullmatch(p) and p[-1] not in " ." for p in parts):
      raise UserError(
        f"config.evals[{cut(repr(name))}]: the name of an evaluator is also a folder in the"
        " workdir; write letters, digits and single characters such as - or _, in up to 200"
        " characters, with a slash only between two words, such as 'val/pplx'."
      )
    if parts[-1] in _RESULTS:
      raise UserError(f"config.evals[{name!r}]: {parts[-1]} is the name of a file with results.")
    other = files.setdefault(name.replace("/", "_").casefold(), name)
    if other != name:
      raise UserError(
        f"config.evals[{other!r}] and config.evals[{name!r}] would write to the same file; rename"
        " one of them."
      )


def check_keep_best(keep_best: str, evals: Iterable[str]) -> None:
  """Raises unless it is an evaluator's name, a slash and a metric, or empty."""
  evals, best = list(evals), keep_best.removeprefix("-")
  named = [name for name in evals if best.startswith(f"{name}/")]
  metric = best[len(max(named, key=len)) + 1 :] if named else ""
  if best != keep_best.lstrip("-") or (keep_best and not _METRIC.fullmatch(metric)):
    raise UserError(
      f"config.keep_best={cut(repr(keep_best))} must be an evaluator's name, a slash and its"
      f" metric, such as 'val/acc'; the evaluators are {', '.join(evals) or 'none'}."
    )


def check_data(data: Mapping[str, Any], where: str) -> None:
  """Raises for a mixture whose weights are no weights; the source checks its own fields."""
  if isinstance(data.get("name"), str):
    _check_local(data, where)
    return
  if not set(data) - set(_SHARED):
    raise UserError(f"{where}={schema.shown(data)} names no data set; see docs/data.md.")
  for name, value in data.items():
    if name not in _SHARED:
      own = hasattr(value, "keys")
      weight = value.get("weight") if own else value
      if not call_syntax.accepts(_WEIGHT, weight):
        raise UserError(
          f"{where}[{name!r}] needs a weight, {call_syntax.describe(_WEIGHT, ranges=True)}, not"
          f" {schema.shown(weight)}."
        )
      if own:
        _check_local(value, f"{where}.{name}")
        if "pp" in value and not (isinstance(value.pp, str) and value.pp):
          raise UserError(f"{where}[{name!r}].pp={schema.shown(value.pp)} must be a string of ops.")


def _check_local(data: Mapping[str, Any], where: str) -> None:
  """Raises for a field of big_vision's JSONL reader that names what is not on this machine."""
  flag = "--" + re.sub(r"\['(.*?)'\]", r".\1", where)
  folders = data.get("fopen_keys")
  paths = {"fname": data.get("fname"), "root": data.get("root")} | {
    f"fopen_keys.{name}": folders[name] for name in (folders if hasattr(folders, "keys") else ())
  }
  for field, path in paths.items():
    if isinstance(path, str) and path.startswith("gs://"):
      bucket = path.removeprefix("gs://").partition("/")[0]
      raise UserError(
        f"{where}.{field}={cut(path)} is in a bucket, and pgjax reads local files: copy it, such as"
        f" with `gcloud storage cp -r gs://{bucket} DIR`, and set {flag}.{field}=..., or the"
        f" environment variable {BUCKETS}=DIR, which stands for gs:// in configs of big_vision."
      )
  if folders and (more := set(folders) - {"image"}):
    raise UserError(
      f"{where}.fopen_keys names {sorted(more)}; only the files in the column 'image' are opened."
    )
  if data.get("download_keys"):
    raise UserError(
      f"{where}.download_keys={schema.shown(data['download_keys'])} asks for downloads, and pgjax"
      " reads local files: download them, write their names into the file, and remove the field."
    )


def ops_of(section: Any) -> list[str]:
  """The op strings of config.input: that of all data, and those of single parts of a mixture."""
  own = (part["pp"] for part in section.data.values() if hasattr(part, "keys") and "pp" in part)
  return [section.pp, *own]


def check_optax(arguments: Mapping[str, Any], where: str) -> None:
  """Raises for an argument of the optimizer out of its range."""
  for name, value in arguments.items():
    kind = _OPTAX.get(name)
    if kind is not None and value is not None and not call_syntax.accepts(kind, value):
      wants = call_syntax.describe(kind, ranges=True)
      raise UserError(f"{where}.{name}={schema.shown(value)} must be {wants}.")


def check_readable(path: Any, where: str) -> None:
  """Raises if a device, a pipe or a socket has this name, which could be read for ever."""
  if not isinstance(path, str):
    return
  try:
    info = os.stat(os.path.expanduser(path))
  except (OSError, ValueError):
    return  # Its reader reports it.
  try:
    if not stat.S_ISDIR(info.st_mode):
      input_files.check_regular(info)
  except OSError as error:
    raise UserError(f"{where}={cut(path)}: {error}.") from None
