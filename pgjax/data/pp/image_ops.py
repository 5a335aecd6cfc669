"""Which ops change pixels? Factories, as in parse.py.

Every op reads `inkey` and writes `outkey` (`key` is both; "image" by default), and takes one image
or a list of images (frames), which all get the same random change.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Literal, Unpack

import numpy as np

from pgjax.call_syntax import Between
from pgjax.data import images, resizing
from pgjax.data.pp import text_ops
from pgjax.data.pp.text_ops import Route, routed
from pgjax.errors import UserError

_Side = Annotated[int, Between(1, 2048)]
_Size = _Side | tuple[_Side, _Side]
_Probability = Annotated[float, Between(0, 1)]
_Percent = Annotated[float, Between(0, 100, but_not=(0,))]
_Method = Literal["bicubic", *resizing.METHODS]
_Level = Annotated[float, Between(-1e6, 1e6)]
_Levels = _Level | tuple[_Level, _Level, _Level]  # Per channel.


def _image_op(change, route, takes=np.ndarray):
  """Applies `change` to one image, or to each of a list."""
  inkey, outkey = routed(route, "image")

  def apply(example):
    value = example[inkey]
    changed = [change(image) for image in _listed(value, inkey, takes)]
    return example | {outkey: changed if isinstance(value, (list, tuple)) else changed[0]}

  return apply


def _listed(value, name, takes):
  """One or several images as a list, with checked types."""
  listed = value if isinstance(value, (list, tuple)) else [value]
  for image in listed:
    if not isinstance(image, takes):
      raise UserError(
        f"'{name}' is {type(image).__name__}; decode takes encoded bytes, and the other ops on "
        "images take decoded pixels"
      )
  return listed


def _random_image_op(draw, route):
  """`draw(rng, shape)` returns the change for all frames of an example."""
  inkey, _ = routed(route, "image")

  def apply(example):
    if np.size(example.get("boxes", ())):
      raise UserError(
        "this op moves pixels and leaves the boxes where they were; flip_boxes_lr moves both, or"
        ' remove the boxes with drop("boxes")'
      )
    first = _listed(example[inkey], inkey, np.ndarray)[0]
    change = draw(text_ops.example_rng(example), first.shape)
    return _image_op(change, route)(example)

  return apply


def decode(channels: Literal[3] = 3, precise: bool = False, **route: Unpack[Route]):
  """Encoded bytes -> uint8 [H, W, 3]; see images.decode.

  `precise` decodes JPEGs as Pillow and Hugging Face's processors do, else they are TensorFlow's.
  """
  del channels
  return _image_op(functools.partial(images.decode, precise=precise), route, takes=bytes)


def resize(
  size: _Size, method: _Method = "bilinear", antialias: bool = False, **route: Unpack[Route]
):
  """Resizes to a square of `size` or to (height, width), without preserving the aspect ratio.

  Bit-equal to TensorFlow, except "bicubic" without antialias=True: that is Hugging Face's, which
  always antialiases and rounds. TensorFlow's bicubic without antialiasing is "keyscubic".
  """
  return _image_op(_resizer(size, method, antialias), route)


def _resizer(size, method: str, antialias: bool) -> Callable[[np.ndarray], np.ndarray]:
  height, width = _pair(size)
  if method == "bicubic" and not antialias:
    return lambda image: resizing.resize_pillow_bicubic(image, height, width)
  method = "keyscubic" if method == "bicubic" else method
  return lambda image: resizing.resize(image, height, width, antialias=antialias, method=method)


def value_range(
  vmin: _Level = -1,
  vmax: _Level = 1,
  in_min: _Levels = 0,
  in_max: _Levels = 255.0,
  clip_values: bool = False,
  **route: Unpack[Route],
):
  """Maps in_min..in_max to vmin..vmax, as float32."""
  if np.abs(np.float32(in_max) - np.float32(in_min)).min() < 1e-6:
    raise UserError(f"in_min={in_min} and in_max={in_max} must differ, by 1e-06 at least.")

  def change(image):
    finite = image.dtype == np.uint8  # Floats may grow with every value_range.
    with np.errstate(over="ignore", invalid="ignore"):
      image = images.value_range(image, vmin, vmax, in_min, in_max)
    if not finite and not np.isfinite(image).all():
      raise UserError("the numbers after value_range are too large for float32")
    return np.clip(image, vmin, vmax) if clip_values else image

  return _image_op(change, route)


def flip_lr(probability: _Probability = 0.5, **route: Unpack[Route]):
  """Mirrors left and right with this probability."""
  return _flip(1, probability, route)


def flip_ud(probability: _Probability = 0.5, **route: Unpack[Route]):
  """Mirrors top and bottom with this probability."""
  return _flip(0, probability, route)


def _flip(axis, probability, route):
  def draw(rng, shape):
    flipped = rng.random() < probability
    backwards = np.arange(shape[axis])[::-1]  # `take` copies; casting a mirrored view is slow.
    return lambda image: image.take(backwards, axis=axis) if flipped else image

  return _random_image_op(draw, route)


def random_shift(max_pixels: Annotated[int, Between(0, 4096)], **route: Unpack[Route]):
  """Moves the image by up to max_pixels each way; edge pixels fill the gap."""

  def draw(rng, shape):
    down, across = (rng.randint(-max_pixels, max_pixels) for _ in range(2))
    return lambda image: _shifted(_shifted(image, down, axis=0), across, axis=1)

  return _random_image_op(draw, route)


def _shifted(image, offset, axis):
  """Moves along one axis by slices: 4x faster than an index per pixel, 2-6x than np.pad."""
  size = image.shape[axis]
  offset = max(-size, min(size, offset))
  if not offset:
    return image
  moved = np.empty_like(image)
  to, source = moved.swapaxes(0, axis), image.swapaxes(0, axis)
  if offset > 0:
    to[offset:], to[:offset] = source[: size - offset], source[:1]
  else:
    to[: size + offset], to[size + offset :] = source[-offset:], source[-1:]
  return moved


def random_crop(crop_size: _Size, **route: Unpack[Route]):
  """Crops a window of this size at a random position."""
  height, width = _pair(crop_size)

  def draw(rng, shape):
    if shape[0] < height or shape[1] < width:
      raise UserError(f"random_crop({crop_size}) does not fit into an image of {shape[:2]}")
    top = rng.randrange(shape[0] - height + 1)
    left = rng.randrange(shape[1] - width + 1)
    return lambda image: image[top : top + height, left : left + width]

  return _random_image_op(draw, route)


def inception_crop(
  size: _Size | None = None,
  area_min: _Percent = 5,
  area_max: _Percent = 100,
  method: _Method = "bilinear",
  antialias: bool = False,
  **route: Unpack[Route],
):
  """Crops area_min to area_max percent with aspect 3/4 to 4/3, and resizes to `size`.

  As in big_vision, with other random draws. After 100 misfits the whole image is used.
  """
  if area_min > area_max:
    raise UserError(f"area_min={area_min} must not be above area_max={area_max}.")

  def draw(rng, shape):
    top, left, height, width = _inception_window(rng, shape, area_min / 100, area_max / 100)

    def change(image):
      window = image[top : top + height, left : left + width]
      return window if size is None else _resizer(size, method, antialias)(window)

    return change

  return _random_image_op(draw, route)


def _inception_window(rng, shape, area_min, area_max):
  for _ in range(100):
    area = rng.uniform(area_min, area_max) * shape[0] * shape[1]
    aspect = rng.uniform(0.75, 4 / 3)
    height, width = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
    if 0 < height <= shape[0] and 0 < width <= shape[1]:
      top, left = rng.randrange(shape[0] - height + 1), rng.randrange(shape[1] - width + 1)
      return top, left, height, width
  return 0, 0, shape[0], shape[1]


def _pair(size) -> tuple[int, int]:
  return tuple(size) if isinstance(size, list | tuple) else (size, size)


OPS = (decode, resize, value_range, flip_lr, flip_ud, random_shift, random_crop, inception_crop)
