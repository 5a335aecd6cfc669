"""How does a row become a record, and a folder of records a data set that TFDS reads?"""

import contextlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import array_record.python.array_record_data_source as array_record_data_source
import array_record.python.array_record_module as array_record_module
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, hashing, naming

from pgjax.datasets import base
from pgjax.datasets.base import DataSet, File
from pgjax.errors import UserError
from pgjax.formats import input_files

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_PHOTO_END, _PHOTO_START = b"\xff\xd9", b"\xff\xda"  # Of a JPEG: the end, and the start of a scan.


class Encoder:
  """Rows to serialized tf.train.Example, without TensorFlow; may be called by many threads."""

  def __init__(self, data: DataSet, *, skip_bad: bool = False):
    """skip_bad: a row with a damaged image gives no record, instead of an error."""
    self._features = base.to_tfds(data.features)
    specs = _without_tensorflow(self._features.get_serialized_info())
    self._serializer = example_serializer.ExampleSerializer(specs)
    self._skip_bad = skip_bad

  def record(self, key: Any, example: dict[str, Any]) -> bytes | None:
    """The bytes of a record; None for a row that is dropped."""
    try:
      example = _resolved(example)
    except _DamagedError:
      if self._skip_bad:
        return None
      raise
    try:
      encoded = self._features.encode_example(example)
      return self._serializer.serialize_example(encoded)
    except (TypeError, ValueError, OverflowError) as error:
      reason = " ".join(str(error).split())[:200]
      raise UserError(f"The row with id {key!r} does not fit the features: {reason}.") from error


class _TensorInfo(tfds.features.TensorInfo):
  """The serializer asks for the `dtype` of sequences in sequences, which is TensorFlow's."""

  @property
  def dtype(self) -> Any:
    """Of NumPy."""
    return self.np_dtype


def _without_tensorflow(specs: Any) -> Any:
  if isinstance(specs, dict):
    return {name: _without_tensorflow(inner) for name, inner in specs.items()}
  return _TensorInfo.copy_from(specs)


class _DamagedError(UserError):
  """An image that cannot be decoded."""


def _resolved(value: Any) -> Any:
  """The value with the content of its files, and of what is computed."""
  if isinstance(value, File):
    data = input_files.file_bytes(value.path)
    _check_image(data, value)
    return data if value.edit is None else _edited(data, value)
  if isinstance(value, dict):
    return {name: _resolved(inner) for name, inner in value.items()}
  if isinstance(value, list):
    return [_resolved(inner) for inner in value]
  return value() if callable(value) else value


def _edited(data: bytes, file: File) -> bytes:
  try:
    return file.edit(data)
  except UserError:
    raise
  except Exception as error:  # PIL raises many types.
    raise _damaged(file, f"damaged ({type(error).__name__}: {error})") from error


def _damaged(file: File, reason: str) -> _DamagedError:
  return _DamagedError(
    f"{file.where}: {file.path} is {reason}. Download it again, or drop its rows with "
    "--skip_bad_images."
  )


def _check_image(data: bytes, file: File) -> None:
  """Raises for what is no image, or lacks pixels; decodes only what has an unusual end."""
  if file.checked:
    return
  if not data:
    raise _damaged(file, "empty")
  reason = "damaged"
  try:
    with PIL.Image.open(io.BytesIO(data)) as image:
      if not _ends_as_usual(image.format, data):
        reason = f"a {image.format} that is cut short"
        image.load()
  except PIL.Image.DecompressionBombError:
    pass  # An image, only larger than is decoded by default.
  except PIL.UnidentifiedImageError:
    raise _damaged(file, "not an image") from None
  except Exception as error:  # PIL raises many types.
    raise _damaged(file, f"{reason} ({error})") from None
  file.checked = True


def _ends_as_usual(kind: str, data: bytes) -> bool:
  if kind in ("JPEG", "MPO"):
    return data.rfind(_PHOTO_END) > data.rfind(_PHOTO_START)
  return kind == "PNG" and data.rfind(b"IEND") > 0


