"""Which ops change pixels, and how do they draw their randomness?

Factories for the dict OPS of parse.py: arguments in, a function from example to example out.
Every op routes from `inkey` to `outkey` (`key` is both; "image" if nothing is said), and takes one
image or a list of images (frames), which all get the same random change.
"""

import numpy as np

from pgjax.data import images
from pgjax.data.pp import text_ops
from pgjax.errors import UserError


def _image_op(change, key, inkey, outkey, takes=np.ndarray):
  """Routes `change` from one key to another, over one image or each of a list."""
  inkey, outkey = key or inkey or "image", key or outkey or "image"

  def apply(example):
    value = example[inkey]
    changed = [change(image) for image in _listed(value, inkey, takes)]
    example[outkey] = changed if isinstance(value, (list, tuple)) else changed[0]
    return example

  return apply


def _listed(value, name, takes):
  """One image, or several, as a list; checked to be what the op can work on."""
  listed = value if isinstance(value, (list, tuple)) else [value]
  for image in listed:
    if not isinstance(image, takes):
      raise UserError(
        f"'{name}' is {type(image).__name__}; decode takes encoded bytes, and the other ops on "
        "images take what it has decoded"
      )
  return listed


def _random_image_op(draw, key, inkey, outkey):
  """`draw(rng, shape)` gives a change; the frames of one example all get the same."""
  inkey, outkey = key or inkey or "image", key or outkey or "image"

  def apply(example):
    if np.size(example.get("boxes", ())):
      raise UserError(
        "this op moves pixels and leaves the boxes where they were; flip_boxes_lr moves both, and"
        ' drop("boxes") says that they do not matter'
      )
    first = _listed(example[inkey], inkey, np.ndarray)[0]
    change = draw(text_ops.example_rng(example), first.shape)
    return _image_op(change, None, inkey, outkey)(example)

  return apply


def decode(channels=3, precise=False, *, key=None, inkey=None, outkey=None):
  """Encoded bytes -> uint8 [H, W, 3]; see images.decode. JPEGs are always decoded precisely."""
  del precise
  if channels != 3:
    raise UserError(f"decode makes 3 channels, not {channels}.")
  return _image_op(images.decode, key, inkey, outkey, takes=bytes)


def resize(size, method="bilinear", antialias=False, *, key=None, inkey=None, outkey=None):
  """To a square of `size`, or to (height, width); the aspect ratio is not kept.

  "bilinear" as big_vision does it; "bicubic" as Hugging Face does it, which is always antialiased.
  """
  height, width = _size(size)
  if method == "bicubic":
    return _image_op(lambda image: images.resize_bicubic(image, height, width), key, inkey, outkey)
  if method != "bilinear":
    raise UserError(f"resize: method '{method}' is not there; only 'bilinear' and 'bicubic' are.")
  return _image_op(
    lambda image: images.resize(image, height, width, antialias=antialias), key, inkey, outkey
  )


def value_range(
  vmin=-1, vmax=1, in_min=0, in_max=255.0, clip_values=False, *, key=None, inkey=None, outkey=None
):
  """Maps in_min..in_max to vmin..vmax, as float32."""

  def change(image):
    image = images.value_range(image, vmin, vmax, in_min, in_max)
    return np.clip(image, vmin, vmax) if clip_values else image

  return _image_op(change, key, inkey, outkey)


def flip_lr(probability=0.5, *, key=None, inkey=None, outkey=None):
  """Mirrors left and right with this probability."""

  def draw(rng, shape):
    flipped = rng.random() < probability
    across = np.arange(shape[1])[::-1]  # `take` makes rows of pixels; a view would be slow to cast.
    return lambda image: image.take(across, axis=1) if flipped else image

  return _random_image_op(draw, key, inkey, outkey)


def flip_ud(probability=0.5, *, key=None, inkey=None, outkey=None):
  """Mirrors top and bottom with this probability."""

  def draw(rng, shape):
    del shape
    flipped = rng.random() < probability
    return lambda image: image[::-1] if flipped else image

  return _random_image_op(draw, key, inkey, outkey)


def random_shift(max_pixels, *, key=None, inkey=None, outkey=None):
  """Moves the image by up to so many pixels each way; the edge pixels fill what comes free."""

  def draw(rng, shape):
    del shape
    down, across = (rng.randint(-max_pixels, max_pixels) for _ in range(2))
    return lambda image: _shifted(_shifted(image, down, axis=0), across, axis=1)

  return _random_image_op(draw, key, inkey, outkey)


def _shifted(image, offset, axis):
  """Moved along one axis; slices, because an index for each pixel takes four times as long."""
  size = image.shape[axis]
  offset = max(-size, min(size, offset))
  if not offset:
    return image
  rest = (slice(None),) * axis
  moved = np.empty_like(image)
  if offset > 0:
    moved[(*rest, slice(offset, None))] = image[(*rest, slice(0, size - offset))]
    moved[(*rest, slice(0, offset))] = image[(*rest, slice(0, 1))]
  else:
    moved[(*rest, slice(0, size + offset))] = image[(*rest, slice(-offset, None))]
    moved[(*rest, slice(size + offset, None))] = image[(*rest, slice(size - 1, None))]
  return moved


def random_crop(crop_size, *, key=None, inkey=None, outkey=None):
  """A window of this size, anywhere in the image."""
  height, width = _size(crop_size)

  def draw(rng, shape):
    if shape[0] < height or shape[1] < width:
      raise UserError(f"random_crop({crop_size}) does not fit into an image of {shape[:2]}")
    top = rng.randrange(shape[0] - height + 1)
    left = rng.randrange(shape[1] - width + 1)
    return lambda image: image[top : top + height, left : left + width]

  return _random_image_op(draw, key, inkey, outkey)


def inception_crop(
  size=None,
  area_min=5,
  area_max=100,
  method="bilinear",
  antialias=False,
  *,
  key=None,
  inkey=None,
  outkey=None,
):
  """A window of area_min to area_max percent and of aspect 3/4 to 4/3, resized to `size`.

  As big_vision's; the draws themselves are numpy's. After 100 misfits the whole image is taken.
  """
  if method != "bilinear":
    raise UserError(f"inception_crop: method '{method}' is not there; only 'bilinear' is.")

  def draw(rng, shape):
    top, left, height, width = _inception_window(rng, shape, area_min / 100, area_max / 100)

    def change(image):
      window = image[top : top + height, left : left + width]
      return window if size is None else images.resize(window, *_size(size), antialias=antialias)

    return change

  return _random_image_op(draw, key, inkey, outkey)


def _inception_window(rng, shape, area_min, area_max):
  for _ in range(100):
    area = rng.uniform(area_min, area_max) * shape[0] * shape[1]
    aspect = rng.uniform(0.75, 4 / 3)
    height, width = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
    if 0 < height <= shape[0] and 0 < width <= shape[1]:
      top, left = rng.randrange(shape[0] - height + 1), rng.randrange(shape[1] - width + 1)
      return top, left, height, width
  return 0, 0, shape[0], shape[1]


def _size(size) -> tuple[int, int]:
  height, width = size if isinstance(size, (list, tuple)) else (size, size)
  if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
    raise UserError(f"A size is a positive number of pixels or (height, width), not {size!r}.")
  return height, width
