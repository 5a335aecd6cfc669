"""Folders and disks: can this be written, is there room, what does an error of the disk mean?"""

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
  """What the disk of `path`, or of the nearest folder above that exists, has free."""
  while not path.exists():
    path = path.parent
  return shutil.disk_usage(path).free


@contextlib.contextmanager
def disk_errors(path: pathlib.Path) -> Iterator[None]:
  """A full disk is a sentence, not a traceback."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{path} cannot be written ({error.strerror}); the run stops here. The checkpoints saved so "
      "far are intact: make room and start the same command again."
    ) from error


def open_folder(folder: str, flag: str, *, process_index: int = 0) -> pathlib.Path:
  """Makes the folder and proves that it can be written, before anything is compiled."""
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
  """A file that a command was asked for, or a sentence that says why not."""
  try:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
  except OSError as error:
    raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def disk_trouble(error: BaseException) -> str | None:
  """In words, if the disk is what failed: as errno, or inside one of TensorStore's messages."""
  codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE)
  for code in codes:
    if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
      return os.strerror(code)
  return None


def plain(value: Any) -> Any:
  """What JSON gives back for it, so that equal things compare equal."""
  return json.loads(json.dumps(value))


def dumps(value: Any) -> str:
  """JSON as it stands in the files here."""
  return json.dumps(value, indent=1) + "\n"
