"""Records what TensorFlow decodes, resizes, draws and prints: tests/golden/pixels/tf_pixels.npz.

.venv-tf/bin/python tests/golden/record_tf_pixels.py   (`make test-tf` makes .venv-tf)
"""

import io
import pathlib

import numpy as np
import tensorflow as tf
from PIL import Image

FILE = pathlib.Path(__file__).with_name("pixels") / "tf_pixels.npz"
METHODS = ("bilinear", "bicubic", "area", "mitchellcubic", "gaussian")
NUMBERS = (0.1, 1 / 3, 1e6, 1e-5, 123456.789, 16777216.0, 2.0, -7.25)
BOXES = ((0.1, 0.2, 0.7, 0.93), (-0.5, 0.5, 0.4, 1.5), (1.2, 0, 1.4, 1), (0.6, 0.1, 0.2, 0.9))


def saved(image, format, **options):
  """The bytes of a file."""
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def files():
  """{name: encoded image}."""
  y, x = np.mgrid[:45, :62][..., None]
  waves = 127 + 100 * np.sin(x / [3, 7, 11, 5] + y / [9, 4, 6, 13])
  pixels = np.random.default_rng(0).normal(waves, 12).clip(0, 255).astype(np.uint8)
  rgb, grey = Image.fromarray(pixels[:, :, :3]), Image.fromarray(pixels[:, :, 0])
  cmyk = saved(Image.merge("CMYK", Image.fromarray(pixels).split()), "JPEG")
  at = cmyk.index(b"Adobe") - 4
  palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=9)
  return {
    "420": saved(rgb, "JPEG", quality=80), "444": saved(rgb, "JPEG", quality=95, subsampling=0),
    "grey": saved(grey, "JPEG", progressive=True), "cmyk": cmyk,
    "inverted": cmyk[:at] + cmyk[at + 2 + int.from_bytes(cmyk[at + 2 : at + 4]) :],
    "mask": saved(grey.convert("1"), "PNG"), "rgba": saved(Image.fromarray(pixels), "PNG"),
    "gif": saved(palette, "GIF", transparency=2),
  }  # fmt: skip


def main():
  """Writes FILE."""
  arrays = {}
  for name, encoded in files().items():
    arrays[f"file/{name}"] = np.frombuffer(encoded, np.uint8)
    arrays[f"pixels/{name}"] = tf.io.decode_image(encoded, 3, expand_animations=False).numpy()
  image = arrays["pixels/444"]
  for method in METHODS:
    for antialias in (0, 1):
      for height, width in ((12, 20), (52, 30)):
        resized = tf.image.resize(image, (height, width), method=method, antialias=bool(antialias))
        arrays[f"resized/{method}/{antialias}/{height}/{width}"] = resized.numpy()
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
