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
from pgjax.formats import input_files

Count = Annotated[int, Meta(ge=0, le=2**53)]
Size = Annotated[int, Meta(ge=1, le=2**20)]  # One axis of a model.
Number = Annotated[int, Meta(ge=-(10**9), le=10**9)] | Annotated[float, Meta(ge=-1e9, le=1e9)]
Text = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]  # Names a file.


def read(
  path: str | pathlib.Path, kind: Any, error: Callable = UserError, *, nan: bool = False
) -> Any:
  """The content of a file as `kind`; `error` is the type that is raised."""
  try:
    data = input_files.read(path, most=input_files.MAX_TEXT_BYTES)
  except (OSError, ValueError) as reason:
    raise error(f"{path} cannot be read: {getattr(reason, 'strerror', None) or reason}.") from None
  return decode(data, kind, path, error, nan=nan)


def decode(
  data: bytes | str, kind: Any, where: Any, error: Callable = UserError, *, nan: bool = False
) -> Any:
  """A JSON text as `kind`; `where` begins the sentence. nan: also allows Python's NaN, Infinity."""
  try:
    raw = data.encode() if isinstance(data, str) else data.removeprefix(codecs.BOM_UTF8)
    if nan:
      return msgspec.convert(json.loads(raw), kind)
    return msgspec.json.decode(raw, type=kind)
  except msgspec.ValidationError as reason:
    raise error(f"{where}: {_explained(lambda: json.loads(raw), kind, str(reason))}.") from None
  except UnicodeEncodeError as reason:  # Of a text that is not from a file.
    raise error(f"{where}: this is not UTF-8 text ({reason.reason}).") from None
  except UnicodeError:
    raise error(not_utf8(data, where)) from None
  except RecursionError:
    raise error(f"{where} is not JSON that can be read: it is nested too deep.") from None
  except ValueError as reason:
    if isinstance(data, bytes) and wide_encoding(data):
      raise error(not_utf8(data, where)) from None
    raise error(f"{where}: {_surrogate(data) or f'not JSON ({reason})'}.") from None


def text(data: bytes, where: Any, error: Callable = UserError) -> str:
  """The text of a file in UTF-8, without its byte order mark."""
  if not wide_encoding(data):
    try:
      return data.decode("utf-8-sig")
    except UnicodeDecodeError:
      pass
  raise error(not_utf8(data, where))


def wide_encoding(data: bytes) -> str | None:
  """UTF-16 or UTF-32, if data begins with its byte order mark, or like JSON in it."""
  if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
    return "UTF-32"
  if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    return "UTF-16"
  first = data[:2]
  return "UTF-16" if len(first) == 2 and 0 in first and set(first) <= set(b'\0{["') else None


def not_utf8(data: bytes, where: Any) -> str:
  """Which encoding the text of a file seems to have, and what to do."""
  if wide := wide_encoding(data):
    return (
      f"{where} is {wide} text, as PowerShell's > writes it, and must be UTF-8: convert it, with"
      f" iconv -f {wide} -t UTF-8, or in PowerShell with Out-File -Encoding utf8."
    )
  try:
    data.decode()
  except UnicodeDecodeError as reason:
    line = data.count(b"\n", 0, reason.start) + 1
    column = reason.start - data.rfind(b"\n", 0, reason.start)
    return (
      f"{where}, line {line}: this is not UTF-8 text: byte 0x{data[reason.start]:02x} in column"
      f" {column}. If it is Windows or Latin-1 text, convert it: iconv -f WINDOWS-1252 -t UTF-8."
    )
  return f"{where}: this is not UTF-8 text."


def _surrogate(data: bytes | str) -> str:
  """Where half of a surrogate pair is, which is no character; empty without one."""
  data = data.encode(errors="replace") if isinstance(data, str) else data
  for match in re.finditer(rb"(?<!\\)(?:\\\\)*(\\u[dD]([89abAB]|[cdefCDEF])[0-9a-fA-F]{2})", data):
    low = data[match.end() : match.end() + 4].lower()
    if match[2] in b"89abAB" and low[:3] == b"\\ud" and low[3:] in (b"c", b"d", b"e", b"f"):
      continue
    before = data[: match.start(1)]
    if match[2] in b"cdefCDEF" and re.search(rb"\\u[dD][89abAB][0-9a-fA-F]{2}$", before):
      continue
    column = match.start(1) - data.rfind(b"\n", 0, match.start(1))
    return (
      f"{match[1].decode()} in column {column} is half of a surrogate pair, as of an emoji that"
      " another program cut in two; remove it"
    )
  return ""


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
