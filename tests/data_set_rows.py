"""What does a prepared data set hold, in a form that golden files and tests compare?

Images of the download are the name of their file, so that the bytes that another version of Pillow
writes are no difference; images that a builder draws are a digest of their pixels.
"""

import hashlib
import io
import os
import pathlib

import numpy as np
from PIL import Image


def features(info) -> dict[str, str]:
  """{name: shape and dtype} of a data set's tensors; `info` is TFDS's."""
  from tensorflow_datasets.core import utils

  tensors = utils.flatten_nest_dict(info.features.get_tensor_info())
  return {name: f"{t.shape} {np.dtype(t.np_dtype)}" for name, t in tensors.items()}


def normal(records: list[bytes], raw: pathlib.Path) -> list[dict]:
  """The features of serialized tf.train.Example."""
  from tensorflow_datasets.proto import tf_example_pb2

  names = {p.read_bytes(): os.fspath(p.relative_to(raw)) for p in raw.rglob("*") if p.is_file()}
  rows = []
  for record in records:
    feature = tf_example_pb2.Example.FromString(record).features.feature
    rows.append({name: _values(feature[name], names, raw) for name in sorted(feature)})
  return rows


def _values(feature, names, raw):
  kind = feature.WhichOneof("kind")
  values = list(getattr(feature, kind).value) if kind else []
  if kind == "float_list":
    return [float(np.float32(value)) for value in values]
  return [_text(value, names, raw) if isinstance(value, bytes) else value for value in values]


def _text(value: bytes, names, raw) -> str:
  if value in names:
    return f"file {names[value]}"
  if value.startswith((b"\xff\xd8", b"\x89PNG")):
    with Image.open(io.BytesIO(value)) as image:
      pixels = np.asarray(image)
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=8).hexdigest()
    return f"{image.mode} {pixels.shape} {digest}"
  text = value.decode()
  folder = os.fspath(raw) + "/"
  return text.removeprefix(folder)  # big_vision's paths are absolute.
