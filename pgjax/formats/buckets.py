"""How are the files of an object store listed, read and written? s3:// and gs://, through fsspec.

Servers and credentials are those of the environment, as in other programs: AWS_ENDPOINT_URL,
AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, STORAGE_EMULATOR_HOST. A call that fails is repeated,
and then raises a BucketError, an OSError whose text is one line. A call that is given up is
cancelled: it cannot overwrite what is written later.
"""

import asyncio
import concurrent.futures
import contextlib
import errno
import importlib
import os
import pathlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pgjax import disk
from pgjax.errors import UserError, cut
from pgjax.formats import input_files

ATTEMPTS = 3  # Of a store that has not answered yet.
SILENT_SECONDS = 60.0  # Of one that has: attempts go on for so long after the last byte of a call.
LISTING_SECONDS = 600.0  # A list of many names, which shows no progress.
PAUSE_SECONDS = 1.0  # Before the second attempt; then twice as long each time.
MOST_PAUSE_SECONDS = 8.0
AT_A_TIME = 8  # Files that are uploaded or downloaded together.
PIECE_BYTES = 8 << 20  # Of an upload, so that a slow network shows progress in time.
DRIVERS = {"s3": "s3fs", "gs": "gcsfs"}
_CONNECT_SECONDS, _READ_SECONDS = 10, 30  # Of one request, without a byte.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_MEANT = ("PermissionError", "NoCredentialsError", "NoSuchBucket", "PartialCredentialsError")
_PIECES = ("s3", "gs")  # Their drivers upload large files in pieces.
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # Not of a network.


class BucketError(OSError):
  """The object store does not do what it was asked for."""


class LocalDiskError(UserError):
  """What was downloaded cannot be stored on this machine."""


class Stamp(NamedTuple):
  """What changes when an object does."""

  size: int
  tag: str


def is_url(name: str | os.PathLike) -> bool:
  """Whether it is written as a URL, of any kind."""
  return _URL.fullmatch(os.fspath(name)) is not None


class Bucket:
  """The objects whose names begin with a URL, such as s3://bucket/runs/1."""

  def __init__(self, url: str, flag: str):
    """Connects to nothing; raises a UserError, which names `flag`, if this URL cannot be used."""
    scheme, rest = _URL.fullmatch(url).groups()
    self._scheme = scheme.lower()
    if self._scheme not in DRIVERS:
      raise UserError(f"{flag}={cut(url)}: only s3:// and gs:// URLs are read and written here.")
    parts = rest.rstrip("/").split("/")
    if not all(parts) or {".", ".."} & set(parts) or re.search(r"[\s?#*\[\]\0]|::|@", rest):
      raise UserError(
        f"{flag}={cut(url)} must be {self._scheme}://BUCKET/NAME, of plain names without"
        " credentials: those come from the environment."
      )
    self.url, self._root = f"{self._scheme}://{'/'.join(parts)}", "/".join(parts)
    self._has_answered, self._made, self._making = False, None, threading.Lock()
    for package in ("fsspec", DRIVERS[self._scheme]):
      try:
        importlib.import_module(package)
      except ImportError as error:
        raise UserError(
          f"{flag}={cut(url)} needs the package {package} ({error}): pip install -r"
          " requirements-cloud.txt."
        ) from None

  def listing(self, folder: str = "") -> dict[str, Stamp]:
    """{name: stamp} of all objects below the URL, or below a folder of it."""
    root = self._path(folder) if folder else self._root

    def found(call):
      infos = call.run("find", root, detail=True)
      files = {path.lstrip("/"): info for path, info in infos.items()}
      return {path: info for path, info in files.items() if info.get("type") == "file"}

    start = f"{self._root}/"
    doing = f"listing {folder or 'it'}"
    infos = self._call(doing, found, seconds=LISTING_SECONDS, missing={})
    return {
      path.removeprefix(start): Stamp(int(info["size"]), _tag(info))
      for path, info in infos.items()
      if path.startswith(start) and not path.endswith("/")
    }

  def is_object(self) -> bool:
    """Whether the URL is that of one object."""

    def found(call):  # Not `isfile`, which takes a failure for an answer.
      return call.run("info", self._root).get("type") == "file"

    return self._call("looking for it", found, missing=False)

  def read(self, name: str) -> bytes | None:
    """The content of a small object; None if there is none."""
    path = self._path(name)
    return self._call(f"reading {name}", lambda call: call.run("cat_file", path), missing=None)

  def write(self, name: str, data: bytes) -> None:
    """A small object, whole or not at all."""
    self._call(f"writing {name}", lambda call: call.run("pipe_file", self._path(name), data))

  def create(self, name: str, data: bytes) -> bool:
    """As `write`, unless there is such an object: False then, where the store can decide that."""

    def made(call):
      with contextlib.suppress(TypeError, NotImplementedError):
        try:
          call.run("pipe_file", self._path(name), data, mode="create")
        except FileExistsError:
          return False
        return True
      try:
        call.run("info", self._path(name))
      except FileNotFoundError:
        call.run("pipe_file", self._path(name), data)
        return True
      return False

    return self._call(f"writing {name}", made)

  def put(self, file: pathlib.Path, name: str) -> None:
    """Uploads a file; raises FileNotFoundError if it has been deleted since."""

    def put(call):
      if file.is_file():
        sizes = {} if self._scheme not in _PIECES else dict(chunksize=PIECE_BYTES)
        call.run("put_file", str(file), self._path(name), callback=call.progress(), **sizes)

    try:
      self._call(f"writing {name}", put)
    except BucketError:
      if file.is_file():
        raise
    if not file.is_file():
      raise FileNotFoundError(file)

  def get(self, name: str, file: pathlib.Path) -> None:
    """Downloads an object, whole or not at all; "" is the URL's own; raises LocalDiskError."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    path = self._path(name) if name else self._root

    def get(call):
      call.run("get_file", path, str(partial), callback=call.progress())

    try:
      file.parent.mkdir(parents=True, exist_ok=True)
      self._call(f"reading {name or 'it'}", get)
      partial.replace(file)
    except OSError as error:
      if error.errno not in _LOCAL:
        raise
      raise LocalDiskError(
        f"{file.parent} cannot be written ({disk.reason(error)}), and {self.url} is downloaded to"
        " it: make room there, or set PGJAX_CACHE_DIR to a folder of a larger disk."
      ) from error
    finally:
      with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)

  def delete(self, names: Iterable[str]) -> None:
    """Deletes objects, in this order; those that are gone do not matter."""
    for name in names:
      path = self._path(name)
      self._call(f"deleting {name}", lambda call, p=path: call.run("rm_file", p), missing=None)

  def _path(self, name: str) -> str:
    return f"{self._root}/{name}"

  def _call(
    self, doing: str, work: Callable[["_Call"], Any], seconds: float | None = None, **missing: Any
  ) -> Any:
    """work(a call), in so many seconds without a byte; missing: what no such object returns."""
    seconds = seconds or SILENT_SECONDS
    call, pause, attempts = _Call(self._fs), PAUSE_SECONDS, 0
    while True:
      try:
        result, self._has_answered = call.attempt(work, seconds), True
        return result
      except FileNotFoundError as error:
        if "missing" in missing and not str(error).startswith("The specified bucket"):
          self._has_answered = True
          return missing["missing"]
        failure = error
        break
      except Exception as error:  # Of many types: fsspec's, the driver's, its HTTP client's.
        if getattr(error, "errno", None) in _LOCAL:
          raise
        failure, attempts = error, attempts + 1
        if {type(error).__name__, type(error.__cause__).__name__} & set(_MEANT):
          break
      if call.silence() + pause > SILENT_SECONDS or (
        attempts >= ATTEMPTS and not self._has_answered
      ):
        break
      time.sleep(pause)
      pause = min(2 * pause, MOST_PAUSE_SECONDS)
    text = " ".join(str(failure).split()) or type(failure).__name__
    raise BucketError(f"{doing}: {text[:200]}") from failure

  def _fs(self) -> Any:
    """fsspec's: one for all threads, without a cache of listings, as others write here too."""
    import fsspec

    with self._making:
      if self._made is None:
        fresh = dict(use_listings_cache=False, skip_instance_cache=True)
        self._made = fsspec.filesystem(self._scheme, **fresh, **_options(self._scheme))
    return self._made


