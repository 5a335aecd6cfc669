"""How is a checkpoint in an object store read? Its files are downloaded first.

Of a run only one step is, without the arrays of its optimizer: the files have their sizes and no
content. What is here is not downloaded again.
"""

import functools
import pathlib
import shutil

from pgjax.checkpoints import bucket_copy, workdir as workdir_lib
from pgjax.checkpoints.bucket_files import MARK, BucketFiles, on_main
from pgjax.distributed import processes
from pgjax.errors import UserError
from pgjax.formats import buckets


class BucketView:
  """A workdir, or another folder or file, of which `folder` has what was read."""

  def __init__(self, url: str, flag: str):
    """Connects to nothing."""
    self._files = BucketFiles(url, flag, "read")
    self.folder, self.url = self._files.folder, self._files.bucket.url

  def refresh(self, step: int | None = None, *, newest: bool = False) -> None:
    """Makes the folder list the bucket's steps, and completes one of them, or the newest."""
    files = self._files
    hollow = functools.partial(files.download, hollow=True)
    try:
      files.list_again()
      self._prune(complete := files.complete())
      buckets.together(files.download, filter(files.is_small, files.remote))
      step = max(complete, default=None) if newest else step
      if step in complete:
        buckets.together(hollow, files.of_step(step))
    except OSError as error:
      raise files.unreadable(error) from error

  def refreshed(self) -> str | None:
    """`refresh` on the main process; the reason if the bucket cannot be read at the moment."""
    try:
      on_main(self.refresh)
    except workdir_lib.UnreadableError as error:
      return str(error)
    return None

  def send(self, file: pathlib.Path) -> None:
    """Uploads one file of the folder; raises OSError."""
    self._files.bucket.put(file, file.relative_to(self.folder).as_posix())

  def checkpoint(self, step: int | None) -> pathlib.Path:
    """What the URL names: a file, a workdir with a step of it, or another folder."""
    files = self._files
    hollow = functools.partial(files.download, hollow=True)
    try:
      if files.bucket.is_object():
        file = self.folder / self.url.rpartition("/")[2]
        files.bucket.get("", file)
        return file
      self.refresh(step, newest=step is None)
      if not (self.folder / workdir_lib.FOLDER).is_dir():
        buckets.together(hollow, files.remote)
    except workdir_lib.UnreadableError:
      raise
    except OSError as error:
      raise files.unreadable(error) from error
    if not files.remote:
      raise UserError(f"There is no checkpoint at {self.url}: no object has such a name.")
    return self.folder

  def _prune(self, complete: set[int]) -> None:
    """Removes steps that the bucket no longer has, or has in another form."""
    for path in (self.folder / workdir_lib.FOLDER).glob("*"):
      mark = f"{workdir_lib.FOLDER}/{path.name}/{MARK}"
      known = path.name.isdigit() and int(path.name) in complete and (path / MARK).is_file()
      if known and self._files.has_seen(mark):
        continue
      if not known or self._files.bucket.read(mark) != (path / MARK).read_bytes():
        shutil.rmtree(path)


def readable(name: str, flag: str = "--ckpt", step: int | None = None) -> pathlib.Path:
  """The local copy of a checkpoint in an object store: of a run its newest step, or `step`."""
  processes.join()
  view = BucketView(name, flag)
  found: list[str] = []
  on_main(lambda: found.append(str(view.checkpoint(step))))
  return pathlib.Path(processes.gather_objects(found[0] if found else None)[0])


def watched(name: str) -> "BucketView | bucket_copy.LocalFolder":
  """The workdir of a run, to look at now and then."""
  if buckets.is_url(name):
    processes.join()
    return BucketView(name, "--ckpt")
  return bucket_copy.LocalFolder(pathlib.Path(name).expanduser().absolute())
