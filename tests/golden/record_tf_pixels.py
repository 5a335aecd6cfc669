"""Records what TensorFlow decodes, resizes, draws and prints: tests/golden/pixels/tf_pixels.npz.

.venv-tf/bin/python tests/golden/record_tf_pixels.py   (`make test-tf` makes .venv-tf)
"""

import hashlib
import io
import pathlib

import numpy as np
import simplejpeg
import tensorflow as tf
from PIL import Image

FILE = pathlib.Path(__file__).with_name("pixels") / "tf_pixels.npz"
METHODS = ("bilinear", "nearest", "bicubic", "area", "mitchellcubic", "gaussian")
SIDES = (224, 448, 896)
NUMBERS = (0.1, 1 / 3, 1e6, 1e-5, 123456.789, 16777216.0, 2.0, -7.25)
BOXES = ((0.1, 0.2, 0.7, 0.93), (-0.5, 0.5, 0.4, 1.5), (1.2, 0, 1.4, 1), (0.6, 0.1, 0.2, 0.9))


def saved(image, format, **options):
  """The bytes of a file."""
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def waves(height, width):
  """uint8 [height, width, 4] of waves and noise."""
  y, x = np.mgrid[:height, :width][..., None]
  pixels = 127 + 100 * np.sin(x / [3, 7, 11, 5] + y / [9, 4, 6, 13])
  return np.random.default_rng(0).normal(pixels, 12).clip(0, 255).astype(np.uint8)


def files():
  """{name: encoded image}; the first word is the format."""
  pixels, few = waves(45, 62), waves(17, 23)
  rgb, grey = Image.fromarray(pixels[:, :, :3]), Image.fromarray(few[:, :, 0])
  found = {
    "jpeg 420": saved(rgb, "JPEG", quality=80),
    "jpeg 444": saved(rgb, "JPEG", quality=95, subsampling=0),
    "png rgba": saved(Image.fromarray(pixels), "PNG"),
    "jpeg large": saved(Image.fromarray(waves(740, 1003)[:, :, :3]), "JPEG", quality=20),
  }
  return found | jpegs(few, grey) | others(few, grey)


def jpegs(pixels, grey):
  """Every kind of JPEG: subsampling, order, colours, and a rotation that is not applied."""
  rgb, every = Image.fromarray(pixels[:, :, :3]), np.ascontiguousarray(pixels[:, :, :3])
  cmyk = saved(Image.merge("CMYK", Image.fromarray(pixels).split()), "JPEG")
  at = cmyk.index(b"Adobe") - 4
  ycck = bytearray(cmyk)
  ycck[at + 15] = 2
  rotated = Image.Exif()
  rotated[0x0112] = 6
  return {
    **{
      f"jpeg {name}": simplejpeg.encode_jpeg(every, 70, colorsubsampling=name)
      for name in ("422", "440", "411")
    },
    "jpeg progressive": saved(rgb, "JPEG", progressive=True),
    "jpeg optimized": saved(rgb, "JPEG", optimize=True),
    "jpeg restarts": saved(rgb, "JPEG", restart_marker_blocks=1),
    "jpeg rotated": saved(rgb, "JPEG", exif=rotated),
    "jpeg of rgb": saved(rgb, "JPEG", keep_rgb=True),
    "jpeg with more bytes": saved(rgb, "JPEG") + b"more",
    "jpeg column": saved(rgb.crop((0, 0, 1, 17)), "JPEG"),
    "jpeg row": saved(rgb.crop((0, 0, 23, 1)), "JPEG"),
    "jpeg grey": saved(grey, "JPEG", progressive=True), "jpeg cmyk": cmyk,
    "jpeg inverted": cmyk[:at] + cmyk[at + 2 + int.from_bytes(cmyk[at + 2 : at + 4]) :],
    "jpeg ycck": bytes(ycck),
  }  # fmt: skip


