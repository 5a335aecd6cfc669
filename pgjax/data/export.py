"""How are the rows of any source written as a PaliGemma data set?

As JSONL with its images, which Roboflow, big_vision and pgjax read,

  {"image": "train/0001.jpg", "prefix": "detect cat", "suffix": "<loc0100>... cat"}

or as ArrayRecord with the same columns. Images stay as they are encoded; one that several rows have
is written once.
"""

import collections
import hashlib
import json
import logging
import os
import pathlib
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import tqdm

from pgjax import call_syntax, disk
from pgjax.config import load, validate
from pgjax.data import image_size, images, notes, pipeline, signatures
from pgjax.data.pp import parse
from pgjax.data.sources import registry
from pgjax.datasets import base, writing
from pgjax.errors import UserError, naming

log = logging.getLogger("pgjax")

NEEDED = ("prefix", "suffix")
_Field = str | int | float | bool | None | list[str] | Mapping[str, Any]
_FEATURES = {str: str, int: "int64", float: "float64", bool: "bool"}  # Of base.DataSet.
_ENDINGS = {"a JPEG": ".jpg", "a PNG": ".png", "a GIF": ".gif", "a BMP": ".bmp", "a TIFF": ".tif",
            "a WebP": ".webp"}  # fmt: skip


def opened(data: str, pp: str, keep: Sequence[str]) -> "Rows":
  """The rows of `coco(fname="a.json")`, or of the training data of `configs/mine.py:args`."""
  if not re.match(r"[^()'\"]*\.py(:|$)", data):
    return Rows(data_of(data), pp, keep)
  section = validate.validated(load.load(data)).input
  return Rows(section.data.to_dict(), "|".join(filter(None, (section.pp, pp))), keep)


def data_of(text: str) -> dict[str, Any]:
  """`coco(fname="a.json", images="a")` as the entry of a config; raises UserError."""

  def source(name: str) -> Callable:
    def fields(**fields: _Field):
      return {"name": name, **fields}

    return fields

  language = {name: source(name) for name in registry.SOURCES if name.isidentifier()}
  return call_syntax.parse_one(text, language, "--data")()


class Rows:
  """The rows of a `data` entry of a config after the ops of `pp` that are about texts."""

  def __init__(self, data: Mapping[str, Any], pp: str = "", keep: Sequence[str] = ()):
    parts = pipeline.parts(data)
    if len(parts) > 1:
      raise UserError("This data is a mixture; write each of its parts as a file of its own.")
    self.source, self.keep = parts[0].source, tuple(keep)
    self._ops = parse.parse(pp).text_only()
    self.at = self.source.where
    self.notes: collections.Counter[str] = collections.Counter()  # Of images.

  def __len__(self):
    return len(self.source)

  def texts(self, i: int) -> dict[str, Any]:
    """prefix, suffix, and the columns to keep, of row i."""
    with naming(self.at(i)):
      row = {**self.source.texts(i), "_epoch": 0, "_seed": (0, 0, i, 0)}
      row = notes.without_image_word(self._ops(row))
      for name in (*NEEDED, *self.keep):
        if name not in row:
          columns = ", ".join(sorted(key for key in row if not key.startswith("_")))
          raise UserError(
            f"there is no '{name}', only {columns}; name its column in --data (prefix=, suffix=),"
            ' or make it with --pp, such as --pp=\'strfmt("caption en", outkey="prefix")\''
          )
        if name in NEEDED and not isinstance(row[name], str):
          raise UserError(f"'{name}' must be text, not {row[name]!r:.80}")
      return {name: row[name] for name in (*NEEDED, *self.keep)}

  def images(self, i: int) -> list[bytes]:
    """The encoded images of row i."""
    with naming(self.at(i)):
      example = self.source[i]
      encoded = example["image"]
      encoded = list(encoded) if isinstance(encoded, list | tuple) else [encoded]
      for image in encoded:
        images.size(image)
      if kind := image_size.check(example):
        self.notes[image_size.NOTES[kind]] += 1
    return encoded

  def has_list(self, i: int) -> bool:
    """Whether row i has a list of images, such as the frames of a video."""
    return isinstance(self.source.texts(i).get("image"), list) or hasattr(self.source, "sample")

  def base_name(self, i: int) -> str:
    """The name of the image of row i in its source, without folder and ending; else its number."""
    name = self.source.texts(i).get("image")
    name = name if isinstance(name, str) else self.source.texts(i).get("file_name")
    stem = os.path.splitext(os.path.basename(str(name or "").replace("\\", "/")))[0]
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem)[:80].strip(".")
    return plain or f"{i:06d}"


