"""Pixels and numbers as TensorFlow computed them once; tests/tf compares with it on many more."""

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


def test_files_are_decoded_as_by_tensorflow(recorded):
  names = [name.removeprefix("file/") for name in recorded if name.startswith("file/")]
  assert len(names) == 8
  for name in names:
    pixels = images.decode(recorded[f"file/{name}"].tobytes())
    np.testing.assert_array_equal(pixels, recorded[f"pixels/{name}"], err_msg=name)
  precise = images.decode(recorded["file/420"].tobytes(), precise=True)
  assert (precise != recorded["pixels/420"]).mean() > 0.2


def test_images_are_resized_as_by_tensorflow_to_the_bit(recorded):
  image = recorded["pixels/444"].astype(np.float32)
  names = [name for name in recorded if name.startswith("resized/")]
  assert len(names) == 20
  for name in names:
    _, method, antialias, height, width = name.split("/")
    method = "keyscubic" if method == "bicubic" else method
    resized = resizing.resize(
      image, int(height), int(width), antialias=antialias == "1", method=method
    )
    np.testing.assert_array_equal(resized, recorded[name], err_msg=name)


def test_boxes_and_numbers_are_those_of_tensorflow(recorded):
  for i, bbox in enumerate(recorded["boxes"]):
    drawn = parse.parse("draw_bbox")({"image": recorded["pixels/444"], "bbox": bbox})["image"]
    np.testing.assert_array_equal(drawn, recorded[f"drawn/{i}"])
  for kind in (np.float32, np.float64):
    texts = [text_ops.number_text(kind(number)) for number in recorded["numbers"]]
    assert texts == recorded[f"texts/{kind.__name__}"].tolist()
