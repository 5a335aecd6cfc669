"""How is an image resized as by tf.image.resize, bit for bit, without TensorFlow?

Every method is separable: each output pixel is a sum of weighted source pixels, added one after
another in float32, because float32 sums depend on the order; taps.py has weights and order. Output
rows are computed in blocks, transposed between the two axes, so that both passes add contiguous
rows that stay in the cache.
"""

import numpy as np
from PIL import Image

from pgjax.data import taps
from pgjax.errors import UserError

METHODS = (
  "bilinear", "nearest", "keyscubic", "area", "lanczos3", "lanczos5", "gaussian", "mitchellcubic"
)  # fmt: skip
_F32 = np.float32


def resize(
  image: np.ndarray, height: int, width: int, *, antialias: bool, method: str = "bilinear"
) -> np.ndarray:
  """[H, W, C] -> [height, width, C] of the same dtype by one of METHODS.

  Computed in float32, clipped to the dtype's range, and truncated, not rounded, to an integer
  dtype. An image of that size is returned unchanged. "keyscubic" is TensorFlow's "bicubic".
  """
  if image.shape[:2] == (height, width):
    return image
  if method == "nearest":
    rows, columns = taps.nearest(image.shape[0], height), taps.nearest(image.shape[1], width)
    return image[rows][:, columns]
  if method == "bilinear" and not antialias:
    return _interpolated(image, height, width)
  if method == "area":
    return _area(image, height, width)
  rows = taps.kernel_taps(image.shape[0], height, method, antialias)
  columns = taps.kernel_taps(image.shape[1], width, method, antialias)
  return _weighted(image, rows, columns, image.dtype)


def resize_pillow_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 [H, W, 3] -> uint8 [height, width, 3] by Pillow's bicubic filter.

  Bit-equal to Hugging Face's processors without torchvision; it antialiases and rounds, where
  `resize` truncates. An image of that size is returned unchanged.
  """
  if image.dtype != np.uint8:
    raise UserError(
      f"bicubic resizing takes the uint8 pixels from decode, not {image.dtype}; put resize"
      " before value_range."
    )
  if image.shape[:2] == (height, width):
    return image
  return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _converted(values: np.ndarray, dtype) -> np.ndarray:
  """float32 values, which may be overwritten, as dtype."""
  if np.issubdtype(dtype, np.integer):
    limits = np.iinfo(dtype)
    np.clip(values, limits.min, limits.max, out=values)
  return values.astype(dtype, copy=False)


def _interpolated(image, height, width):
  """Two neighbours per axis, even when shrinking, so it aliases; columns first."""
  size_in, width_in, channels = image.shape
  left, right, across = taps.neighbours(width_in, width)
  flat = image.reshape(size_in, width_in * channels)
  resized = np.empty((height, width * channels), image.dtype)
  for block, used, (top, bottom, down) in taps.neighbour_blocks(size_in, height):
    turned = flat[used].T.reshape(width_in, -1)  # [width_in, C * used]
    columns = _between(turned[left], turned[right], across)
    rows = np.ascontiguousarray(columns.reshape(width * channels, -1).T)  # [used, width * C]
    resized[block] = _converted(_between(rows[top], rows[bottom], down), image.dtype)
  return resized.reshape(height, width, channels)


def _between(low, high, share):
  """float32 low + (high - low) * share, with one share a row; float32 input is overwritten."""
  low, high = low.astype(_F32, copy=False), high.astype(_F32, copy=False)
  high -= low
  high *= share[:, None]
  high += low
  return high


def _weighted(image, rows: taps.Taps, columns: taps.Taps, dtype):
  """Sums over rows, then over columns."""
  size_in, width_in, channels = image.shape
  height, width = len(rows.source), len(columns.source)
  flat = image.reshape(size_in, width_in * channels)
  resized = np.empty((height, width * channels), dtype)
  for block, sources, weights in rows.blocks:
    summed = weights @ flat[sources].astype(_F32, copy=False)  # [block, width_in * C]
    turned = columns.matrix @ summed.T.reshape(width_in, -1)  # [width, C * block]
    resized[block] = _converted(turned, dtype).reshape(width * channels, -1).T
  return resized.reshape(height, width, channels)


def _area(image, height, width):
  """The mean over the source area of each output pixel; columns first."""
  rows, columns = taps.area_taps(image.shape[0], height), taps.area_taps(image.shape[1], width)
  scale = _F32(image.shape[0] / height) * _F32(image.shape[1] / width)
  turned = _weighted(image.transpose(1, 0, 2), columns, rows, _F32)
  turned *= _F32(1) / scale
  return np.ascontiguousarray(_converted(turned, image.dtype).transpose(1, 0, 2))
