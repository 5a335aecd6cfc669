import io
import json

import numpy as np
import pytest
from PIL import Image

from pgjax.data import image_size, loader as loader_lib, pipeline, tokenizer
from pgjax.errors import UserError

PP = "decode|resize(16)|value_range(-1, 1)|boxes_to_suffix|keep('image', 'prefix', 'suffix')"


def encoded(width, height, orientation=None, kind="JPEG"):
  file, exif = io.BytesIO(), Image.Exif()
  if orientation:
    exif[0x0112] = orientation
  Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, kind, exif=exif)
  return file.getvalue()


def example(image, width, height, **more):
  return dict(image=image, width=width, height=height, boxes=[[0, 0, 1, 1]]) | more


@pytest.mark.parametrize(
  ("declared", "is_scaled"),
  [((64, 32), False), ((64.0, 32), False), ((640, 320), True), ((427, 213), True), ((3, 1), True)],
)
def test_the_same_aspect_ratio_is_accepted(declared, is_scaled):
  note = image_size.check(example(encoded(64, 32), *declared))
  assert note == ("scaled" if is_scaled else "")


@pytest.mark.parametrize("declared", [(32, 64), (64, 64), (64, 34), (640, 480)])
def test_another_aspect_ratio_raises(declared):
  with pytest.raises(
    UserError, match=r"declares an image of .* its file is 64 x 32, which has ano"
  ):
    image_size.check(example(encoded(64, 32), *declared))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_named_where_it_explains_the_size(kind):
  turned = encoded(64, 32, orientation=6, kind=kind)
  with pytest.raises(UserError, match=r"EXIF orientation 6 turns it to 32 x 64, but .*exif_transp"):
    image_size.check(example(turned, 32, 64))
  assert image_size.check(example(turned, 64, 32)) == "turned"
  assert image_size.check(example(turned, 64, 32, boxes=[])) == ""
  with pytest.raises(UserError, match="another aspect ratio"):
    image_size.check(example(turned, 640, 480))


def test_columns_that_are_no_size_are_not_compared():
  image = encoded(64, 32)
  for row in (
    dict(image=image, width=1, height=9),  # Without boxes.
    example(image, "12 cm", "3 cm"),
    example(image, None, None),
    example([image], 1, 9),
    example(np.zeros((2, 2, 3)), 1, 9),
  ):
    assert not image_size.check(row)


def test_broken_exif_is_no_orientation():
  assert image_size.orientation(b"no image") == 1
  broken = encoded(64, 32, orientation=6).replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\0\xff")
  assert image_size.orientation(broken) == 1


@pytest.mark.parametrize("for_training", [True, False])
def test_every_image_that_a_run_opens_is_compared(tmp_path, caplog, for_training):
  for i, size in enumerate([(64, 32), (32, 64), (32, 16)]):
    (tmp_path / f"{i}.jpg").write_bytes(encoded(*size))
  images = [dict(id=i, file_name=f"{i}.jpg", width=64, height=32) for i in range(3)]
  content = dict(images=images, annotations=[], categories=[dict(id=1, name="cat")])
  (tmp_path / "a.json").write_text(json.dumps(content))
  [part] = pipeline.parts(dict(name="coco", fname=str(tmp_path / "a.json")))
  layout = loader_lib.Layout(16, 32, 0, for_training)
  loader = loader_lib.Loader(part, PP, tokenizer.load("tiny"), layout, seed=0)
  caplog.clear()
  loader(0, 0)
  assert caplog.text == ""
  loader(0, 2)
  loader(0, 2)
  assert caplog.text.count("the image file is larger or smaller") == 1
  with pytest.raises(
    UserError, match=r"a.json, image 1 \(1.jpg\): the data declares an image of 64"
  ):
    loader(0, 1)
