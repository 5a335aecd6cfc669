"""What may a column of images hold, and how are its bytes read?

The name of a file, bytes, {"bytes": ..., "path": ...} (datasets), or a list of these for several
images. Where the config allows them (allow_urls=True) also a URL, which fsspec reads, and a data:
URL.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pgjax.data.sources import files
from pgjax.errors import UserError, cut
from pgjax.formats import input_files

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_REMOTE = re.compile(r"(https?|s3|gs|gcs|hf|az|abfs)://", re.IGNORECASE)
_CHUNK = 1 << 20


class File(NamedTuple):
  """The name of a file, as the data has it."""

  name: str


class Url(NamedTuple):
  """An address that fsspec reads."""

  address: str


class Inline(NamedTuple):
  """The encoded image itself; `text` is a data: URL."""

  data: bytes | str


Value = File | Url | Inline


def of_row(row: Mapping, where: str, *, allow_urls: bool = False) -> tuple[list[Value], bool]:
  """(the images in the column `image`, whether they are a list); raises UserError without any."""
  if row.get("image") is None:
    own = [name for name in row if name not in ("prefix", "suffix", "id")]
    there = (
      f"; the row has {cut(', '.join(map(repr, own)))}, and image= names a column" if own else ""
    )
    raise UserError(f"{where}: 'image' must be a file name (or a list of them), not None{there}.")
  return of(row["image"], where, allow_urls=allow_urls)


def of(column: Any, where: str, *, allow_urls: bool = False) -> tuple[list[Value], bool]:
  """(the images of one row, whether they are a list); raises UserError for anything else."""
  several = isinstance(column, list | tuple)
  values = list(column) if several else [column]
  values = values or [None]
  return [_value(one, column, where, allow_urls) for one in values], several


def _value(value: Any, column: Any, where: str, allow_urls: bool) -> Value:
  if isinstance(value, Mapping):
    if isinstance(value.get("bytes"), bytes | bytearray):
      return Inline(bytes(value["bytes"]))
    if value.get("bytes") is None and isinstance(value.get("path"), str):
      return _value(value["path"], column, where, allow_urls)
    raise UserError(
      f"{where}: 'image' is an object with {', '.join(map(repr, value)) or 'nothing'}; store the"
      ' image in a file and write its name: {"image": "a.png", ...}.'
    )
  if isinstance(value, bytes | bytearray):
    return Inline(bytes(value))
  if not isinstance(value, str) or not value:
    raise UserError(
      f"{where}: 'image' must be a file name (or a list of them), not {cut(repr(column))}."
    )
  if allow_urls and _DATA_URL.match(value):
    return Inline(value)
  return Url(value) if allow_urls and _REMOTE.match(value) else File(value)


def read(value: Value, path: str | None) -> bytes:
  """The encoded image; `path` is that of a File."""
  if isinstance(value, File):
    return files.file_bytes(path)
  if isinstance(value, Url):
    return _download(value.address)
  if isinstance(value.data, bytes):
    return value.data
  try:
    return base64.b64decode(value.data.partition(",")[2], validate=True)
  except (binascii.Error, ValueError) as error:
    raise UserError(f"the image {value.data[:40]!r}... is not base64 ({error})") from None


def name(value: Value) -> str | None:
  """What messages and predictions show of it; None for bytes."""
  if isinstance(value, File | Url):
    return value[0]
  return value.data[:40] + "..." if isinstance(value.data, str) else None


def _download(address: str) -> bytes:
  if "::" in address:
    raise UserError(f"the URL {cut(address)!r} chains several file systems; give a plain one")
  try:
    import fsspec

    return input_files.bounded(lambda alive: _remote_bytes(fsspec, address, alive))
  except ImportError as error:
    raise UserError(f"reading {cut(address)} needs a package: {error}") from None
  except Exception as error:  # Any of a file system's.
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(f"{cut(address)} cannot be read: {cut(reason)}") from None


def _remote_bytes(fsspec: Any, address: str, alive: Callable) -> bytes:
  chunks, total = [], 0
  with fsspec.open(address, "rb") as file:
    while chunk := file.read(_CHUNK):
      alive()
      chunks.append(chunk)
      total += len(chunk)
      if total > input_files.MAX_BYTES:
        raise OSError(f"it has more than {input_files.MAX_BYTES:,} bytes")
  return b"".join(chunks)
