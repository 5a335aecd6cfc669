"""How is a file from outside read, and which files may a data set name?

Only regular files are read, up to a size: a FIFO, a device and a folder are refused before they are
opened. A thread of its own reads for each caller, so that a disk or network share that does not
answer ends in an error after WAIT_SECONDS, instead of a thread that never returns.
"""

import contextlib
import glob
import os
import pathlib
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from pgjax.errors import UserError

MAX_BYTES = 1 << 30  # Of an image.
MAX_TEXT_BYTES = 16 << 30  # Of a file with examples: JSONL, COCO.
WAIT_SECONDS = 60.0  # Without one byte, or one name of a folder.
_CHUNK = 16 << 20
_NAMES = 10_000  # Names of a folder between two signs of life.
_KINDS = (
  (stat.S_ISDIR, "a folder"),
  (stat.S_ISFIFO, "a FIFO (named pipe)"),
  (stat.S_ISCHR, "a device"),
  (stat.S_ISBLK, "a device"),
  (stat.S_ISSOCK, "a socket"),
)
_POLL_SECONDS = 0.5
_local = threading.local()  # The reading thread of each thread that reads.
_given_up: list[float] = [float("-inf")]  # The time of the last give_up.


class UnresponsiveError(OSError):
  """No answer for WAIT_SECONDS."""


class StalledError(UserError):
  """UnresponsiveError, with the path: the next files of that disk will not be read either."""


def read(path: str | os.PathLike, *, most: int = MAX_BYTES) -> bytes:
  """The content of a regular file; raises OSError, whose text is the reason, without the path."""
  return bounded(lambda alive: _read(os.fspath(path), most, alive))


def head(path: str | os.PathLike, size: int) -> bytes:
  """The first bytes of a regular file; raises OSError as `read` does."""
  return bounded(lambda _: _head(os.fspath(path), size))


class Entry(NamedTuple):
  """A name in a folder, and what it is; of a link, what it leads to."""

  name: str
  is_folder: bool
  is_link: bool


def entries(folder: str) -> list[Entry]:
  """What is in a folder; empty if there is none; raises UserError if it cannot be listed."""
  with _reported(folder, "listed"):
    return bounded(lambda alive: _entries(folder, alive))


def names(folder: str) -> list[str]:
  """The names in a folder; empty if there is none; raises UserError if it cannot be listed."""
  with _reported(folder, "listed"):
    return bounded(lambda alive: [entry.name for entry in _scanned(folder, alive)])


def exists(path: str | os.PathLike) -> bool:
  """Whether there is such a file or folder; raises StalledError."""
  return answering(path, lambda: os.path.exists(path))


def is_folder(path: str | os.PathLike) -> bool:
  """Whether it is a folder; raises StalledError."""
  return answering(path, lambda: os.path.isdir(path))


def status(path: str | os.PathLike) -> os.stat_result:
  """Size and time of change; raises OSError as `read` does."""
  return bounded(lambda _: os.stat(path))


def matching(pattern: str) -> list[str]:
  """The paths that match a pattern with * or ?, sorted; raises StalledError."""
  return answering(pattern, lambda: sorted(glob.glob(pattern)))


def bounded(
  work: Callable[[Callable], Any], seconds: float | None = None, *, patient: bool = False
) -> Any:
  """work(alive) in another thread; UnresponsiveError after `seconds` without a call of `alive`.

  patient: `give_up` does not end it.
  """
  seconds = WAIT_SECONDS if seconds is None else seconds
  worker = _local.__dict__.pop("worker", None) or _Worker()  # Not used again if this is cut short.
  try:
    value, error = worker.run(work, seconds, patient=patient)
  except queue.Empty:
    raise UnresponsiveError(
      f"no answer for {seconds:g} s; is its disk or network share reachable?"
    ) from None
  _local.worker = worker
  if error is not None:
    raise error
  return value


def answering(path: str | os.PathLike, work: Callable[[], Any]) -> Any:
  """work(), which reads what is at `path`; StalledError if that takes over WAIT_SECONDS."""
  try:
    return bounded(lambda _: work())
  except UnresponsiveError as error:
    raise StalledError(f"{path} cannot be read: {error}") from None


def give_up() -> None:
  """Ends the waiting of all threads for files that do not answer.

  For WAIT_SECONDS files must answer in half a second, so that reads that are queued end, too.
  """
  _given_up[0] = time.monotonic()


class _Worker:
  """A daemon thread, which ends with the thread that uses it and does not delay the exit."""

  def __init__(self):
    self._jobs, self._results = queue.SimpleQueue(), queue.SimpleQueue()
    threading.Thread(target=_work, args=(self._jobs, self._results), daemon=True).start()

  def run(self, work, seconds, *, patient=False):
    """(value, error); raises queue.Empty."""
    began = alive = time.monotonic()
    self._jobs.put(work)
    while True:
      try:
        if (result := self._results.get(timeout=min(seconds, _POLL_SECONDS))) is not None:
          return result
        alive = time.monotonic()
      except queue.Empty:
        now = time.monotonic()
        impatient = (
          not patient and now - _given_up[0] < WAIT_SECONDS and now - began >= _POLL_SECONDS
        )
        if impatient or now - alive >= seconds:
          raise

  def __del__(self):
    self._jobs.put(None)


