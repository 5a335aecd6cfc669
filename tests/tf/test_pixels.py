"""Decoded and resized pixels, numbers as text, boxes and random windows are those of TensorFlow."""

import io
import os
import pathlib
import random

import numpy as np
import pytest
import simplejpeg
from PIL import Image

pytest.importorskip("tensorflow", reason="`make test-tf` installs TensorFlow")
import tensorflow as tf

from pgjax.data import images, resizing
from pgjax.data.pp import crop_ops, parse, text_ops

pytestmark = pytest.mark.tf
ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("PGJAX_SHARED_DATA", ROOT.parent / "shared/data"))
SIDES = (224, 448, 896)


def saved(image, format, **options):
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def noise(rng, height, width, channels=3):
  """Noise, waves, or both."""
  y, x = np.mgrid[:height, :width][..., None]
  kind = rng.integers(3)
  pixels = rng.integers(0, 256, (height, width, channels)).astype(np.float32)
  if kind:
    periods = rng.uniform(2, 60, (2, channels))
    pixels = 127 + 120 * np.sin(x / periods[0] + y / periods[1]) + (kind - 1) * (pixels - 127) / 8
  return np.clip(pixels, 0, 255).astype(np.uint8)


def decoded(encoded):
  return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def check_picture(encoded, sides):
  theirs, ours = decoded(encoded), images.decode(encoded)
  np.testing.assert_array_equal(ours, theirs.numpy())
  for side in sides:
    for antialias in (False, True):
      resized = tf.image.resize(theirs, (side, side), antialias=antialias)
      resized = tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8).numpy()
      again = resizing.resize(ours, side, side, antialias=antialias)
      np.testing.assert_array_equal(again, resized)


def test_real_images():
  paths = [*sorted(SHARED.rglob("*.png"))[::25][:15], *sorted(SHARED.rglob("*.jpg"))[::16][:25]]
  if len(paths) < 40:
    pytest.skip(f"{SHARED} has {len(paths)} of the 40 images (PGJAX_SHARED_DATA)")
  for path in paths:
    check_picture(path.read_bytes(), SIDES)


@pytest.mark.parametrize("part", range(4))
def test_random_images(part):
  """75 of 300; PGJAX_TF_SEED draws others."""
  rng = np.random.default_rng([int(os.environ.get("PGJAX_TF_SEED", 0)), part])
  for i in range(75):
    height, width = rng.integers(1, 700, 2)
    picture = Image.fromarray(noise(rng, height, width))
    options = dict(quality=int(rng.integers(20, 100)), subsampling=int(rng.integers(3)))
    format, options = ("PNG", dict(compress_level=1)) if i % 2 else ("JPEG", options)
    check_picture(saved(picture, format, **options), SIDES)