def key_hash(split: str) -> Callable[[base.Key], int]:
  """What TFDS orders the rows of a split by."""
  return hashing.Hasher(split).hash_key


def shard_name(data: DataSet, split: str, index: int, shards: int) -> str:
  """The file name that TFDS expects."""
  return f"{data.name}-{split}.array_record-{index:05d}-of-{shards:05d}"


@contextlib.contextmanager
def writer(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
  """A function that adds a record; the file is on the disk at the end."""
  file = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")  # As TFDS does.
  try:
    yield file.write
  finally:
    file.close()
  with open(path, "rb") as written:
    os.fsync(written.fileno())


def length(path: pathlib.Path) -> int | None:
  """The number of records in a file; None if it is damaged."""
  try:
    with array_record_data_source.ArrayRecordDataSource([os.fspath(path)]) as source:
      return len(source)
  except Exception:  # The library raises many types.
    return None


def prepared_splits(folder: pathlib.Path, data: DataSet) -> dict[str, int]:
  """{split: rows} of a data set that is prepared; empty if there is none."""
  if not (folder / "dataset_info.json").exists():
    return {}
  try:
    builder = tfds.builder_from_directory(folder)
    splits = {name: info.num_examples for name, info in builder.info.splits.items()}
    same = _plain(builder.info.features) == _plain(base.to_tfds(data.features))
    kind = builder.info.file_format.value
  except Exception as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{folder} cannot be read as a data set: {reason}. Delete it.") from error
  if kind != "array_record":
    raise UserError(
      f"{folder} holds {kind} files, as tfds build writes them: use another --out=, or make "
      "ArrayRecord of them with --from_tfrecord."
    )
  if not same:
    raise UserError(
      f"{folder} was prepared with other features, by another version of pgjax or by TFDS: delete "
      "it, or use another --out=."
    )
  return splits


def _plain(features: Any) -> str:
  return json.dumps(features.to_json(), sort_keys=True)


def publish(
  data: DataSet,
  part: str | None,
  work: pathlib.Path,
  folder: pathlib.Path,
  written: dict[str, list[int]],
) -> None:
  """Writes the metadata of `work` and renames it to `folder`, or adds its splits to that."""
  shards = {split: (lengths, work) for split, lengths in written.items()}
  if (folder / "dataset_info.json").exists():
    for split, info in tfds.builder_from_directory(folder).info.splits.items():
      shards.setdefault(split, (info.shard_lengths, folder))
  infos = [_split_info(data, split, *shards[split]) for split in sorted(shards)]
  identity = tfds.core.dataset_info.DatasetIdentity(
    name=data.name,
    version=tfds.core.Version(data.version),
    data_dir=os.fspath(work),
    module_name="pgjax.prepare",
    config_name=part,
  )
  features = base.to_tfds(data.features)
  info = tfds.core.DatasetInfo(builder=identity, features=features, description=data.about)
  info.set_file_format("array_record")
  info.set_splits(tfds.core.splits.SplitDict(infos))
  info.write_to_directory(work)
  for path in work.glob(".*"):  # The state of the run, and its lock.
    path.unlink()
  if not folder.exists():
    work.rename(folder)
    return
  names = [path.name for path in work.iterdir()]
  names.sort(key=lambda name: (name.endswith(".json"), name == "dataset_info.json"))
  for name in names:  # The metadata last: without them the new splits do not exist.
    (work / name).replace(folder / name)
  work.rmdir()


def _split_info(data: DataSet, split: str, lengths: list[int], folder: pathlib.Path) -> Any:
  template = naming.ShardedFileTemplate(
    data_dir=folder,
    template=_TEMPLATE,
    dataset_name=data.name,
    split=split,
    filetype_suffix="array_record",
  )
  names = [shard_name(data, split, i, len(lengths)) for i in range(len(lengths))]
  size = sum((folder / name).stat().st_size for name in names)
  return tfds.core.splits.SplitInfo(
    name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
  )
