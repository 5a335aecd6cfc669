"""Can this folder be written, how much space is left, and what does a disk error mean?"""

import contextlib
import errno
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

from pgjax.errors import UserError

# What these errors report was looked for and is not there, or is of another kind.
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_TROUBLE = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
  *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV),
)


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
      f"{path} cannot be written ({reason(error)}); the run stops here. The checkpoints saved so "
      "far are intact: make room and start the same command again."
    ) from error


def check_local(name: str, flag: str) -> None:
  """Raises for a URL, which would become a folder such as "s3:" here."""
  if re.match("[A-Za-z][A-Za-z0-9+.-]*://", name):
    raise UserError(
      f"{flag}={name} is a URL, and this is written to local paths only: name one, and copy it to"
      " the bucket afterwards (docs/buckets.md)."
    )


def open_folder(folder: str, flag: str) -> pathlib.Path:
  """Makes the folder and checks that it can be written, before anything is compiled."""
  check_local(folder, flag)
  path = pathlib.Path(folder).expanduser().absolute()
  probe = path / f".write-test-{secrets.token_hex(6)}"  # Others may test at the same time.
  try:
    path.mkdir(parents=True, exist_ok=True)
    try:
      probe.write_text("this file may be deleted")
    finally:
      probe.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(
      f"{flag}={folder} cannot be written ({reason(error)}): name a folder that this user may "
      "create files in, on a disk with free space."
    ) from error
  return path


def open_parent(file: str, flag: str) -> None:
  """Makes the folder of an output file and checks it as `open_folder` does; a FIFO needs none."""
  check_local(file, flag)
  path = pathlib.Path(file).expanduser().absolute()
  if not path.exists() or path.is_file():
    open_folder(str(path.parent), flag)


def write(path: pathlib.Path, content: str | bytes) -> None:
  """Writes an output file as a whole or not at all; raises UserError if that fails."""
  try:
    if path.exists() and not path.is_file():  # A FIFO or /dev/stdout.
      path.write_bytes(_encoded(content))
    else:
      replace(path.resolve(), content)  # A link stays one.
  except OSError as error:
    raise UserError(f"{path} cannot be written: {reason(error)}.") from error


def replace(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file as a whole or not at all; an OSError leaves the earlier one."""
  partial = path.with_name(f"{path.name}.tmp")
  try:
    partial.write_bytes(_encoded(content))
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def _encoded(content: str | bytes) -> bytes:
  return content.encode() if isinstance(content, str) else content


def inside(folder: pathlib.Path, name: str, what: str) -> pathlib.Path:
  """The path of `name` in `folder`; raises UserError if that is elsewhere. what: has the name."""
  base, path = (pathlib.Path(os.path.normpath(p)) for p in (folder, folder / name))
  if "\0" in name or path == base or not path.is_relative_to(base):
    raise UserError(
      f"{what} {name!r} would be written outside of {folder}: take a plain name, such as 'val'."
    )
  return folder / name


def reason(error: OSError) -> str:
  """The error in words."""
  return error.strerror or str(error)


def disk_trouble(error: BaseException) -> str | None:
  """The disk's error in words, from an errno or from one of TensorStore's messages; else None."""
  for code in _TROUBLE:
    if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
      return os.strerror(code)
  return None


def plain(value: Any) -> Any:
  """The value after a round trip through JSON, so that equal values compare equal."""
  return json.loads(json.dumps(value))


def dumps(value: Any) -> str:
  """JSON in the layout of the files written here."""
  return json.dumps(value, indent=1) + "\n"