def kinds(rng):
  """Encoded images of every kind that TensorFlow decodes: (name, bytes)."""
  height, width = rng.integers(1, 90, 2)
  rgb, rgba, two = (noise(rng, height, width, channels) for channels in (3, 4, 2))
  rgb, rgba, grey = Image.fromarray(rgb), Image.fromarray(rgba), Image.fromarray(rgb[:, :, 0])
  palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=int(rng.integers(2, 256)))
  cmyk = Image.merge("CMYK", rgba.split())
  for mode in (rgb, grey, cmyk):
    for progressive in (False, True):
      yield f"JPEG {mode.mode}", saved(mode, "JPEG", progressive=progressive, optimize=True)
  adobe = saved(cmyk, "JPEG")
  at = adobe.index(b"Adobe") - 4
  length = int.from_bytes(adobe[at + 2 : at + 4])
  yield "JPEG CMYK without Adobe", adobe[:at] + adobe[at + 2 + length :]
  ycck = bytearray(adobe)
  ycck[at + 15] = 2
  yield "JPEG YCCK", bytes(ycck)
  for sampling in ("422", "440", "411"):
    pixels = np.ascontiguousarray(rgb)
    yield f"JPEG {sampling}", simplejpeg.encode_jpeg(pixels, 60, colorsubsampling=sampling)
  rotated = Image.Exif()
  rotated[0x0112] = 6
  yield "JPEG rotated", saved(rgb, "JPEG", exif=rotated)
  yield "JPEG RGB", saved(rgb, "JPEG", keep_rgb=True)
  yield "JPEG with more bytes", saved(rgb, "JPEG") + b"more"
  for mode in (rgb, rgba, grey, Image.fromarray(two, "LA"), grey.convert("1"), palette):
    yield f"PNG {mode.mode}", saved(mode, "PNG")
  deep = np.asarray(rgba).astype(np.uint16) * 251 + 77
  for channels in (1, 2, 3, 4):
    yield f"PNG 16 x {channels}", tf.io.encode_png(deep[:, :, :channels]).numpy()
  for transparency in (None, 1):
    options = {} if transparency is None else dict(transparency=transparency)
    yield "PNG palette", saved(palette, "PNG", **options)
    yield "GIF palette", saved(palette, "GIF", **options)
  yield "GIF animated", saved(rgb, "GIF", save_all=True, append_images=[rgb.rotate(180)])
  yield "BMP", saved(rgb, "BMP")
  yield "WebP", saved(rgb, "WEBP", lossless=True)


def test_every_kind_of_file():
  rng = np.random.default_rng(1)
  for _ in range(12):
    for name, encoded in kinds(rng):
      np.testing.assert_array_equal(images.decode(encoded), decoded(encoded).numpy(), err_msg=name)


def test_precise_jpegs():
  rng = np.random.default_rng(2)
  for _ in range(12):
    encoded = saved(Image.fromarray(noise(rng, *rng.integers(1, 90, 2))), "JPEG")
    theirs = tf.image.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(images.decode(encoded, precise=True), theirs.numpy())


@pytest.mark.parametrize("method", [*resizing.METHODS, "bicubic"])
def test_every_method(method):
  """lanczos is equal to the last bits of its sine, which uint8 hides in almost all values."""
  theirs_by = "bicubic" if method in ("keyscubic", "bicubic") else method
  rng = np.random.default_rng(3)
  for antialias in (True,) if method == "bicubic" else (False, True):
    for _ in range(10):
      image = noise(rng, *rng.integers(1, 150, 2))
      size = tuple(int(n) for n in rng.integers(1, 150, 2))
      if size == image.shape[:2]:
        continue
      theirs = tf.image.resize(image, size, method=theirs_by, antialias=antialias)
      theirs = tf.cast(tf.clip_by_value(theirs, 0, 255), tf.uint8).numpy()
      ours = parse.parse(f"resize({size}, method='{method}', antialias={antialias})")
      differing = (ours({"image": image})["image"] != theirs).mean()
      assert differing <= (1e-3 if "lanczos" in method else 0)


def test_scaled_sides():
  rng = np.random.default_rng(4)
  for name in ("small", "long"):
    for _ in range(20):
      image, side = noise(rng, *rng.integers(2, 200, 2)), int(rng.integers(20, 200))
      which = min if name == "small" else max
      factor = tf.cast(side, tf.float32) / tf.cast(which(image.shape[:2]), tf.float32)
      sides = tf.cast(tf.round(tf.cast(image.shape[:2], tf.float32) * factor), tf.int32)
      theirs = tf.image.resize(image, sides, method="area")
      theirs = tf.cast(tf.clip_by_value(theirs, 0, 255), tf.uint8).numpy()
      ours = parse.parse(f"resize_{name}({side})")({"image": image})["image"]
      np.testing.assert_array_equal(ours, theirs)


