"""How is an image resized as by tf.image.resize, bit for bit, without TensorFlow?

Every method is separable: each output pixel is a sum of weighted source pixels ("taps"), added one
after another in float32. Weights and order follow TensorFlow's kernels (scale_and_translate_op,
resize_bicubic_op, resize_area_op and resize_bilinear_op), because float32 sums depend on both.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse
from PIL import Image

from pgjax.errors import UserError

METHODS = (
  "bilinear", "nearest", "keyscubic", "area", "lanczos3", "lanczos5", "gaussian", "mitchellcubic"
)  # fmt: skip
_F32 = np.float32
_BLOCK = 32  # Output rows computed at once, so that intermediate values stay in the cache.
_CUBIC_STEPS = 1024  # Of TensorFlow's table of the cubic kernel.


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
    rows, columns = _nearest(image.shape[0], height), _nearest(image.shape[1], width)
    return image[rows][:, columns]
  if method == "bilinear" and not antialias:
    return _interpolated(image, height, width)
  if method == "area":
    return _area(image, height, width)
  rows = _kernel_weights(image.shape[0], height, method, antialias)
  columns = _kernel_weights(image.shape[1], width, method, antialias)
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
  """Half-pixel centres and two neighbours per axis, even when shrinking, so it aliases."""
  size_in, width_in, channels = image.shape
  left, right, across = _neighbours(width_in, width)
  flat = image.reshape(size_in, width_in * channels)
  resized = np.empty((height, width * channels), image.dtype)
  for block, used, top, bottom, down in _neighbour_blocks(size_in, height):
    turned = flat[used].T.reshape(width_in, -1)
    columns = _between(turned[left], turned[right], across)
    rows = np.ascontiguousarray(columns.reshape(width * channels, -1).T)
    resized[block] = _converted(_between(rows[top], rows[bottom], down), image.dtype)
  return resized.reshape(height, width, channels)


def _between(low, high, share):
  """float32 low + (high - low) * share, with one share a row; float32 input is overwritten."""
  low, high = low.astype(_F32, copy=False), high.astype(_F32, copy=False)
  high -= low
  high *= share[:, None]
  high += low
  return high


@functools.lru_cache(maxsize=256)
def _neighbours(size_in: int, size_out: int):
  """Lower and upper source index of each output, and the float32 weight of the upper one."""
  half, scale = _F32(0.5), _F32(size_in / size_out)
  centre = (np.arange(size_out, dtype=_F32) + half) * scale - half
  floor = np.floor(centre)
  lower = np.maximum(floor.astype(np.int64), 0)
  upper = np.minimum(np.ceil(centre).astype(np.int64), size_in - 1)
  return lower, upper, centre - floor


@functools.lru_cache(maxsize=256)
def _neighbour_blocks(size_in: int, size_out: int):
  """Per block of outputs: its slice, the sources it uses, and _neighbours as indices of those."""
  lower, upper, share = _neighbours(size_in, size_out)
  blocks = []
  for block in _slices(size_out):
    used, (low, high) = np.unique([lower[block], upper[block]], return_inverse=True)
    blocks.append((block, used, low, high, share[block]))
  return blocks


def _slices(size_out: int) -> list[slice]:
  return [slice(i, min(i + _BLOCK, size_out)) for i in range(0, size_out, _BLOCK)]


def _nearest(size_in: int, size_out: int):
  centre = (np.arange(size_out, dtype=_F32) + _F32(0.5)) * _F32(size_in / size_out)
  return np.minimum(np.floor(centre).astype(np.int64), size_in - 1)


@dataclasses.dataclass(frozen=True)
class _Weights:
  """The taps of each output along one axis: [size_out, taps] weights and source indices."""

  weight: np.ndarray  # float32; 0 where an output has fewer taps.
  source: np.ndarray  # int32
  size_in: int

  @functools.cached_property
  def matrix(self) -> scipy.sparse.csr_array:
    """[size_out, size_in]; scipy adds the taps of an output in their order."""
    return self._part(slice(None), 0, self.size_in)

  @functools.cached_property
  def blocks(self) -> list[tuple[slice, slice, scipy.sparse.csr_array]]:
    """Per block of outputs: its slice, that of its sources, and the matrix between the two."""
    blocks = []
    for block in _slices(len(self.source)):
      first, past = int(self.source[block].min()), int(self.source[block].max()) + 1
      blocks.append((block, slice(first, past), self._part(block, first, past)))
    return blocks

  def _part(self, block, first, past):
    weight, source = self.weight[block], self.source[block] - np.int32(first)
    starts = np.arange(0, source.size + 1, source.shape[1], dtype=np.int32)
    return scipy.sparse.csr_array(
      (weight.ravel(), source.ravel(), starts), (len(source), past - first)
    )


def _weighted(image, rows: _Weights, columns: _Weights, dtype):
  """Sums over rows, then over columns. Transposed in between: scipy adds contiguous rows."""
  size_in, width_in, channels = image.shape
  height, width = len(rows.source), len(columns.source)
  flat = image.reshape(size_in, width_in * channels)
  resized = np.empty((height, width * channels), dtype)
  for block, sources, weights in rows.blocks:
    summed = weights @ flat[sources].astype(_F32, copy=False)
    turned = columns.matrix @ summed.T.reshape(width_in, -1)
    resized[block] = _converted(turned, dtype).reshape(width * channels, -1).T
  return resized.reshape(height, width, channels)


def _area(image, height, width):
  """The mean over the source area of each output pixel; columns first."""
  rows, columns = _area_weights(image.shape[0], height), _area_weights(image.shape[1], width)
  scale = _F32(image.shape[0] / height) * _F32(image.shape[1] / width)
  turned = _weighted(image.transpose(1, 0, 2), columns, rows, _F32)
  turned *= _F32(1) / scale
  return np.ascontiguousarray(_converted(turned, image.dtype).transpose(1, 0, 2))


@functools.lru_cache(maxsize=256)
def _area_weights(size_in: int, size_out: int) -> _Weights:
  """The length of each source pixel inside each output pixel."""
  scale = _F32(size_in / size_out)
  begin = np.arange(size_out, dtype=_F32)[:, None] * scale
  end = np.arange(1, size_out + 1, dtype=_F32)[:, None] * scale
  first, past = np.floor(begin).astype(np.int32), np.ceil(end).astype(np.int32)
  source = first + np.arange((past - first).max(), dtype=np.int32)
  position, after = source.astype(_F32), (source + 1).astype(_F32)
  is_cut_first, is_cut_last = position < begin, after > end
  weight = np.where(
    is_cut_first,
    np.where(is_cut_last, scale, after - begin),
    np.where(is_cut_last, end - position, _F32(1)),
  )
  return _Weights(weight * (source < past), np.minimum(source, size_in - 1), size_in)


class _Kernel(NamedTuple):
  radius: float
  weight: Callable[[np.ndarray], np.ndarray]  # Of the distances in source pixels, float32.


def _lanczos(radius: float) -> _Kernel:
  pi, lobes = _F32(np.pi), _F32(radius)

  def weight(distance):
    x = np.where(distance > 1e-3, distance, _F32(1))
    peak = lobes * _sine(pi * x) * _sine(pi * x / lobes) / (pi * pi * x * x)
    return np.where(distance > lobes, _F32(0), np.where(distance > 1e-3, peak, _F32(1)))

  return _Kernel(radius, weight)


def _sine(x):
  """Rounded from float64, as in libm; numpy's own float32 sine differs in the last bit."""
  return np.sin(x.astype(np.float64)).astype(_F32)