def to_jsonl(rows: Rows, folder: pathlib.Path, name: str, workers: int) -> str:
  """Writes folder/name.jsonl and the images in folder/name/; returns a line about them."""
  target = disk.inside(folder, f"{name}.jsonl", "--split")
  if target.exists():
    raise UserError(f"{target} is there already; delete it, or choose another --out or --split.")
  disk.open_folder(str(folder / name), "--out")
  images_of = _Images(folder, name)

  def line(i: int) -> str:
    names = images_of.write(rows.images(i), rows.base_name(i))
    image: Any = names if rows.has_list(i) else names[0]
    return json.dumps({"image": image, **rows.texts(i)}, ensure_ascii=False) + "\n"

  with (
    disk.disk_errors(folder),
    futures.ThreadPoolExecutor(workers) as pool,
    tqdm.tqdm(total=len(rows), unit=" rows", file=sys.stderr, leave=False) as bar,
  ):
    lines = []
    try:
      for text in pool.map(line, range(len(rows))):
        lines.append(text)
        bar.update()
    except BaseException:
      pool.shutdown(wait=True, cancel_futures=True)
      raise
    disk.replace(target, "".join(lines))
  for note, count in rows.notes.items():
    log.warning("%s of %s rows: %s.", f"{count:,}", f"{len(rows):,}", note)
  return f"{target}: {len(rows):,} rows, {images_of.count:,} images in {folder / name}"


class _Images:
  """Writes each different image once, under a name that no other has."""

  def __init__(self, folder: pathlib.Path, name: str):
    self._folder, self._name = folder, name
    self._names: dict[bytes, str] = {}
    self._taken: set[str] = set()
    self._lock = threading.Lock()

  @property
  def count(self) -> int:
    """The number of files."""
    return len(self._names)

  def write(self, encoded: list[bytes], stem: str) -> list[str]:
    """The names of the files, relative to the folder."""
    names = []
    for image in encoded:
      digest = hashlib.sha256(image).digest()
      with self._lock:
        is_new = digest not in self._names
        if is_new:
          self._names[digest] = self._free(stem, _ENDINGS.get(signatures.readable(image), ".ppm"))
        names.append(self._names[digest])
      if is_new:
        disk.write(self._folder / names[-1], image)
    return names

  def _free(self, stem: str, ending: str) -> str:
    number, name = 1, f"{stem}{ending}"
    while name.casefold() in self._taken:
      number += 1
      name = f"{stem}-{number}{ending}"
    self._taken.add(name.casefold())
    return f"{self._name}/{name}"


def to_array_record(rows: Rows, out: pathlib.Path, name: str, split: str, workers: int) -> str:
  """Writes out/name/1.0.0, which a config names as dict(name=name, split=split)."""
  if not name.isidentifier() or name != name.lower():
    raise UserError(f"--name={name} must be letters, digits and _ in lower case, such as my_data.")
  if name in registry.SOURCES:
    raise UserError(f"--name={name} is the name of a source; choose another.")
  if rows.has_list(0):
    raise UserError("Rows with several images are written as JSONL only: leave --to out.")

  def examples(*_):
    for i in range(len(rows)):
      yield i, {"image": _Encoded(rows, i), **rows.texts(i), "id": str(rows.source.texts(i)["id"])}

  data = base.DataSet(
    name=name,
    about="",
    source="",
    features=dict(image=base.Image(), prefix=str, suffix=str, **_kept(rows), id=str),
    files=lambda *_: [],
    rows=examples,
    splits={split: None},
    needs_raw=False,
  )
  return writing.prepare(data, base.Raw("."), out, None, [split], writing.Options(workers))


def _kept(rows: Rows) -> dict[str, Any]:
  """{column: feature} of the columns to keep, by the first row that has a value."""
  features: dict[str, Any] = {}
  wanted = [name for name in rows.keep if name not in (*NEEDED, "image", "id")]
  for i in range(len(rows) if wanted else 0):
    row = rows.texts(i)
    for name in set(wanted) - features.keys():
      is_list = isinstance(row[name], list)
      first = next(iter(row[name]), None) if is_list else row[name]
      if first is None:
        continue
      if (kind := _FEATURES.get(type(first))) is None:
        raise UserError(
          f"{rows.at(i)}: --keep={name} is {row[name]!r:.60}; ArrayRecord keeps texts, numbers and"
          " lists of them: leave --to out, and JSONL keeps it."
        )
      features[name] = [kind] if is_list else kind
    if len(features) == len(wanted):
      return features
  if missing := [name for name in wanted if name not in features]:
    raise UserError(f"--keep={missing[0]}: no row has a value for it.")
  return features


class _Encoded:
  """The image of a row, which is read when it is written."""

  def __init__(self, rows: Rows, i: int):
    self._rows, self._i = rows, i
    self.__qualname__ = f"image of {rows.at(i)}"  # What tells a plan of writing.py it is the same.

  def __call__(self) -> bytes:
    return self._rows.images(self._i)[0]
