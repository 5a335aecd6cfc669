"""How is a data set of pgjax.prepare or TensorFlow Datasets read, without TensorFlow?"""

import bisect
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pgjax.data import images
from pgjax.errors import UserError
from pgjax.formats import input_files


class Tfds:
  """The newest version below data_dir/name; the features in `skip_decode` stay encoded.

  Other images, at any depth, are decoded to uint8 [H, W, C] when a row is read. As in big_vision, a
  row also has `tfds_id`, which names its file and its place there, and `_id`, an int32 number.
  """

  own_columns = frozenset({"_id"})  # Allowed by loader.py.

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: str | None = None,
    skip_decode: Sequence[str] = ("image",),
  ):
    self.name, self.split, self._encoded = name, split, frozenset(skip_decode)
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    parent = pathlib.Path(os.path.expanduser(data_dir))
    folder = input_files.answering(parent, lambda: _prepared_folder(name, parent))
    import tensorflow_datasets as tfds  # Takes seconds.

    builder = tfds.builder_from_directory(folder)
    self._places = _Places(_files(name, split, builder.info.splits), builder.info.splits)
    self._images = _image_features(builder.info.features, tfds.features)

    class Encoded(tfds.decode.SkipDecoding):  # Also for a sequence of images.
      def decode_batch_example_np(self, examples):
        return list(examples)

    decoders = _with_leaves(self._images, lambda feature: Encoded())
    try:
      self._rows = builder.as_data_source(split=split, decoders=decoders or None)
    except (NotImplementedError, ValueError) as error:
      reason = " ".join(str(error).split())
      raise UserError(
        f"Data set '{name}', split '{split}', cannot be read from {folder}: {reason} (the "
        "files must be ArrayRecord: download_and_prepare(file_format='array_record'))."
      ) from None
    if len(self._rows) == 0:
      raise UserError(f"Data set '{name}' has no examples in split '{split}'.")
    self._rows = _Rows(self._rows, folder)

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    row = self._rows[i]
    plain = {k: v for k, v in self._images.items() if k not in self._encoded}
    return self._with_ids(_read(row, plain, _decoded, self._encoded), i)

  def texts(self, i):
    """The example without `image`; its other images stay encoded."""
    row = {k: v for k, v in self._rows[i].items() if k not in self._encoded}
    return self._with_ids(_read(row, self._images, lambda value, feature: value), i)

  def where(self, i):
    """Name, split and row."""
    return f"data set {self.name}, split {self.split}, row {i}"

  def _with_ids(self, example, i):
    file, number, unique = self._places[i]
    example |= {"tfds_id": f"{file}__{number}", "_id": np.int32(unique)}
    if example.get("id") is None:
      example["id"] = f"{self.name}:{self.split}:{i}"
    return example


def _files(name: str, split: str, splits: Any) -> Any:
  """The parts of files that make up a split such as `train + val[20_000:]`."""
  names = [re.sub(r"\[.*", "", part.strip(), flags=re.DOTALL) for part in split.split("+")]
  if unknown := sorted({part for part in names if part not in splits and part != "all"}):
    raise UserError(f"Data set '{name}' has no split {unknown}; it has {sorted(splits)}.")
  try:
    return splits[split].file_instructions
  except (KeyError, ValueError, AssertionError) as error:
    sizes = ", ".join(f"{each} {splits[each].num_examples:,}" for each in sorted(splits))
    reason = " ".join(str(error).split()).rstrip(".")
    raise UserError(
      f"Data set '{name}' has no split {split!r}: {reason}. Its splits and their numbers of"
      f" examples are {sizes}; a part of one is written train[:5%] or train[20_000:], several train"
      " + val."
    ) from None


class _Places:
  """Where each row of a split is stored: [i] is (file, place in it, number in the data set).

  The number is the same for the same row in any slice or sum of splits.
  """

  def __init__(self, files: Sequence[Any], splits: Any):
    self._files = list(files)
    self._ends = list(itertools.accumulate(file.take for file in self._files))
    first: dict[str, int] = {}  # The number of the first row of each file.
    total = 0
    for split in sorted(splits):
      for path, rows in zip(splits[split].filenames, splits[split].shard_lengths, strict=True):
        first[os.path.basename(path)] = total
        total += rows
    self._first = first

  def __getitem__(self, i: int) -> tuple[str, int, int]:
    k = bisect.bisect_right(self._ends, i)
    file = self._files[k]
    number = i - (self._ends[k - 1] if k else 0) + file.skip
    name = os.path.basename(file.filename)
    return name, number, self._first[name] + number


