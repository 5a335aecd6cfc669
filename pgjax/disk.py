"""Can this folder be written, how much space is left, and what does a disk error mean?"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from pgjax.errors import UserError


def free_bytes(path: pathlib.Path) -> int:
  """Free bytes on the disk of `path`, or of its nearest parent that exists."""
  while not path.exists():
    path = path.parent
  return shutil.disk_usage(path).free


@contextlib.contextmanager
def disk_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns a full disk into a UserError."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{path} cannot be written ({error.strerror}); the run stops here. The checkpoints saved so "
      "far are intact: make room and start the same command again."
    ) from error


def open_folder(folder: str, flag: str, *, process_index: int = 0) -> pathlib.Path:
  """Makes the folder and checks that it can be written, before anything is compiled."""
  path = pathlib.Path(folder).expanduser().absolute()
  probe = path / f".write-test-{process_index}"
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe.write_text("this file may be deleted")
    probe.unlink()
  except OSError as error:
    raise UserError(
      f"{flag}={folder} cannot be written ({error.strerror}): name a folder that this user may "
      "create files in, on a disk with free space."
    ) from error
  return path


def write(path: pathlib.Path, content: str | bytes) -> None:
  """Writes an output file; raises UserError if that fails."""
  try:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
  except OSError as error:
    raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def disk_trouble(error: BaseException) -> str | None:
  """The disk's error in words, from an errno or from one of TensorStore's messages; else None."""
  codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE)
  for code in codes:
    if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
      return os.strerror(code)
  return None


def plain(value: Any) -> Any:
  """The value after a round trip through JSON, so that equal values compare equal."""
  return json.loads(json.dumps(value))


def dumps(value: Any) -> str:
  """JSON in the layout of the files written here."""
  return json.dumps(value, indent=1) + "\n"
