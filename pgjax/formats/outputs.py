"""How does a command write a file or folder that the user names by a URL? First on this machine.

It is uploaded when the command has ended well; what makes a folder complete comes last. Runs and
evaluations, which upload while they run, use checkpoints/bucket_copy.py.
"""

import contextlib
import logging
import pathlib
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from pgjax import cache_dir, disk
from pgjax.errors import UserError
from pgjax.formats import buckets

log = logging.getLogger("pgjax")

LAST = ("files.json", "config.json", "adapter_config.json", "check.html")  # Complete a folder.


class Output(NamedTuple):
  """Where to write."""

  path: pathlib.Path  # On this machine.
  name: str  # What the user named, for messages.


@contextlib.contextmanager
def folder(name: str, flag: str) -> Iterator[Output]:
  """The folder `name`, which is made and can be written; of a URL, one whose files are uploaded."""
  if not buckets.is_url(name):
    yield Output(disk.open_folder(name, flag), name)
    return
  with _staged(name, flag) as (path, upload):
    yield Output(path, name)
    upload(())


@contextlib.contextmanager
def file(name: str | None, flag: str) -> Iterator[Output | None]:
  """The file `name`, whose folder is made and can be written; None for None."""
  if not name:
    yield None
  elif not buckets.is_url(name):
    disk.open_parent(name, flag)
    yield Output(pathlib.Path(name).expanduser(), name)
  else:
    with _beside(name, flag) as output:
      yield output


@contextlib.contextmanager
def new(name: str, flag: str) -> Iterator[Output]:
  """A path for a file or folder that must not exist, and for files beside it; it is not checked.

  Of a URL: raises if something is there already.
  """
  if not buckets.is_url(name):
    yield Output(pathlib.Path(name).expanduser().absolute(), name)
    return
  there = buckets.Bucket(name, flag)
  with _reported(name, flag):
    if there.is_object() or there.listing():
      raise UserError(f"{flag}={name} exists already: name another, or remove it first.")
  with _beside(name, flag) as output:
    yield output


@contextlib.contextmanager
def _beside(name: str, flag: str) -> Iterator[Output]:
  parent, _, base = name.rstrip("/").rpartition("/")
  with _staged(parent, flag) as (path, upload):
    yield Output(path / base, name)
    upload((base,))


@contextlib.contextmanager
def _staged(url: str, flag: str) -> Iterator[tuple[pathlib.Path, Callable]]:
  """(a folder of this machine, a function that uploads it); it stays if it was not uploaded."""
  bucket = buckets.Bucket(url, flag)
  with _reported(url, flag):
    probe = f".write-test-{secrets.token_hex(6)}"
    bucket.write(probe, b"this file may be deleted")
    bucket.delete([probe])
  base = cache_dir.folder("buckets/out")
  if base is None:
    raise UserError(
      f"{flag}={url} needs a folder to write to first, and PGJAX_CACHE_DIR (or ~/.cache/pgjax)"
      " cannot be written."
    )
  path = base / secrets.token_hex(6)
  path.mkdir()

  def upload(last: Collection[str]) -> None:
    files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    size = sum(file.stat().st_size for file in files.values())
    log.info("Uploading %d files, %.1f MB, to %s", len(files), size / 1e6, url)
    try:
      for final in (False, True):
        chosen = [n for n in files if (n in last or n.rpartition("/")[2] in LAST) == final]
        buckets.together(lambda name: bucket.put(files[name], name), chosen)
    except OSError as error:
      raise UserError(
        f"{flag}={url} cannot be written ({disk.reason(error)}). Everything is in {path}: copy it"
        " from there."
      ) from error
    shutil.rmtree(path)

  try:
    yield path, upload
  finally:
    with contextlib.suppress(OSError):
      path.rmdir()  # Only if it is empty.


@contextlib.contextmanager
def _reported(url: str, flag: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{flag}={url} cannot be written ({disk.reason(error)}): check the name of the bucket, the"
      " credentials and the network."
    ) from error