def others(pixels, grey):
  """Every kind of PNG that TensorFlow reads, and the other formats."""
  rgb = Image.fromarray(pixels[:, :, :3])
  deep = pixels.astype(np.uint16) * 251 + 77
  palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=9)
  return {
    "png rgb": saved(rgb, "PNG"), "png grey": saved(grey, "PNG"),
    "png mask": saved(grey.convert("1"), "PNG"),
    "png grey alpha": saved(Image.fromarray(np.ascontiguousarray(pixels[:, :, 2:]), "LA"), "PNG"),
    "png palette": saved(palette, "PNG"),
    "png palette of 4 bits": saved(palette, "PNG", bits=4),
    "png palette transparent": saved(palette, "PNG", transparency=1),
    **{
      f"png of 16 bits, {name}": tf.io.encode_png(deep[:, :, :channels]).numpy()
      for name, channels in dict(grey=1, rgb=3, rgba=4).items()
    },
    "gif": saved(palette, "GIF"), "gif transparent": saved(palette, "GIF", transparency=2),
    "gif animated": saved(rgb, "GIF", save_all=True, append_images=[rgb.rotate(180)]),
    "bmp": saved(rgb, "BMP"), "webp lossless": saved(rgb, "WEBP", lossless=True),
    "webp": saved(rgb, "WEBP"),
  }  # fmt: skip


def bytes_of(resized):
  """Resized float32 pixels as uint8, as big_vision's op stores them."""
  return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8)


def digest(pixels):
  """SHA-256, where pixels would fill the file."""
  return np.array(hashlib.sha256(pixels.numpy().tobytes()).hexdigest())


def resized(image, large):
  """By every method in float32, and images of every format at the sides of the model."""
  arrays = {}
  for method in METHODS:
    for antialias in (0, 1):
      for height, width in ((12, 20), (52, 30)):
        pixels = tf.image.resize(image, (height, width), method=method, antialias=bool(antialias))
        arrays[f"resized/{method}/{antialias}/{height}/{width}"] = pixels.numpy()
  for name, picture in large.items():
    for side in SIDES:
      for antialias in (0, 1):
        pixels = tf.image.resize(picture, (side, side), antialias=bool(antialias))
        arrays[f"sides/{name}/{side}/{antialias}"] = digest(bytes_of(pixels))
    for which, reduce in dict(small=tf.reduce_min, long=tf.reduce_max).items():
      sides = tf.cast(tf.shape(picture)[:2], tf.float32)
      sides = tf.cast(tf.round(sides * (tf.cast(SIDES[0], tf.float32) / reduce(sides))), tf.int32)
      pixels = tf.image.resize(picture, sides, method="area")
      arrays[f"scaled/{name}/{which}"] = digest(bytes_of(pixels))
  return arrays


def main():
  """Writes FILE."""
  arrays = {}
  for name, encoded in files().items():
    arrays[f"file/{name}"] = np.frombuffer(encoded, np.uint8)
    pixels = tf.io.decode_image(encoded, 3, expand_animations=False)
    arrays[f"pixels/{name}"] = pixels.numpy() if pixels.shape[0] < 100 else digest(pixels)
  encoded, image = files()["jpeg 420"], arrays["pixels/jpeg 444"]
  accurate = tf.image.decode_jpeg(encoded, 3, dct_method="INTEGER_ACCURATE")
  arrays["precise"] = accurate.numpy()
  sources = ("jpeg 420", "png rgba", "jpeg large")
  arrays |= resized(image, {name: tf.io.decode_image(files()[name], 3) for name in sources})
  for quality in (75, 84, 95):
    for dct in ("fast", "accurate"):
      pixels = tf.image.adjust_jpeg_quality(image, quality, dct_method=f"INTEGER_{dct.upper()}")
      arrays[f"through jpeg/{quality}/{dct}"] = digest(pixels)
  red = tf.constant([[255.0, 0.0, 0.0]])
  for i, box in enumerate(BOXES):
    args = tf.constant(image[None], tf.float32), tf.constant([[box]], tf.float32), red
    arrays[f"drawn/{i}"] = tf.image.draw_bounding_boxes(*args)[0].numpy().astype(np.uint8)
  arrays["boxes"], arrays["numbers"] = np.float32(BOXES), np.array(NUMBERS)
  for kind in (np.float32, np.float64):
    texts = [tf.strings.format("{}", [tf.constant(n, kind)]).numpy().decode() for n in NUMBERS]
    arrays[f"texts/{kind.__name__}"] = np.array(texts)
  np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
  main()
