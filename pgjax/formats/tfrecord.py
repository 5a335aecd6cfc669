"""How are the records of a TFRecord file read, and their checksums checked, without TensorFlow?

A record is its length (8 bytes), the masked CRC-32C of those (4 bytes), its data, and the masked
CRC-32C of the data (4 bytes); numbers are little endian.
"""

import os
import pathlib
import struct
from collections.abc import Callable, Iterator

from pgjax.errors import UserError
from pgjax.formats import input_files

_BUFFER_BYTES = 1 << 20
_HEADER, _CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")
_COMPRESSED = ((b"\x1f\x8b", "GZIP"), (b"\x78\x01", "ZLIB"), (b"\x78\x9c", "ZLIB"))
_ADVICE = "copy it again, or build the data set again"


def crc32c() -> Callable[[bytes], int]:
  """The checksum of bytes; raises UserError without its library."""
  try:
    import google_crc32c
  except ImportError:
    raise UserError(
      "The checksums of TFRecord files are computed by google-crc32c, which is not installed: "
      "pip install google-crc32c."
    ) from None
  return google_crc32c.value


def records(path: pathlib.Path) -> Iterator[bytes]:
  """The data of each record; raises UserError with the byte where a record is damaged."""
  checksum = crc32c()
  try:
    input_files.check_regular(path.stat())
    file = open(path, "rb", _BUFFER_BYTES)  # noqa: SIM115
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
  with file:
    size, at = os.fstat(file.fileno()).st_size, 0
    while header := file.read(_HEADER.size):
      length, stored = _HEADER.unpack(header) if len(header) == _HEADER.size else (size, 0)
      whole = at + _HEADER.size + length + _CHECKSUM.size <= size
      if len(header) == _HEADER.size and stored != _masked(checksum(header[:8])):
        raise UserError(_damaged(path, at, header, "length"))
      if not whole:
        raise UserError(
          f"{path} ends inside the record at byte {at:,}, as half of a copy does: {_ADVICE}."
        )
      data = file.read(length)
      if file.read(_CHECKSUM.size) != _CHECKSUM.pack(_masked(checksum(data))):
        raise UserError(_damaged(path, at, header, "data"))
      yield data
      at += _HEADER.size + length + _CHECKSUM.size


def _masked(checksum: int) -> int:
  return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _damaged(path: pathlib.Path, at: int, header: bytes, what: str) -> str:
  kind = next((name for start, name in _COMPRESSED if header.startswith(start)), None)
  if at == 0 and kind:
    how = "gzip -dc" if kind == "GZIP" else "zlib-flate -uncompress <"
    return f"{path} is compressed ({kind}), which is not read: decompress it first ({how} FILE)."
  return f"{path}, byte {at:,}: the checksum of this record's {what} is wrong: {_ADVICE}."
