"""What does a data set of pgjax.prepare declare, and how does it read its official download?

A file of this package declares one DATA = DataSet(...): names, features, splits, files, and a
function `rows` that yields (key, example). It reads through `Raw`, decodes JSON into msgspec
structs, and leaves images as `File`: writing.py reads them later, in parallel.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pgjax.errors import UserError, cut, did_you_mean
from pgjax.formats import input_files, typed_json

Int32 = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Name = typed_json.Text  # A file of the download.
Key = str | int


@dataclasses.dataclass(frozen=True)
class Image:
  """A feature: an encoded image, stored as it is."""

  encoding: str | None = None  # "png" or "jpeg": what TFDS records, and what it would encode as.
  shape: tuple[int | None, ...] = (None, None, 3)


@dataclasses.dataclass(frozen=True)
class Array:
  """A feature: a tensor of a fixed rank; None where a size varies."""

  shape: tuple[int | None, ...]
  dtype: str


@dataclasses.dataclass(frozen=True)
class Labels:
  """A feature: one of these names, stored as its index."""

  names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Box:
  """A feature: ymin, xmin, ymax, xmax in [0, 1], as a tfds.features.BBox or four numbers."""


@dataclasses.dataclass(eq=False)
class File:
  """The content of a file of the download, as a value of an example; `edit` changes the bytes."""

  path: str
  where: str  # What names it: a file and an entry.
  edit: Callable[[bytes], bytes] | None = None
  checked: bool = False  # It is an image, and whole; so that it is looked at once.


@dataclasses.dataclass(frozen=True)
class DataSet:
  """One name of a config; what `features`, `files` and `rows` mean is documented at the field."""

  name: str  # As configs name it: "docvqa".
  about: str  # One line of --help, without a full stop.
  source: str  # Where its files come from, in words or as the address of its own page.
  # str (a text), a numpy dtype's name, Image, Array, Labels, Box, [a feature] for a sequence, or a
  # dict of features.
  features: Mapping[str, Any]
  # The files that a part's split needs, below the raw folder: "a.json", "images/" (a folder that
  # is not empty), "data/*.parquet", "a/|b/" (one of them), "other/?", which only some rows need.
  files: Callable[[str | None, str], list[str]]
  # (key, example) of each row; the order of the rows is TFDS's: by a hash of the split and the key.
  rows: Callable[["Raw", str | None, str], Iterator[tuple[Key, dict[str, Any]]]]
  # Published numbers of rows; None where none is known.
  splits: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
  parts: Mapping[str, Mapping[str, int | None]] | None = None  # Of "name/part", instead of splits.
  extra_splits: Mapping[str, int | None] = dataclasses.field(default_factory=dict)  # By --splits.
  version: str = "1.0.0"
  needs_raw: bool = True
  # {split: why its download lacks images}: their rows are dropped and counted.
  lost_images: Mapping[str, str] = dataclasses.field(default_factory=dict)
  options: tuple[str, ...] = ()  # Flags of pgjax.prepare that only some data sets have.

  def part_names(self) -> list[str | None]:
    """All parts; [None] for a data set without parts."""
    return list(self.parts) if self.parts else [None]

  def counts(self, part: str | None) -> Mapping[str, int | None]:
    """{split: published number of rows}, with the splits that --splits must name."""
    main = self.parts[part] if self.parts and part else self.splits
    return {**main, **self.extra_splits}

  def split_names(self, parts: list[str | None]) -> list[str]:
    """The splits that one of the parts has."""
    return list(dict.fromkeys(split for part in parts for split in self.counts(part)))

  def full_name(self, part: str | None) -> str:
    """As a config names it: "chartqa/human"."""
    return self.name if part is None else f"{self.name}/{part}"


class Raw:
  """The folder of a download; names that lead out of it are refused."""

  def __init__(self, folder: str | pathlib.Path, options: Mapping[str, Any] | None = None):
    """options: the values of DataSet.options."""
    self.folder = pathlib.Path(folder).expanduser().absolute()
    self.options = dict(options or {})
    self._files: dict[tuple, File] = {}
    self._last: tuple[Any, Any] = (None, None)

  def names(self, folder: str, ending: str) -> list[str]:
    """The sorted names in a declared folder that end so."""
    return sorted(n for n in input_files.names(str(self.folder / folder)) if n.endswith(ending))

  def first(self, names: str) -> str:
    """The one that exists of declared alternatives, "a.json|b.json"; else the first."""
    known = names.split("|")
    return next((name for name in known if (self.folder / name).exists()), known[0])

  def path(self, name: str) -> pathlib.Path:
    """The path of a declared file, which may be a link."""
    return pathlib.Path(input_files.inside(str(self.folder), name, "this data set"))

  def json(self, name: str, kind: Any) -> Any:
    """A JSON file as `kind`; the last one is kept, for the next split."""
    if self._last[0] != (name, kind):
      self._last = (None, None)  # Not two large files at a time.
      self._last = (name, kind), typed_json.read(self.path(name), kind)
    return self._last[1]

  def json_lines(self, name: str, kind: Any, only: bytes = b"") -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of each line that is not empty; the file is not held in memory.

    only: whole lines without these bytes are passed over, which is faster than decoding them.
    """
    decoder, path = msgspec.json.Decoder(kind), self.path(name)
    try:
      input_files.check_regular(path.stat())
      file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
      raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    with file:
      for number, line in enumerate(file, 1):
        if (only not in line and line.endswith(b"}\n")) or not line.strip():
          continue
        try:
          yield number, decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
          yield number, typed_json.decode(line, kind, f"{path}, line {number}")

  def text(self, name: str) -> str:
    """A text file, in UTF-8."""
    path = self.path(name)
    return typed_json.text(input_files.file_bytes(path, most=input_files.MAX_TEXT_BYTES), path)

  def image(
    self, folder: str, name: str, where: str, edit: Callable[[bytes], bytes] | None = None
  ) -> File:
    """The image `name`, from a JSON, below a declared folder, which may be a link.

    where: what names it, for messages. Rows of one image share the File, unless it is edited.
    """
    key = (folder, name)
    if (found := self._files.get(key)) is None:
      root, where = _root(self.folder, folder), f"{self.folder}/{where}"
      path = input_files.inside(root, name, where, links=False)
      found = self._files[key] = File(path, where)
    return found if edit is None else File(found.path, f"{self.folder}/{where}", edit)

  def check(self, condition: bool, where: str, message: str) -> None:
    """Raises UserError unless `condition`; where: a file and an entry."""
    if not condition:
      raise UserError(f"{self.folder}/{where}: {message}.")


