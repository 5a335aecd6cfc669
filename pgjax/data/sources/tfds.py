"""How is a data set of pgjax.prepare or TensorFlow Datasets read, without TensorFlow?"""

import os
import pathlib
import re

import numpy as np

from pgjax.errors import UserError

PREPARED_HERE = ("chartqa",)  # By pgjax.prepare, from their official downloads.


class Tfds:
  """The newest version below data_dir/name; the feature `image` stays encoded."""

  def __init__(self, name, split, data_dir=None):
    self.name, self.split = name, split
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = _prepared_folder(name, pathlib.Path(os.path.expanduser(data_dir)))
    import tensorflow_datasets as tfds  # Takes seconds.

    builder = tfds.builder_from_directory(folder)
    splits = set(re.findall(r"[a-zA-Z_]\w*", split)) - {"shard"}
    if unknown := sorted(splits - set(builder.info.splits)):
      raise UserError(
        f"Data set '{name}' has no split {unknown}; it has {sorted(builder.info.splits)}."
      )

    class Encoded(tfds.decode.SkipDecoding):  # Also for a sequence of images.
      def decode_batch_example_np(self, examples):
        return list(examples)

    decoders = {"image": Encoded()} if "image" in builder.info.features else None
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
    if example.get("id") is None:
      example["id"] = f"{self.name}:{self.split}:{i}"
    return example

  def texts(self, i):
    """The example without its image."""
    return {k: v for k, v in self[i].items() if k != "image"}

  def where(self, i):
    """Name, split and row."""
    return f"data set {self.name}, split {self.split}, row {i}"


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
  dataset = name.split("/")[0]
  how = (
    f"python -m pgjax.prepare {dataset} --raw=FOLDER_OF_ITS_DOWNLOAD --out={data_dir}"
    if dataset in PREPARED_HERE
    else "prepare it with TFDS as ArrayRecord (docs of tensorflow_datasets: download_and_prepare)"
  )
  raise UserError(
    f"Data set '{name}' is not prepared in {data_dir}: {how}; or set its folder with data_dir= or "
    "the environment variable TFDS_DATA_DIR."
  )
