"""Which ops crop images? Factories, as in parse.py; see image_ops.py for what they take."""

from typing import Annotated, Unpack

import numpy as np

from pgjax.call_syntax import Between
from pgjax.data import images
from pgjax.data.pp import text_ops
from pgjax.data.pp.image_ops import Method, Percent, Size, image_op, pair, random_image_op, resizer
from pgjax.data.pp.text_ops import Route
from pgjax.errors import UserError

_Ratio = Annotated[float, Between(0.01, 100)]
_ATTEMPTS = 100


def random_crop(crop_size: Size, **route: Unpack[Route]):
  """Crops a window of this size at a random position."""
  height, width = pair(crop_size)

  def draw(rng, shape):
    if shape[0] < height or shape[1] < width:
      raise UserError(f"random_crop({crop_size}) does not fit into an image of {shape[:2]}")
    top = rng.randrange(shape[0] - height + 1)
    left = rng.randrange(shape[1] - width + 1)
    return lambda image: image[top : top + height, left : left + width]

  return random_image_op(draw, route)


def inception_crop(
  size: Size | None = None,
  area_min: Percent = 5,
  area_max: Percent = 100,
  method: Method = "bilinear",
  antialias: bool = False,
  **route: Unpack[Route],
):
  """Crops area_min to area_max percent with aspect 0.75 to 1.33, and resizes to `size`.

  Windows have the distribution of big_vision's. After 100 misfits the whole image is used.
  """
  _check_areas(area_min, area_max)

  def draw(rng, shape):
    top, left, height, width = _window(rng, shape, (area_min, area_max), (0.75, 1.33))

    def change(image):
      window = image[top : top + height, left : left + width]
      return window if size is None else resizer(size, method, antialias)(window)

    return change

  return random_image_op(draw, route)


def decode_jpeg_and_inception_crop(
  size: Size | None = None,
  area_min: Percent = 5,
  area_max: Percent = 100,
  ratio_min: _Ratio = 0.75,
  ratio_max: _Ratio = 1.33,
  method: Method = "bilinear",
  antialias: bool = False,
  **route: Unpack[Route],
):
  """decode and inception_crop in one, with limits of the aspect ratio; of any image format."""
  _check_areas(area_min, area_max)
  if ratio_min > ratio_max:
    raise UserError(f"ratio_min={ratio_min} must not be above ratio_max={ratio_max}.")

  def apply(example):
    rng = text_ops.example_rng(example)

    def change(encoded):
      image = images.decode(encoded)
      limits = (area_min, area_max), (ratio_min, ratio_max)
      top, left, height, width = _window(rng, image.shape, *limits)
      window = image[top : top + height, left : left + width]
      return window if size is None else resizer(size, method, antialias)(window)

    return image_op(change, route, takes=bytes)(example)

  return apply


def central_crop(crop_size: Size | None = None, **route: Unpack[Route]):
  """Crops a window of this size, or the largest square, from the middle."""

  def draw(rng, shape):
    height, width = pair(crop_size or min(shape[:2]))
    if shape[0] < height or shape[1] < width:
      raise UserError(f"central_crop({crop_size}) does not fit into an image of {shape[:2]}")
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    return lambda image: image[top : top + height, left : left + width]

  return random_image_op(draw, route)


def _check_areas(area_min, area_max):
  if area_min > area_max:
    raise UserError(f"area_min={area_min} must not be above area_max={area_max}.")


def _window(rng, shape, percents, ratios) -> tuple[int, int, int, int]:
  """A random (top, left, height, width) as tf.image.sample_distorted_bounding_box draws it.

  The aspect ratio is uniform, and so is the height between those of the two areas. A window shorter
  or narrower than the image never touches its lower or right edge.
  """
  height, width = shape[:2]
  low, high = (
    np.float32(percent / 100) * np.float32(width) * np.float32(height) for percent in percents
  )
  for _ in range(_ATTEMPTS):
    ratio = np.float32(rng.uniform(*ratios))
    size = _window_size(rng, height, width, (low, high), ratio)
    if size is not None:
      top = rng.randrange(height - size[0]) if size[0] < height else 0
      left = rng.randrange(width - size[1]) if size[1] < width else 0
      return top, left, *size
  return 0, 0, height, width


def _window_size(rng, height, width, areas, ratio) -> tuple[int, int] | None:
  """(height, width), None if that of this aspect ratio does not fit."""
  low, high = areas
  shortest, tallest = (int(np.rint(np.sqrt(area / ratio))) for area in areas)
  if np.rint(tallest * ratio) > width:
    tallest = int((width + 0.5 - 1e-7) / ratio)
    tallest -= int(np.rint(tallest * ratio) > width)
  tallest = min(tallest, height)
  rows = rng.randint(shortest, tallest) if shortest < tallest else tallest
  columns = int(np.rint(rows * ratio))
  if rows * columns < low:  # By rounding.
    rows += 1
    columns = int(np.rint(rows * ratio))
  if rows * columns > high:
    rows -= 1
    columns = int(np.rint(rows * ratio))
  fits = low <= rows * columns <= high and 0 < rows <= height and 0 < columns <= width
  return (rows, columns) if fits else None


OPS = (random_crop, central_crop, inception_crop, decode_jpeg_and_inception_crop)
