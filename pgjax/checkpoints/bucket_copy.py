"""How does a program work in a folder of an object store? In a copy of it on this machine.

An object store has neither a rename nor an append, which a run needs. So a run with
--workdir=s3://... works in a local copy, and a thread uploads what changes. A checkpoint's
files.json comes last, and a checkpoint without it does not exist; of an evaluation's files,
metrics.json comes last. What cannot be uploaded stays in the copy and is tried again: the run goes
on. Checkpoints are deleted in the bucket only after a newer one is there as a whole. A start takes
the copy if no other has used the bucket since (COPY_FILE), and else downloads it: the arrays only
of the checkpoints that are read. bucket_lock.py refuses a second run on another machine.
"""

import contextlib
import itertools
import logging
import os
import pathlib
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator

import msgspec

from pgjax import disk
from pgjax.checkpoints import watchers, workdir as workdir_lib
from pgjax.checkpoints.bucket_files import MARK, STEP, BucketFiles, NotUploadedError, on_main
from pgjax.checkpoints.bucket_lock import BucketLock, TakenError
from pgjax.distributed import processes
from pgjax.errors import UserError
from pgjax.formats import buckets, typed_json

log = logging.getLogger("pgjax")

COPY_FILE = "copy.json"  # In the bucket, and in the copy: who has used it last.
SYNC_SECONDS = 10.0
MOST_PAUSE_SECONDS = 60.0  # Between two attempts while the bucket does not work.
END_SECONDS = 120.0  # How long the end of a run tries to upload the rest, after the last success.
_PASSING = "unfinished/"  # An evaluation's, which deletes its files when it is done.
_LOCAL = re.compile(
  r"(.*/)?(\.[^/]*|[^/]*\.tmp|running\.json|evaluating\.json)|watchers/.*|copy\.json|in-use\.json"
)


class _Copy(msgspec.Struct):
  """COPY_FILE."""

  token: str
  uploaded: dict[str, tuple[int, int]] = {}  # {name: (size, time of change)}; only in the copy.


