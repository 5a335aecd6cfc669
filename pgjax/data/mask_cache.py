"""Where are the codes of masks stored between epochs and runs? In memory and beside the data.

A record is a digest of everything that the codes depend on, and the sixteen codes. One file for
each VQ-VAE, `.pgjax-masks-...`, is replaced atomically and read only if its checksum is right; it
may be deleted at any time. In a folder that cannot be written the codes are stored in memory only.
"""

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import secrets
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pgjax.data import locations

MAX_RECORDS = 1 << 20  # 32 MiB; the oldest are dropped beyond.
SAVE_SECONDS = 10.0  # At most this often, and at the end of the process.

_MAGIC = b"pgjax mask codes 1\n"
_DIGEST, _KEY = 32, 16  # Bytes.
_RECORD = _KEY + locations.NUM_CODES


def key(outline: Any, box: Sequence[float], height: int, width: int) -> bytes:
  """The digest of an object: its COCO segmentation, its box, and its image's size."""
  described = [outline, [float(c) for c in box], int(height), int(width)]
  text = json.dumps(described, sort_keys=True, default=repr)
  return hashlib.blake2b(text.encode(), digest_size=_KEY).digest()


class MaskCache:
  """Codes by key; `folder` None stores them in memory only. Threads may share it.

  `weights` is the SHA-256 of the VQ-VAE's weights.
  """

  def __init__(self, folder: str | None, weights: bytes):
    self._path = pathlib.Path(folder, f".pgjax-masks-{weights.hex()[:16]}") if folder else None
    self._weights, self._lock = weights, threading.Lock()
    self._codes = self._read()
    self._is_saved, self._last_save = True, -SAVE_SECONDS + time.monotonic()
    if self._path:
      atexit.register(self.save)

  def __len__(self):
    return len(self._codes)

  def get(self, keys: Sequence[bytes]) -> list[tuple[int, ...]] | None:
    """The codes of all keys; None if one is missing."""
    codes = [self._codes.get(key) for key in keys]
    return None if None in codes else [tuple(code) for code in codes]

  def add(self, codes: Mapping[bytes, Sequence[int]]) -> None:
    """Adds codes, and sometimes writes the file."""
    with self._lock:
      for one, numbers in codes.items():
        self._codes.setdefault(one, bytes(numbers))
      self._drop_oldest()
      self._is_saved = False
      due = time.monotonic() - self._last_save >= SAVE_SECONDS
    if due:
      self.save()

  def save(self) -> None:
    """Writes what is new; does nothing if the folder cannot be written."""
    with self._lock:
      if self._path is None or self._is_saved:
        return
      self._codes = self._read() | self._codes  # Other processes may have added some.
      self._drop_oldest()
      body = b"".join(one + numbers for one, numbers in self._codes.items())
      fresh = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}.tmp")
      try:
        with fresh.open("xb") as file:
          file.write(self._header(body) + body)
        os.replace(fresh, self._path)
      except OSError:
        with contextlib.suppress(OSError):
          fresh.unlink()
        self._path = None
      self._is_saved, self._last_save = True, time.monotonic()

  def _drop_oldest(self) -> None:
    if (extra := len(self._codes) - MAX_RECORDS) > 0:
      for one in list(itertools.islice(self._codes, extra)):
        del self._codes[one]

  def _header(self, body: bytes) -> bytes:
    return _MAGIC + self._weights + hashlib.sha256(body).digest()

  def _read(self) -> dict[bytes, bytes]:
    """The records of the file; none if it is missing, damaged or of other weights."""
    size = len(_MAGIC) + 2 * _DIGEST
    try:
      status = self._path.stat() if self._path else None
      if not status or not stat.S_ISREG(status.st_mode):  # A pipe may never end.
        return {}
      if status.st_size > size + MAX_RECORDS * _RECORD:
        return {}
      content = self._path.read_bytes()
    except OSError:
      return {}
    header, body = content[:size], content[size:]
    if header != self._header(body) or len(body) % _RECORD:
      return {}
    records = (body[i : i + _RECORD] for i in range(0, len(body), _RECORD))
    codes = {record[:_KEY]: record[_KEY:] for record in records}
    in_range = all(max(numbers) < locations.CODEBOOK for numbers in codes.values())
    return codes if in_range else {}
