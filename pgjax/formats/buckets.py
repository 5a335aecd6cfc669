"""How are the files of an object store listed, read and written? s3:// and gs://, through fsspec.

Servers and credentials are those of the environment, as in other programs: AWS_ENDPOINT_URL,
AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, STORAGE_EMULATOR_HOST. A call that fails is repeated,
and then raises a BucketError, an OSError whose text is one line.
"""

import contextlib
import importlib
import os
import pathlib
import re
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pgjax.errors import UserError, cut
from pgjax.formats import input_files

ATTEMPTS = 3
PAUSE_SECONDS = 1.0  # Before the second attempt; then twice as long each time.
SILENT_SECONDS = 120.0  # Without an answer or a byte; the drivers give up earlier.
DRIVERS = {"s3": "s3fs", "gs": "gcsfs"}
OPTIONS: dict[str, dict[str, Any]] = {
  "s3": dict(config_kwargs=dict(connect_timeout=10, read_timeout=30, retries=dict(max_attempts=2))),
  "gs": dict(requests_timeout=30),
}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_MEANT = ("PermissionError", "NoCredentialsError", "NoSuchBucket", "PartialCredentialsError")


class BucketError(OSError):
  """The object store does not do what it was asked for."""


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

    def found(fs, _):
      infos = fs.find(root, detail=True)
      files = {path.lstrip("/"): info for path, info in infos.items()}
      return {path: info for path, info in files.items() if info.get("type") == "file"}

    start = f"{self._root}/"
    infos = self._call(f"listing {folder or 'it'}", found, missing={})
    return {
      path.removeprefix(start): Stamp(int(info["size"]), _tag(info))
      for path, info in infos.items()
      if path.startswith(start) and not path.endswith("/")
    }

  def is_object(self) -> bool:
    """Whether the URL is that of one object."""
    return self._call("looking for it", lambda fs, _: bool(fs.isfile(self._root)), missing=False)

  def read(self, name: str) -> bytes | None:
    """The content of a small object; None if there is none."""
    return self._call(f"reading {name}", lambda fs, _: fs.cat_file(self._path(name)), missing=None)

  def write(self, name: str, data: bytes) -> None:
    """A small object, whole or not at all."""
    self._call(f"writing {name}", lambda fs, _: fs.pipe_file(self._path(name), data))

  def create(self, name: str, data: bytes) -> bool:
    """As `write`, unless there is such an object: False then, where the store can decide that."""

    def made(fs, _):
      with contextlib.suppress(TypeError, NotImplementedError):
        try:
          fs.pipe_file(self._path(name), data, mode="create")
        except FileExistsError:
          return False
        return True
      if fs.exists(self._path(name)):
        return False
      fs.pipe_file(self._path(name), data)
      return True

    return self._call(f"writing {name}", made)

  def put(self, file: pathlib.Path, name: str) -> None:
    """Uploads a file; raises FileNotFoundError if it has been deleted since."""

    def put(fs, alive):
      if file.is_file():
        fs.put_file(str(file), self._path(name), callback=_Alive.of(alive))

    try:
      self._call(f"writing {name}", put)
    except BucketError:
      if file.is_file():
        raise
    if not file.is_file():
      raise FileNotFoundError(file)

  def get(self, name: str, file: pathlib.Path) -> None:
    """Downloads an object, whole or not at all; "" is the URL's own."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    path = self._path(name) if name else self._root
    try:
      get = lambda fs, alive: fs.get_file(path, str(partial), callback=_Alive.of(alive))  # noqa: E731
      self._call(f"reading {name or 'it'}", get)
      partial.replace(file)
    finally:
      partial.unlink(missing_ok=True)

  def delete(self, names: Iterable[str]) -> None:
    """Deletes objects, in this order; those that are gone do not matter."""
    for name in names:
      self._call(f"deleting {name}", lambda fs, _, n=name: fs.rm_file(self._path(n)), missing=None)

  def _path(self, name: str) -> str:
    return f"{self._root}/{name}"

  def _call(self, doing: str, work: Callable[[Any, Callable], Any], **missing: Any) -> Any:
    """work(file system, alive); missing: what to return if there is no such object."""
    for attempt in range(ATTEMPTS):
      try:
        return input_files.bounded(lambda alive: work(self._fs(), alive), SILENT_SECONDS)
      except FileNotFoundError as error:
        if "missing" in missing and not str(error).startswith("The specified bucket"):
          return missing["missing"]
        failure = error
        break
      except Exception as error:  # Of many types: fsspec's, the driver's, its HTTP client's.
        failure = error
        if {type(error).__name__, type(error.__cause__).__name__} & set(_MEANT):
          break
      if attempt < ATTEMPTS - 1:
        time.sleep(PAUSE_SECONDS * 2**attempt)
    text = " ".join(str(failure).split()) or type(failure).__name__
    raise BucketError(f"{doing}: {text[:200]}") from failure

  def _fs(self) -> Any:
    """fsspec's, which it stores; without a cache of listings, as others write here too."""
    import fsspec

    options = OPTIONS[self._scheme]
    return fsspec.filesystem(self._scheme, use_listings_cache=False, **options)


class _Alive:
  """Makes fsspec report progress."""

  @staticmethod
  def of(alive: Callable[[], None]) -> Any:
    """A callback of fsspec that calls `alive` with each block."""
    import fsspec.callbacks

    class Callback(fsspec.callbacks.Callback):
      def call(self, *args, **kwargs):
        alive()

    return Callback()


def _tag(info: dict[str, Any]) -> str:
  return str(
    next((info[k] for k in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(k)), "")
  )