def _image_features(features: Any, kinds: Any) -> dict[str, Any]:
  """The features that are images, as a tree of the same names; sequences are left out of it."""

  def tree(feature):
    if isinstance(feature, kinds.Image):
      return feature
    if isinstance(feature, kinds.FeaturesDict):
      inner = {name: tree(each) for name, each in feature.items()}
      return {name: each for name, each in inner.items() if each is not None} or None
    return tree(feature.feature) if isinstance(feature, kinds.Sequence) else None

  return tree(features) or {}


def _with_leaves(tree: Mapping, change: Callable) -> dict:
  return {
    name: _with_leaves(inner, change) if isinstance(inner, Mapping) else change(inner)
    for name, inner in tree.items()
  }


def _read(row: Mapping, image_features: Mapping, read_image: Callable, encoded=frozenset()) -> dict:
  """The row with texts for bytes, and `read_image(bytes, feature)` for the images of the tree."""
  example = {}
  for name, value in row.items():
    feature = image_features.get(name)
    if name in encoded:
      example[name] = value
    elif isinstance(feature, Mapping):
      example[name] = _read(value, feature, read_image)
    elif feature is not None:
      example[name] = _each(value, lambda one, feature=feature: read_image(one, feature))
    else:
      example[name] = _bytes_to_text(value)
  return example


def _each(value: Any, read: Callable) -> Any:
  """Lists and arrays of encoded images, at any depth, as lists of what `read` returns."""
  if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
    return [_each(inner, read) for inner in value]
  return read(value)


def _decoded(encoded: bytes, feature: Any) -> np.ndarray:
  """uint8 [H, W, C] with as many channels as the feature has."""
  channels = feature.shape[-1]
  if feature.np_dtype != np.uint8 or channels not in (1, 3):
    return feature.decode_example_np(encoded)
  return images.decode(bytes(encoded))[:, :, :channels]


def _bytes_to_text(value):
  """The value with every bytes in it, at any depth, as text; arrays of texts become lists.

  TFDS has one type for texts and for bytes, such as encoded masks: what is not UTF-8, or has a NUL,
  stays bytes.
  """
  if isinstance(value, bytes):
    try:
      text = value.decode()
    except UnicodeDecodeError:
      return bytes(value)
    return bytes(value) if "\0" in text else text
  if isinstance(value, dict):
    return {name: _bytes_to_text(inner) for name, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_bytes_to_text(inner) for inner in value]
  if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
    return _bytes_to_text(value.tolist())
  return value


class _Rows:
  """A data source of TFDS whose folder may stop to answer."""

  def __init__(self, rows, folder):
    self._rows, self._folder = rows, folder

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    return input_files.answering(self._folder, lambda: self._rows[i])


def _prepared_folder(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """data_dir/name/VERSION with the highest version; name may also end in a version."""
  base = data_dir / name.replace(":", "/")
  if (base / "dataset_info.json").exists():
    return base
  inner = sorted(p.name for p in base.glob("[!.]*") if p.is_dir())
  versions = [v for v in inner if re.fullmatch(r"\d+\.\d+\.\d+", v)]
  if versions:
    return base / max(versions, key=lambda v: [int(number) for number in v.split(".")])
  if inner and "/" not in name:
    names = " or ".join(f"'{name}/{part}'" for part in inner)
    raise UserError(f"Data set '{name}' in {data_dir} has parts: write {names}.")
  plain, _, version = name.partition(":")
  if others := sorted(p.parent.name for p in (data_dir / plain).glob("*/dataset_info.json")):
    raise UserError(
      f"Data set '{plain}' in {data_dir} has version {' and '.join(others)}, not {version!r}; write"
      f" '{plain}', or '{plain}:{others[-1]}'."
    )
  from pgjax.datasets import registry  # Takes a moment.

  dataset = re.split("[/:]", name)[0]
  known = registry.all_data_sets().get(dataset)
  raw = " --raw=FOLDER_OF_ITS_DOWNLOAD" if known is None or known.needs_raw else ""
  how = (
    f"python -m pgjax.prepare {dataset}{raw} --out={data_dir}"
    if known
    else "prepare it with TFDS as ArrayRecord (docs of tensorflow_datasets: download_and_prepare)"
  )
  raise UserError(
    f"Data set '{name}' is not prepared in {data_dir}: {how}; or set its folder with data_dir= or "
    "the environment variable TFDS_DATA_DIR."
  )
