"""Does a JSON from outside have its declared type?

Each reader declares a msgspec.Struct, a TypedDict, or built-in types with bounds; unknown keys are
allowed. Any mismatch is one sentence with the file and the path in it, such as `$.leaves[3].shape`.
"""

import codecs
import collections
import copy
import json
import pathlib
import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pgjax.errors import UserError

Count = Annotated[int, Meta(ge=0, le=2**53)]
Size = Annotated[int, Meta(ge=1, le=2**20)]  # One axis of a model.
Number = Annotated[int, Meta(ge=-(10**9), le=10**9)] | Annotated[float, Meta(ge=-1e9, le=1e9)]
Text = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]  # Names a file.


def read(
  path: str | pathlib.Path, kind: Any, error: Callable = UserError, *, nan: bool = False
) -> Any:
  """The content of a file as `kind`; `error` is the type that is raised."""
  try:
    if (path := pathlib.Path(path)).exists() and not path.is_file():  # A device may never end.
      raise OSError("it is not a file")
    data = path.read_bytes()
  except (OSError, ValueError) as reason:
    raise error(f"{path} cannot be read: {getattr(reason, 'strerror', None) or reason}.") from None
  return decode(data, kind, path, error, nan=nan)


def decode(
  data: bytes | str, kind: Any, where: Any, error: Callable = UserError, *, nan: bool = False
) -> Any:
  """A JSON text as `kind`; `where` begins the sentence. nan: also allows Python's NaN, Infinity."""
  try:
    data = data.encode() if isinstance(data, str) else data.removeprefix(codecs.BOM_UTF8)
    if nan:
      return msgspec.convert(json.loads(data), kind)
    return msgspec.json.decode(data, type=kind)
  except msgspec.ValidationError as reason:
    raise error(f"{where}: {_explained(lambda: json.loads(data), kind, str(reason))}.") from None
  except UnicodeError:
    raise error(f"{where}: this is not UTF-8 text.") from None
  except RecursionError:
    raise error(f"{where} is not JSON that can be read: it is nested too deep.") from None
  except ValueError as reason:
    raise error(f"{where}: not JSON ({reason}).") from None


def repeated_keys(data: bytes) -> list[str]:
  """Keys that an object of a valid JSON text has twice; a parser silently takes the last."""
  repeated: list[str] = []

  def look(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    repeated.extend(key for key, times in counts.items() if times > 1)

  json.loads(data, object_pairs_hook=look)
  return repeated


def check(value: Any, kind: Any, where: Any, error: Callable = UserError) -> Any:
  """A parsed value as `kind`."""
  try:
    return msgspec.convert(value, kind)
  except msgspec.ValidationError as reason:
    message = _explained(lambda: copy.deepcopy(value), kind, str(reason))
    raise error(f"{where}: {message}.") from None


def _explained(parsed: Callable[[], Any], kind: Any, message: str) -> str:
  """`$.sums['a'] is -1; expected ...`: adds the value and the keys, which msgspec omits."""
  reason, _, path = message.partition(" - at `")
  reason, path = reason[0].lower() + reason[1:], path.removesuffix("`")
  try:
    value = parsed()
    if "out of range" in reason:
      path, here = next(_beyond(value, "$"), (path, None))
    else:
      path, here = _located(value, kind, path)
    return f"{path} is {json.dumps(here)[:60]}; {reason.partition(', got ')[0]}"
  except (ValueError, LookupError, TypeError, RecursionError):
    return f"{path or '$'}: {reason}"


def _located(value: Any, kind: Any, path: str) -> tuple[str, Any]:
  """(path with the keys of dicts spelled, the value there)."""
  here, spelled = value, "$"
  for name, index in re.findall(r"\.(\w+)|\[([\d.]+)\]", path):
    key = name or (_culprit(value, kind, here, path) if index == "..." else int(index))
    here, spelled = here[key], spelled + (f".{name}" if name else f"[{key!r}]")
  return spelled, here


def _culprit(value: Any, kind: Any, holder: dict, path: str) -> str:
  """The key of `holder`, a dict inside `value`, that makes `value` fail at `path`."""
  whole = dict(holder)
  for key in whole:
    holder.clear()
    holder[key] = whole[key]
    try:
      msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
      if str(error).endswith(f" - at `{path}`"):
        return key
  raise LookupError(path)


def _beyond(value: Any, path: str):
  """(path, value) of each number that is too large for a float."""
  if isinstance(value, int | float) and not abs(value) < 2**1023:
    yield path, value
  for key, inner in value.items() if isinstance(value, dict) else ():
    yield from _beyond(inner, f"{path}[{key!r}]")
  for key, inner in enumerate(value) if isinstance(value, list) else ():
    yield from _beyond(inner, f"{path}[{key!r}]")
