"""Where are the files of an object store's folder on this machine, and how are they downloaded?

bucket_copy.py is for a program that writes there, bucket_view.py for one that reads.
"""

import hashlib
import re
from collections.abc import Callable, Mapping

from pgjax import cache_dir, disk
from pgjax.checkpoints import workdir as workdir_lib
from pgjax.distributed import processes
from pgjax.errors import UserError
from pgjax.formats import buckets

STEP = re.compile(rf"{workdir_lib.FOLDER}/(\d+)/(.+)")
MARK = "files.json"  # Of a step, uploaded last and deleted first.
SMALL = ("run.json", MARK, "tokenizer.model")


class NotUploadedError(UserError):
  """The bucket does not have everything that is in the copy, which a new start uploads."""


_ERRORS = {kind.__name__: kind for kind in (workdir_lib.UnreadableError, NotUploadedError)}


class BucketFiles:
  """The folder `url`, and a folder of this machine with what was downloaded."""

  def __init__(self, url: str, flag: str, kind: str):
    """Makes the local folder, and connects to nothing. kind: copies of different kinds differ."""
    self.bucket, self._flag = buckets.Bucket(url, flag), flag
    base = cache_dir.folder(f"buckets/{kind}")
    if base is None:
      raise UserError(
        f"{flag}={url} needs a folder for a local copy, and PGJAX_CACHE_DIR (or ~/.cache/pgjax)"
        " cannot be written."
      )
    digest = hashlib.sha256(self.bucket.url.encode()).hexdigest()[:12]
    self.folder = base / f"{self.bucket.url.rpartition('/')[2]}-{digest}"
    with disk.disk_errors(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
    self.remote: dict[str, buckets.Stamp] = {}
    self._had: dict[str, buckets.Stamp] = {}  # What was downloaded.

  def list_again(self) -> None:
    """Raises OSError."""
    self.remote = self.bucket.listing()

  def complete(self) -> set[int]:
    """The steps that were uploaded as a whole."""
    matches = filter(None, map(STEP.fullmatch, self.remote))
    return {int(match[1]) for match in matches if match[2] == MARK}

  def of_step(self, step: int | str) -> list[str]:
    """The names of a step's objects."""
    return [name for name in self.remote if name.startswith(f"{workdir_lib.FOLDER}/{step}/")]

  def is_small(self, name: str) -> bool:
    """Whether it describes a complete step."""
    match = STEP.fullmatch(name)
    return bool(match) and match[2] in SMALL and int(match[1]) in self.complete()

  def has_seen(self, name: str) -> bool:
    """Whether what was downloaded is what the bucket has."""
    stamp = self.remote.get(name)
    return stamp is not None and bool(stamp.tag) and self._had.get(name) == stamp

  def download(self, name: str, *, hollow: bool = False) -> None:
    """One object, unless it is here; raises OSError.

    hollow: of the arrays of an optimizer, makes files of their size without their content.
    """
    file, stamp = disk.inside(self.folder, name, "The object"), self.remote[name]
    is_array = (match := STEP.fullmatch(name)) and match[2] not in SMALL
    same = is_array or self.has_seen(name)  # Arrays do not change.
    if same and file.is_file() and file.stat().st_size == stamp.size:
      return
    if hollow and "optimizer/" in name:
      file.parent.mkdir(parents=True, exist_ok=True)
      with file.open("wb") as empty:
        empty.truncate(stamp.size)
      return
    self.bucket.get(name, file)
    self._had[name] = stamp

  def unreadable(self, error: OSError) -> workdir_lib.UnreadableError:
    """The error for the user, who may try again."""
    return workdir_lib.UnreadableError(
      f"{self._flag}={self.bucket.url} cannot be read ({disk.reason(error)})."
    )


def on_main(work: Callable[[], None]) -> None:
  """The main process does it, and all processes raise its UserError."""
  refusal: Mapping[str, str] | None = None
  if processes.is_main():
    try:
      work()
    except UserError as error:
      refusal = dict(text=str(error), kind=type(error).__name__)
  if refusal := processes.gather_objects(refusal)[0]:
    raise _ERRORS.get(refusal["kind"], UserError)(refusal["text"])