@functools.lru_cache(maxsize=64)
def _root(folder: pathlib.Path, name: str) -> str:
  return str(folder / name)


def chosen(kind: str, wanted: list[str] | None, known: list[str], default: list[str]) -> list[str]:
  """The values of --parts or --splits (`kind`), checked; without any, `default`."""
  if wanted is None:
    return default
  if unknown := [name for name in wanted if name not in known]:
    hint = (
      did_you_mean(unknown[0], known) if len(known) > 12 else f" There are: {', '.join(known)}."
    )
    raise UserError(f"There is no {kind} {cut(unknown[0])!r}.{hint}")
  if not wanted:
    raise UserError(f"--{kind}s is empty; it is one or more of {','.join(known)}.")
  return list(dict.fromkeys(wanted))


def to_tfds(feature: Any) -> Any:
  """The feature of TFDS for a declared one."""
  import tensorflow_datasets as tfds  # Takes seconds.

  kinds = tfds.features
  if isinstance(feature, Mapping):
    return kinds.FeaturesDict({name: to_tfds(inner) for name, inner in feature.items()})
  if isinstance(feature, list):
    inner = feature[0]
    if isinstance(inner, Mapping):
      return kinds.Sequence({name: to_tfds(value) for name, value in inner.items()})
    return kinds.Sequence(to_tfds(inner))
  if isinstance(feature, Image):
    return kinds.Image(shape=feature.shape, encoding_format=feature.encoding)
  if isinstance(feature, Array):
    return kinds.Tensor(shape=feature.shape, dtype=_dtype(feature.dtype))
  if isinstance(feature, Labels):
    return kinds.ClassLabel(names=list(feature.names))
  if isinstance(feature, Box):
    return kinds.BBoxFeature()
  return kinds.Text() if feature is str else kinds.Scalar(_dtype(feature))


def _dtype(name: str) -> Any:
  import numpy as np

  return np.dtype(name).type
