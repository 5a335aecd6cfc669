"""Where do raw examples come from?

open(spec) gives a source: len(source), source[i] -> dict with the image still encoded (bytes), and
source.where(i), a phrase for error messages. Sources are read at random positions by many threads.

  dict(name="jsonl", fname="data/train.jsonl")     fields image, prefix, suffix, and any others;
                                                   images lie under the file's folder, or root=
  dict(name="coco", fname="data/train.json")       boxes and masks of a COCO file: data/coco.py
  dict(name="easy_vqa", split="train")             the images of the easy-vqa package
  dict(name="chartqa/human", split="train[:5%]")   any TFDS data set that is prepared as ArrayRecord
                                                   in data_dir= or $TFDS_DATA_DIR; no TensorFlow

Splits of easy_vqa and of TFDS may be cut: "train[:5%]", "train[100:200]". A source adds `id` where
the data has none. What is wrong with the files is told when the source is opened, as far as that
can be seen without reading every image.
"""

import inspect
import json
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from pgjax.data import coco, files
from pgjax.errors import UserError

PREPARED_HERE = ("chartqa",)  # pgjax.prepare makes these from their official downloads.


def open(spec: Mapping, *, check_images: bool = True):
  """The source that a `data` entry of a config describes.

  A missing image file is told at once, unless the caller wants to find all of them by reading.
  """
  source = _opened(dict(spec))
  if check_images and isinstance(source, Jsonl | coco.Coco):
    source.check_images()
  return source


def _opened(spec):
  name = spec.pop("name", None)
  if not isinstance(name, str):
    raise UserError(f"data={spec!r} has no name; it is 'jsonl', 'coco', 'easy_vqa' or a TFDS name.")
  if name in ("jsonl", "bv:jsonl"):
    return _call(Jsonl, name, spec)
  if name == "coco":
    return _call(coco.Coco, name, spec)
  if name == "easy_vqa":
    return _call(EasyVqa, name, spec)
  return _call(Tfds, name, {"name": name, **spec})


def _call(source, name, fields):
  try:
    inspect.signature(source).bind(**fields)
  except TypeError as error:
    known = ", ".join(key for key in inspect.signature(source).parameters if key != "name")
    raise UserError(f"data='{name}': {error}; its fields are {known}.") from None
  return source(**fields)