class _Call:
  """What is asked of a store, in one or more attempts."""

  def __init__(self, file_system: Callable[[], Any]):
    """Its time begins."""
    self._file_system, self._heard = file_system, time.monotonic()
    self._alive: Callable[[], None] = lambda: None
    self._most = 0  # Bytes of the best attempt so far.
    self._running: concurrent.futures.Future | None = None

  def attempt(self, work: Callable[["_Call"], Any], seconds: float) -> Any:
    """work(self), which is cancelled `seconds` after the last byte."""

    def bounded(alive):
      self._alive = alive
      return work(self)

    try:
      return input_files.bounded(bounded, seconds, patient=True)
    except input_files.UnresponsiveError:
      if self._running:
        self._running.cancel()
      raise BucketError(f"no answer for {seconds:g} s") from None

  def run(self, method: str, *args: Any, **options: Any) -> Any:
    """A method of fsspec's file system, which can be cancelled if it is asynchronous."""
    fs = self._file_system()
    if not getattr(fs, "async_impl", False):
      return getattr(fs, method)(*args, **options)
    work = getattr(fs, f"_{method}")(*args, **options)
    self._running = asyncio.run_coroutine_threadsafe(work, fs.loop)
    return self._running.result()

  def silence(self) -> float:
    """Seconds since the beginning or the last byte."""
    return time.monotonic() - self._heard

  def _report(self, done: int) -> None:
    """done: bytes of this attempt; only those that no attempt had before are progress."""
    if done > self._most:
      self._most, self._heard = done, time.monotonic()
    if done:
      self._alive()

  def progress(self) -> Any:
    """A callback for fsspec, which also calls it with the size before there is an answer."""
    import fsspec.callbacks

    call = self

    class Callback(fsspec.callbacks.Callback):
      def call(self, *args, **kwargs):
        call._report(self.value)

    return Callback()


def together(work: Callable[[str], Any], names: Iterable[str]) -> None:
  """work(name) for all names, AT_A_TIME at a time; the first error ends it."""
  names = list(names)
  if len(names) < 2:
    for name in names:
      work(name)
    return
  with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
    list(pool.map(work, names))


def _options(scheme: str) -> dict[str, Any]:
  """Of the driver: how long it waits for a byte. A large object may take longer in total."""
  if scheme == "s3":
    times = dict(connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS)
    return dict(config_kwargs=dict(times, retries=dict(max_attempts=2)))
  if scheme == "gs":
    import aiohttp

    times = dict(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
    return dict(requests_timeout=aiohttp.ClientTimeout(**times))
  return {}


def _tag(info: dict[str, Any]) -> str:
  return str(
    next((info[k] for k in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(k)), "")
  )