def _work(jobs, results):
  while (work := jobs.get()) is not None:
    try:
      result = work(lambda: results.put(None)), None
    except Exception as error:  # Raised in the thread that waits.
      result = None, error
    results.put(result)
    del work, result  # Not held until the next job.


def _read(path: str, most: int, alive: Callable) -> bytes:
  _check(os.stat(path), most)
  chunks, total = [], 0
  with _opened(path) as file:
    info = os.fstat(file.fileno())
    _check(info, most)
    while chunk := file.read(min(_CHUNK, max(info.st_size - total, 0) + 4096)):
      chunks.append(chunk)
      total += len(chunk)
      if total > most:
        raise OSError(_too_large(total, most))
      alive()
  return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _head(path: str, size: int) -> bytes:
  check_regular(os.stat(path))
  with _opened(path) as file:
    check_regular(os.fstat(file.fileno()))
    return file.read(size)


def _opened(path: str) -> BinaryIO:
  """Without waiting: the file may have become a FIFO."""
  return open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", 0)


@contextlib.contextmanager
def opened(path: str | os.PathLike, *, most: int = MAX_BYTES) -> Iterator[BinaryIO]:
  """A regular file of up to `most` bytes, for seeking in it; raises OSError as `read` does."""
  _check(os.stat(path), most)
  with _opened(os.fspath(path)) as file:
    _check(os.fstat(file.fileno()), most)
    yield file


def check_regular(info: os.stat_result) -> None:
  """Raises OSError for what is no file, before it is opened."""
  if not stat.S_ISREG(info.st_mode):
    kind = next((name for is_kind, name in _KINDS if is_kind(info.st_mode)), "no regular file")
    raise OSError(f"it is {kind}, not a file")


def _check(info: os.stat_result, most: int) -> None:
  check_regular(info)
  if info.st_size > most:
    raise OSError(_too_large(info.st_size, most))


def _too_large(size: int, most: int) -> str:
  return f"it has {size:,} bytes or more, and up to {most:,} are read"


def _scanned(folder: str, alive: Callable) -> Iterator[os.DirEntry]:
  try:
    with os.scandir(folder) as listed:
      for number, entry in enumerate(listed, 1):
        yield entry
        if number % _NAMES == 0:
          alive()
  except (FileNotFoundError, NotADirectoryError):
    return


def _entries(folder: str, alive: Callable) -> list[Entry]:
  listed = []
  for entry in _scanned(folder, alive):
    try:
      is_folder = entry.is_dir()
    except OSError:  # Links in a circle.
      is_folder = False
    listed.append(Entry(entry.name, is_folder, entry.is_symlink()))
  return listed


def inside(
  root: str,
  name: str,
  where: str,
  field: str | None = None,
  *,
  links: bool = True,
  what: str = "image",
) -> str:
  """The path of `name` below `root`; raises if it is outside of it.

  field: what sets `root`, for the message. Without `links` symbolic links may not lead out either.
  """
  path = below(root, name) or below(os.path.realpath(root), name)  # Absolute names have either.
  if path is None:
    advice = f", or set {field}= to the folder of the {what}s" if field else ""
    raise UserError(
      f"{where}: {what} {name!r} is outside of {root}; paths must be below the folder of the file"
      f"{advice}."
    )
  if not links:
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([real_root, real]) != real_root:
      raise UserError(f"{where}: {what} {name!r} is a link to {real}, outside of {root}.")
  return path


def below(root: str, name: str) -> str | None:
  """The normal form of root/name; None if it is outside of `root`, an absolute path."""
  path = os.path.normpath(os.path.join(root, name))
  return path if "\0" not in name and os.path.commonpath([root, path]) == root else None


def file_bytes(path: str | pathlib.Path, *, most: int = MAX_BYTES) -> bytes:
  """The content of a regular file; raises UserError."""
  with _reported(path):
    return read(path, most=most)


def file_head(path: str | pathlib.Path, size: int) -> bytes:
  """The first bytes of a regular file; raises UserError."""
  with _reported(path):
    return head(path, size)


def part(path: str, offset: int, size: int) -> bytes:
  """`size` bytes at `offset` of a regular file, which may be large; raises UserError."""
  with _reported(path):
    if size > MAX_BYTES:
      raise OSError(_too_large(size, MAX_BYTES))
    data = bounded(lambda _: _part(path, offset, size))
    if len(data) < size:
      raise OSError("it is shorter than when it was opened")
    return data


def _part(path: str, offset: int, size: int) -> bytes:
  check_regular(os.stat(path))
  with _opened(path) as file:
    file.seek(offset)
    chunks = []
    while size and (chunk := file.read(size)):
      chunks.append(chunk)
      size -= len(chunk)
  return b"".join(chunks)


@contextlib.contextmanager
def _reported(path: str | pathlib.Path, done: str = "read") -> Iterator[None]:
  """Errors of reading as UserError with the path."""
  try:
    yield
  except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
    raised = StalledError if isinstance(error, UnresponsiveError) else UserError
    reason = getattr(error, "strerror", None) or error
    raise raised(f"{path} cannot be {done}: {reason}") from None
