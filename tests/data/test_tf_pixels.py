"""Pixels and numbers as TensorFlow computed them once; tests/tf compares with it on many more."""

import hashlib
import io
import pathlib

import numpy as np
import pytest

from pgjax.data import images, resizing
from pgjax.data.pp import parse, text_ops

RECORDED = pathlib.Path(__file__).resolve().parents[1] / "golden/pixels/tf_pixels.npz"


@pytest.fixture(scope="module")
def recorded():
  with np.load(io.BytesIO(RECORDED.read_bytes())) as arrays:
    return dict(arrays)


def check(pixels, expected, name):
  """Equal to recorded pixels, or to their SHA-256."""
  if expected.dtype.kind == "U":
    pixels, expected = hashlib.sha256(pixels.tobytes()).hexdigest(), expected.item()
  np.testing.assert_array_equal(pixels, expected, err_msg=name)


def decoded(recorded, name, **options):
  return images.decode(recorded[f"file/{name}"].tobytes(), **options)


def test_files_are_decoded_as_by_tensorflow(recorded):
  names = [name.removeprefix("file/") for name in recorded if name.startswith("file/")]
  assert len(names) == 35
  for name in names:
    check(decoded(recorded, name), recorded[f"pixels/{name}"], name)
  check(decoded(recorded, "jpeg 420", precise=True), recorded["precise"], "precise")


def test_images_are_resized_as_by_tensorflow_to_the_bit(recorded):
  image = recorded["pixels/jpeg 444"].astype(np.float32)
  names = [name for name in recorded if name.startswith("resized/")]
  assert len(names) == 24
  for name in names:
    _, method, antialias, height, width = name.split("/")
    method = "keyscubic" if method == "bicubic" else method
    resized = resizing.resize(
      image, int(height), int(width), antialias=antialias == "1", method=method
    )
    np.testing.assert_array_equal(resized, recorded[name], err_msg=name)


def test_files_have_the_bytes_of_tensorflow_at_every_side(recorded):
  """JPEG and PNG, shrunk and enlarged, at 224, 448 and 896 pixels with and without antialias."""
  names = [name for name in recorded if name.startswith("sides/")]
  assert len(names) == 18
  for name in names:
    _, file, side, antialias = name.split("/")
    op = parse.parse(f"resize({side}, antialias={antialias == '1'})")
    check(op({"image": decoded(recorded, file)})["image"], recorded[name], name)
  names = [name for name in recorded if name.startswith("scaled/")]
  assert len(names) == 6
  for name in names:
    _, file, which = name.split("/")
    op = parse.parse(f"resize_{which}(224, antialias=False)")
    check(op({"image": decoded(recorded, file)})["image"], recorded[name], name)


def test_jpegs_of_a_quality_are_those_of_tensorflow(recorded):
  names = [name for name in recorded if name.startswith("through jpeg/")]
  assert len(names) == 6
  for name in names:
    _, quality, dct = name.split("/")
    pixels = recorded["pixels/jpeg 444"]
    check(images.through_jpeg(pixels, int(quality), fast=dct == "fast"), recorded[name], name)


def test_boxes_and_numbers_are_those_of_tensorflow(recorded):
  for i, bbox in enumerate(recorded["boxes"]):
    drawn = parse.parse("draw_bbox")({"image": recorded["pixels/jpeg 444"], "bbox": bbox})["image"]
    np.testing.assert_array_equal(drawn, recorded[f"drawn/{i}"])
  for kind in (np.float32, np.float64):
    texts = [text_ops.number_text(kind(number)) for number in recorded["numbers"]]
    assert texts == recorded[f"texts/{kind.__name__}"].tolist()