def _gaussian(x):
  exponent = (-x * x).astype(np.float64) / (2 * 0.5**2)
  return np.where(x >= 1.5, _F32(0), np.exp(exponent).astype(_F32))


def _keys_cubic(x):
  near = ((_F32(1.5) * x - _F32(2.5)) * x) * x + _F32(1)
  far = ((_F32(-0.5) * x + _F32(2.5)) * x - _F32(4)) * x + _F32(2)
  return np.where(x >= 2, _F32(0), np.where(x >= 1, far, near))


def _mitchell_cubic(x):
  near = ((_F32(7 / 6) * x - _F32(2)) * x) * x + _F32(8 / 9)
  far = ((_F32(-7 / 18) * x + _F32(2)) * x - _F32(10 / 3)) * x + _F32(16 / 9)
  return np.where(x >= 2, _F32(0), np.where(x >= 1, far, near))


_KERNELS = {
  "bilinear": _Kernel(1, lambda x: np.maximum(_F32(1) - x, _F32(0))),
  "keyscubic": _Kernel(2, _keys_cubic),
  "lanczos3": _lanczos(3),
  "lanczos5": _lanczos(5),
  "gaussian": _Kernel(1.5, _gaussian),
  "mitchellcubic": _Kernel(2, _mitchell_cubic),
}


@functools.lru_cache(maxsize=256)
def _kernel_weights(size_in: int, size_out: int, method: str, antialias: bool) -> _Weights:
  """The weights of an output sum to 1, also at the borders."""
  if method == "keyscubic" and not antialias:
    return _table_cubic_weights(size_in, size_out)
  kernel, half, one = _KERNELS[method], _F32(0.5), _F32(1)
  inverse = one / (_F32(size_out) / _F32(size_in))
  widening = max(inverse, one) if antialias else one  # Enlarging does not widen.
  reach = _F32(kernel.radius) * widening
  centre = (np.arange(size_out, dtype=_F32)[:, None] + half) * inverse
  first = np.maximum(np.ceil(centre - reach - half), 0).astype(np.int32)
  last = np.minimum(np.floor(centre + reach - half), size_in - 1).astype(np.int32)
  source = first + np.arange((last - first).max() + 1, dtype=np.int32)
  distance = np.abs((source.astype(_F32) + half - centre) * (one / widening))
  weight = kernel.weight(distance) * (source <= last)
  weight *= one / np.cumsum(weight, axis=1, dtype=_F32)[:, -1:]
  return _Weights(weight, np.minimum(source, size_in - 1), size_in)


def _table_cubic_weights(size_in: int, size_out: int) -> _Weights:
  """Four taps with weights from a table, as in TensorFlow's bicubic without antialiasing."""
  table = _cubic_table()
  centre = (np.arange(size_out, dtype=_F32) + _F32(0.5)) * _F32(size_in / size_out) - _F32(0.5)
  floor = np.floor(centre)
  offset = np.rint((centre - floor) * _F32(_CUBIC_STEPS)).astype(np.int64)
  before, after = table[:, offset], table[:, _CUBIC_STEPS - offset]
  weight = np.stack([before[1], before[0], after[0], after[1]], axis=1)
  source = floor.astype(np.int32)[:, None] + np.arange(-1, 3, dtype=np.int32)
  weight *= (source >= 0) & (source < size_in)
  weight *= _F32(1) / np.cumsum(weight, axis=1, dtype=_F32)[:, -1:]
  return _Weights(weight, np.clip(source, 0, size_in - 1), size_in)


@functools.cache
def _cubic_table() -> np.ndarray:
  """float32 [2, 1025]: the kernel from 0 to 1 and from 1 to 2."""
  a = np.float64(-0.5)
  x = np.arange(_CUBIC_STEPS + 1, dtype=np.float64).astype(_F32) / _F32(_CUBIC_STEPS)
  x = x.astype(np.float64)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  x = x + 1
  far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  return np.stack([near, far]).astype(_F32)