def test_numbers_as_text():
  rng = np.random.default_rng(5)
  floats = np.concatenate([
    rng.normal(size=300) * 10.0 ** rng.integers(-12, 12, 300),
    rng.integers(-(10**9), 10**9, 100) / 1000, [0.0, np.inf, -np.inf, np.nan, 0.1, 1e6],
  ])  # fmt: skip
  values = [np.float64(v) for v in floats] + [np.float32(v) for v in floats]
  values += [np.int64(-5), np.uint8(200), np.bool_(True), np.arange(7), np.zeros((2, 3))]
  values += [np.zeros((2, 1, 2), np.int32), np.float32(floats), np.array([True, False])]
  for value in values:
    theirs = tf.strings.format("{}", [tf.constant(value)], summarize=-1).numpy().decode()
    assert text_ops.number_text(value) == theirs, value
  assert text_ops.number_text(0.1) == "0.1"  # Python's floats are float32, as tf.constant(0.1).


def test_boxes():
  rng = np.random.default_rng(6)
  for _ in range(400):
    image = noise(rng, *rng.integers(1, 40, 2))
    box = rng.uniform(-0.7, 1.7, 4).astype(np.float32)
    if rng.integers(3):
      box = box[[0, 1, 2, 3]] if rng.integers(2) else np.sort(box.reshape(2, 2), axis=0).ravel()
    args = image[None].astype(np.float32), box[None, None], tf.constant([[255.0, 0.0, 0.0]])
    theirs = tf.image.draw_bounding_boxes(*args)[0].numpy()
    ours = parse.parse("draw_bbox")({"image": image, "bbox": box})["image"]
    np.testing.assert_array_equal(ours, theirs, err_msg=str(box))


@pytest.mark.parametrize(("height", "width", "low"), [(480, 640, 50), (30, 7, 5), (9, 40, 60)])
def test_random_windows(height, width, low):
  """Means of area, height and place, and the extremes, of 1,500 windows of each."""
  rng, n = random.Random(0), 1500
  limits = (low, 100), (0.75, 1.33)
  ours = np.array([crop_ops._window(rng, (height, width, 3), *limits) for _ in range(n)])  # noqa: SLF001

  def draw(seed):
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      (height, width, 3), tf.zeros([0, 0, 4]), seed=(seed, 1), min_object_covered=0,
      area_range=(low / 100, 1.0), use_image_if_no_bounding_boxes=True,
      aspect_ratio_range=(0.75, 1.33),
    )  # fmt: skip
    return tf.concat([begin[:2], size[:2]], axis=0)

  theirs = tf.function(lambda: tf.map_fn(draw, tf.range(n), parallel_iterations=1))().numpy()
  for name, of in {
    "area": lambda w: w[:, 2] * w[:, 3], "height": lambda w: w[:, 2], "width": lambda w: w[:, 3],
    "top": lambda w: w[:, 0], "left": lambda w: w[:, 1],
  }.items():  # fmt: skip
    a, b = of(ours), of(theirs)
    error = np.sqrt((a.var() + b.var()) / n)
    assert abs(a.mean() - b.mean()) <= 4 * error + 1e-9, name
  assert (ours[:, 0] + ours[:, 2] <= height).all()
  assert (ours[:, 1] + ours[:, 3] <= width).all()
  small = height * width < 500  # Few windows: the same ones.
  if small:
    of_ours, of_theirs = ({tuple(w) for w in each[:, 2:].tolist()} for each in (ours, theirs))
    assert len(of_ours & of_theirs) / len(of_ours | of_theirs) > 0.9


def test_random_jpegs():
  """Each is one of the 42 of TensorFlow."""
  rng = np.random.default_rng(7)
  image = noise(rng, 40, 50)
  theirs = {
    tf.image.adjust_jpeg_quality(image, quality, dct_method=f"INTEGER_{dct}").numpy().tobytes()
    for quality in range(75, 96)
    for dct in ("FAST", "ACCURATE")
  }
  run = parse.parse("random_jpeg(1.0)")
  seen = {run({"image": image, "_seed": (i,), "_epoch": 0})["image"].tobytes() for i in range(150)}
  assert seen <= theirs
  assert len(seen) > 20