class Jsonl:
  """One JSON object a line; `image` names a file (or a list of files, for frames).

  With `start` and `stop` only these rows (blank lines not counted) are taken.
  """

  def __init__(self, fname, root=None, fopen_keys=None, split=None, start=None, stop=None):
    """Reads the whole file."""
    del split  # big_vision's configs may carry one; a file is its own split.
    self.fname = os.path.expanduser(fname)
    if fopen_keys is not None:  # big_vision's way to say root.
      root = fopen_keys["image"] if isinstance(fopen_keys, Mapping) else root
    self.root = os.path.abspath(os.path.expanduser(root or os.path.dirname(self.fname)))
    rows = list(self._read())[start:stop]
    if not rows:
      raise UserError(f"{self.fname} has no examples; each line is a JSON object with an image.")
    self._lines, self._rows = zip(*rows, strict=True)
    self._paths = [self._resolve(i) for i in range(len(rows))]

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    example = dict(self._rows[i])
    encoded = [files.file_bytes(path) for path in self._paths[i]]
    example["image"] = encoded if isinstance(example["image"], list) else encoded[0]
    example.setdefault("id", str(i))
    return example

  def texts(self, i):
    """The example without its image's bytes."""
    return {"id": str(i), **self._rows[i]}

  def where(self, i):
    """File and line."""
    return f"{self.fname}, line {self._lines[i]} (image {self._rows[i]['image']})"

  def check_images(self):
    """Raises for the first image that is not there; looks once into each folder."""
    present = files.Present(self.root)
    for i, paths in enumerate(self._paths):
      for path in paths:
        present.check(path, f"{self.fname}, line {self._lines[i]}")

  def _read(self):
    try:
      text = pathlib.Path(self.fname).read_bytes().decode()
    except OSError as error:
      raise UserError(f"{self.fname} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
      line = error.object[: error.start].count(b"\n") + 1
      raise UserError(f"{self.fname}, line {line}: this is not UTF-8 text.") from None
    for number, line in enumerate(text.split("\n"), 1):
      if line.strip():
        yield number, self._parse(line, number)

  def _parse(self, line, number):
    where = f"{self.fname}, line {number}"
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise UserError(
        f"{where}: not JSON ({error.msg}, column {error.colno}): {line.strip()[:60]!r}; each line "
        'is one object such as {"image": "a.png", "prefix": "...", "suffix": "..."}.'
      ) from None
    if not isinstance(row, dict):
      raise UserError(f"{where}: a JSON object is needed, this is {line.strip()[:60]!r}.")
    images = row.get("image")
    images = images if isinstance(images, list) and images else [images]
    if not all(isinstance(image, str) and image for image in images):
      raise UserError(
        f"{where}: 'image' must be a file name (or a list of them), not {row.get('image')!r}."
      )
    return row

  def _resolve(self, i):
    names = self._rows[i]["image"]
    names = names if isinstance(names, list) else [names]
    return [files.inside(self.root, name, f"{self.fname}, line {self._lines[i]}") for name in names]


class EasyVqa:
  """Questions about 64 x 64 images of one coloured shape; 38,575 in train and 9,673 in test.

  Fields: image, question, answer, id, image_id. With `answers` only questions with one of these.
  """

  def __init__(self, split, answers=None):
    """Reads all images of the split (a few MB), so that questions on one image share its bytes."""
    try:
      import easy_vqa
    except ImportError:
      raise UserError("data='easy_vqa' needs its package: pip install easy-vqa.") from None
    read = dict(
      train=(easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
      test=(easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    )
    self.split, part = cut_split(split)
    if self.split not in read:
      raise UserError(f"easy_vqa has no split '{split}'; it has train and test.")
    get_questions, get_paths = read[self.split]
    rows = list(zip(*get_questions(), strict=True))
    wanted = lambda row: answers is None or row[1] in answers  # noqa: E731
    self._ids = [i for i in range(len(rows))[part(len(rows))] if wanted(rows[i])]
    self._rows = [rows[i] for i in self._ids]
    if not self._rows:
      among = f" with an answer among {list(answers)}" if answers is not None else ""
      raise UserError(f"easy_vqa has no examples in split '{split}'{among}.")
    paths = get_paths()
    self._paths = {image: paths[image] for image in sorted({row[2] for row in self._rows})}
    self._images = {image: files.file_bytes(path) for image, path in self._paths.items()}

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    return {**self.texts(i), "image": self._images[self._rows[i][2]]}

  def texts(self, i):
    """The example without its image."""
    question, answer, image = self._rows[i]
    return dict(question=question, answer=answer, id=self._ids[i], image_id=image)

  def where(self, i):
    """Split, row and image file."""
    return f"easy_vqa {self.split} row {self._ids[i]} (image {self._paths[self._rows[i][2]]})"


def cut_split(split: str):
  """ "train[:5%]" -> ("train", f), where f(len) is the slice; for sources that are lists."""
  match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
  if not match:
    raise UserError(f"Split '{split}' is not understood; write train, train[:5%] or train[10:20].")
  name, *ends = match.groups()

  def position(end, length):
    if end is None:
      return None
    return round(int(end[:-1]) / 100 * length) if end.endswith("%") else int(end)

  return name, lambda length: slice(*(position(end, length) for end in ends))


class Tfds:
  """A prepared TFDS data set, read without TensorFlow; the feature `image` stays encoded."""

  def __init__(self, name, split, data_dir=None):
    """Opens the newest version below data_dir/name."""
    self.name, self.split = name, split
    folder = _prepared_folder(name, _data_dir(data_dir))
    import tensorflow_datasets as tfds  # Takes seconds, so only where it is needed.

    builder = tfds.builder_from_directory(folder)
    splits = set(re.findall(r"[a-zA-Z_]\w*", split)) - {"shard"}
    unknown = sorted(splits - set(builder.info.splits))
    if unknown:
      raise UserError(
        f"Data set '{name}' has no split {unknown}; it has {sorted(builder.info.splits)}."
      )
    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in builder.info.features else None
    try:
      self._rows = builder.as_data_source(split=split, decoders=decoders)
    except (NotImplementedError, ValueError) as error:
      reason = " ".join(str(error).split())
      raise UserError(
        f"Data set '{name}', split '{split}', cannot be read from {folder}: {reason} (the "
        "files must be ArrayRecord: download_and_prepare(file_format='array_record'))."
      ) from None
    if len(self._rows) == 0:
      raise UserError(f"Data set '{name}' has no examples in split '{split}'.")

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    example = {k: v if k == "image" else _bytes_to_text(v) for k, v in self._rows[i].items()}
    example.setdefault("id", f"{self.name}:{self.split}:{i}")
    return example

  def texts(self, i):
    """The example without its image."""
    return {k: v for k, v in self[i].items() if k != "image"}

  def where(self, i):
    """Name, split and row."""
    return f"data set {self.name}, split {self.split}, row {i}"


def _bytes_to_text(value):
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, dict):
    return {name: _bytes_to_text(inner) for name, inner in value.items()}
  if isinstance(value, np.ndarray) and value.dtype.kind == "O":
    return [_bytes_to_text(inner) for inner in value]
  return value


def _data_dir(data_dir):
  given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return pathlib.Path(os.path.expanduser(given))


def _prepared_folder(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """data_dir/name/VERSION of the highest version; name may also end in a version."""
  base = data_dir / name.replace(":", "/")
  if (base / "dataset_info.json").exists():
    return base
  inner = sorted(p.name for p in base.glob("[!.]*") if p.is_dir())
  versions = [v for v in inner if re.fullmatch(r"\d+\.\d+\.\d+", v)]
  if versions:
    return base / max(versions, key=lambda v: [int(number) for number in v.split(".")])
  if inner and "/" not in name:
    there = " or ".join(f"'{name}/{part}'" for part in inner)
    raise UserError(f"Data set '{name}' in {data_dir} comes in parts: write {there}.")
  dataset = name.split("/")[0]
  how = (
    f"python -m pgjax.prepare {dataset} --raw=FOLDER_OF_ITS_DOWNLOAD --out={data_dir}"
    if dataset in PREPARED_HERE
    else "prepare it with TFDS as ArrayRecord (docs of tensorflow_datasets: download_and_prepare)"
  )
  raise UserError(
    f"Data set '{name}' is not prepared in {data_dir}: {how}; or say where it is with data_dir= or "
    "the environment variable TFDS_DATA_DIR."
  )