class BucketCopy:
  """The local copy of the folder `url`; the main process uploads and downloads."""

  def __init__(self, url: str, flag: str):
    """Connects to nothing."""
    self._files, self._flag = BucketFiles(url, flag, "runs"), flag
    self.folder, self._bucket = self._files.folder, self._files.bucket
    self._token, self._uploaded = "", {}
    self._in_use: BucketLock | None = None
    self._changed_at = 0.0  # When the bucket was last changed.
    self._lock, self._done = threading.Lock(), threading.Event()

  @contextlib.contextmanager
  def synced(self) -> Iterator[None]:
    """Downloads what a start needs; uploads what changes until the end, and the rest there."""
    processes.join()
    on_main(self._start)
    self._check_shared()
    thread = threading.Thread(target=self._upload, daemon=True)
    if processes.is_main():
      thread.start()
    try:
      yield
    except BaseException:
      self._done.set()
      if processes.is_main():
        self._finish(failed=True)
      raise
    self._done.set()
    on_main(lambda: self._finish(failed=False))  # The others wait: their end would end it.

  def fetch(self, path: pathlib.Path) -> None:
    """Completes a step folder of the copy, of which a start has only small files."""
    on_main(lambda: self._fetch(path.name))

  def _start(self) -> None:
    """Takes the copy or the bucket's files, and checks that the bucket can be written."""
    own = self._own()
    token = own.token if own else secrets.token_hex(8)
    self._in_use = BucketLock(self._bucket, self._flag, token)
    try:
      self._in_use.acquire()
      self._files.list_again()
      theirs = self._files.remote.get(COPY_FILE) and self._decoded(self._bucket.read(COPY_FILE))
      if own and theirs and own.token == theirs.token:
        self._token, self._uploaded = own.token, own.uploaded
        self._bucket.write(COPY_FILE, msgspec.json.encode(theirs))
        return
      self._clear(own)
      self._token = token
      buckets.together(self._download, filter(self._is_wanted, self._files.remote))
      self._bucket.write(COPY_FILE, msgspec.json.encode(_Copy(self._token)))
      with disk.disk_errors(self.folder):
        self._remember()
    except UserError:
      self._in_use.release()
      raise
    except OSError as error:
      self._in_use.leave()
      raise UserError(
        f"{self._flag}={self._bucket.url} cannot be used ({disk.reason(error)}): check the name of"
        " the bucket, the credentials and the network."
      ) from error

  def _is_wanted(self, name: str) -> bool:
    """Whether a start downloads it."""
    big = name.startswith((f"{workdir_lib.FOLDER}/", f"{workdir_lib.DAMAGED}/"))
    return self._files.is_small(name) or not (big or _LOCAL.fullmatch(name))

  def _clear(self, own: _Copy | None) -> None:
    """Empties the copy, or sets it aside if it has files that were never uploaded."""
    pending = own and [n for n, at in self._listed().items() if own.uploaded.get(n) != at]
    if pending:
      aside = self.folder.with_name(f"{self.folder.name}-{secrets.token_hex(4)}")
      aside.mkdir(exist_ok=True)
      log.warning(
        "The local copy of %s has %d files that were not uploaded, and another run has used the"
        " bucket since: they are in %s.",
        self._bucket.url,
        len(pending),
        aside,
      )
    for path in self.folder.iterdir():
      if path.name in ("running.json", "evaluating.json"):  # Held by this process.
        continue
      if pending:
        path.rename(aside / path.name)
      elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
      else:
        path.unlink()

  def _upload(self) -> None:
    pause, failing = SYNC_SECONDS, False
    while not self._done.wait(pause):
      try:
        self.push()
        self._get_watchers()
      except TakenError as error:
        log.warning("%s", error)
        return
      except buckets.LocalDiskError as error:  # Of what evaluations beside the run wrote.
        pause = MOST_PAUSE_SECONDS
        log.warning("%s", error)
      except OSError as error:
        pause = min(2 * pause, MOST_PAUSE_SECONDS)
        if not failing:
          log.warning(
            "%s cannot be written (%s); the run goes on, its files stay in %s and are uploaded when"
            " the bucket works again.",
            self._bucket.url,
            disk.reason(error),
            self.folder,
          )
        failing = True
      else:
        pause = SYNC_SECONDS
        if failing:
          log.warning("%s works again; everything is uploaded.", self._bucket.url)
        failing = False

  def _finish(self, *, failed: bool) -> None:
    """The last upload; an error is raised unless another is."""
    try:
      self._push_rest()
    except (TakenError, NotUploadedError) as error:
      self._in_use.leave()
      if not failed:
        raise
      log.warning("%s", error)
    else:
      self._in_use.release()

  def _push_rest(self) -> None:
    """Tries for END_SECONDS after the last success."""
    self._changed_at, pause = time.monotonic(), 1.0
    if rest := self._changed(self._listed()):
      size = sum(at[0] for at in rest.values())
      text = "Uploading the last %d files, %.1f MB, to %s"
      log.info(text, len(rest), size / 1e6, self._bucket.url)
    while True:
      try:
        return self.push()
      except OSError as error:
        if time.monotonic() + pause < self._changed_at + END_SECONDS:
          time.sleep(pause)
          pause = min(2 * pause, 10.0)
          continue
        raise NotUploadedError(
          f"{self._bucket.url} cannot be written ({disk.reason(error)}). What is not uploaded is in"
          f" {self.folder}: rerun the same command on this machine to upload it; another machine"
          " resumes from the newest checkpoint in the bucket."
        ) from error

  def push(self) -> None:
    """Uploads what has changed, then deletes steps that the run has deleted; raises OSError."""
    with self._lock:
      files = self._listed()
      changed = self._changed(files)
      if changed:
        self._in_use.check()
      try:
        for _, names in itertools.groupby(sorted(changed, key=_order), key=_order):
          buckets.together(lambda name: self._put(name, files[name]), names)
      finally:
        if changed:
          with contextlib.suppress(OSError):  # A full disk: they are uploaded once more, then.
            self._remember()
      for name in [n for n in self._uploaded if n.startswith(_PASSING) and n not in files]:
        self._bucket.delete([name])
        del self._uploaded[name]
      self._delete_gone()

  def _changed(self, files: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {name: at for name, at in files.items() if self._uploaded.get(name) != at}

  def _put(self, name: str, at: tuple[int, int]) -> None:
    try:
      self._bucket.put(self.folder / name, name)
    except FileNotFoundError:  # Deleted meanwhile.
      return
    self._uploaded[name], self._files.remote[name] = at, buckets.Stamp(at[0], "")
    self._changed_at = time.monotonic()

  def _delete_gone(self) -> None:
    """Deletes steps that are not in the copy; there is a complete one, so the copy is one."""
    whole = {s for s in self._files.complete() if (self._step(s) / MARK).is_file()}
    gone: dict[int, list[str]] = {}
    for name in self._files.remote:
      if (match := STEP.fullmatch(name)) and not self._step(int(match[1])).exists():
        gone.setdefault(int(match[1]), []).append(name)
    if not whole:
      return
    for names in gone.values():
      for name in sorted(names, key=lambda name: not name.endswith(f"/{MARK}")):
        self._bucket.delete([name])
        del self._files.remote[name]
        self._uploaded.pop(name, None)
        self._changed_at = time.monotonic()

  def _get_watchers(self) -> None:
    """Evaluations beside the run write theirs to the bucket."""
    folder = self.folder / watchers.FOLDER
    listed = {n.rpartition("/")[2]: n for n in self._bucket.listing(watchers.FOLDER)}
    for file in folder.glob("*.json"):
      if file.name not in listed:  # Deleted to end the waiting.
        file.unlink()
    for base, name in listed.items():
      disk.inside(folder, base, "The watcher")
      self._bucket.get(name, folder / base)

  def _check_shared(self) -> None:
    """All processes must see one copy, as they write one checkpoint together."""
    theirs = self._own()
    tokens = processes.gather_objects(theirs and theirs.token)
    if len(set(tokens)) > 1:
      raise UserError(
        f"{self._flag}={self._bucket.url}: the processes of this run do not share the folder of its"
        f" local copy, {self.folder}. Set PGJAX_CACHE_DIR to a folder that all hosts share."
      )

  def _listed(self) -> dict[str, tuple[int, int]]:
    """{name: (size, time of change)} of what belongs into the bucket.

    Steps are listed first: what belongs to one, such as its rows of metrics, is there before it.
    """
    files = {}
    steps = list(_paths(self.folder / workdir_lib.FOLDER))
    for path in itertools.chain(steps, _paths(self.folder)):
      name = path.relative_to(self.folder).as_posix()
      unfinished = name.startswith(f"{workdir_lib.FOLDER}/") and not STEP.fullmatch(name)
      if not _LOCAL.fullmatch(name) and not unfinished:
        with contextlib.suppress(FileNotFoundError):
          if name not in files and path.is_file():
            files[name] = _stamp(path)
    return files

  def _step(self, step: int) -> pathlib.Path:
    return self.folder / workdir_lib.FOLDER / str(step)

  def _own(self) -> _Copy | None:
    file = self.folder / COPY_FILE
    return self._decoded(file.read_bytes()) if file.is_file() else None

  def _decoded(self, data: bytes | None) -> _Copy | None:
    with contextlib.suppress(UserError):
      return typed_json.decode(data or b"", _Copy, COPY_FILE)

  def _remember(self) -> None:
    disk.replace(self.folder / COPY_FILE, msgspec.json.encode(_Copy(self._token, self._uploaded)))

  def _download(self, name: str) -> None:
    self._files.download(name)
    self._uploaded[name] = _stamp(self.folder / name)

  def _fetch(self, step: str) -> None:
    try:
      buckets.together(self._download, filter(self._is_missing, self._files.of_step(step)))
    except OSError as error:
      raise self._files.unreadable(error) from error

  def _is_missing(self, name: str) -> bool:
    file = self.folder / name
    return not file.is_file() or self._uploaded.get(name) != _stamp(file)


class LocalFolder:
  """A folder of this machine, in the place of a BucketCopy."""

  def __init__(self, folder: pathlib.Path):
    """Touches nothing."""
    self.folder = folder

  def synced(self) -> contextlib.AbstractContextManager:
    """Nothing is uploaded."""
    return contextlib.nullcontext()

  def fetch(self, path: pathlib.Path) -> None:
    """Everything is here."""

  def refreshed(self) -> None:
    """Everything is here."""

  def send(self, file: pathlib.Path) -> None:
    """It is where it belongs."""


def writable(name: str, flag: str) -> "BucketCopy | LocalFolder":
  """The folder that a user named for a run or for results: a path, or a URL of an object store."""
  if buckets.is_url(name):
    return BucketCopy(name, flag)
  return LocalFolder(disk.open_folder(name, flag))


def local(name: str) -> pathlib.Path:
  """Where the files of `writable` are on this machine."""
  if buckets.is_url(name):
    return BucketFiles(name, "--workdir", "runs").folder
  return pathlib.Path(name).expanduser().absolute()


def _order(name: str) -> tuple[bool, int, bool]:
  """Step by step, each with its mark at the end; other files before, and metrics.json last."""
  match = STEP.fullmatch(name)
  if not match:
    return False, 0, name.rpartition("/")[2] == "metrics.json"
  return True, int(match[1]), match[2] == MARK


def _paths(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """All files; folders that are renamed or deleted meanwhile, as Orbax does, are no error."""
  for parent, _, names in os.walk(folder):
    yield from (pathlib.Path(parent, name) for name in names)


def _stamp(path: pathlib.Path) -> tuple[int, int]:
  status = path.stat()
  return status.st_size, status.st_mtime_ns
