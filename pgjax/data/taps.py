"""Which source pixels make an output pixel along one axis, and with which weights?

As in TensorFlow's kernels (scale_and_translate_op, resize_bicubic_op, resize_area_op and
resize_bilinear_op): float32 in their order of operations. Tables are cached by size.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse

_BLOCK = 32  # Outputs of a block: with a row of pixels each, they stay in the cache.
_CACHED = 256  # Tables; one of 896 outputs takes 0.2 MB and about 2 ms.
_CUBIC_STEPS = 1024  # Of TensorFlow's table of the cubic kernel.
_F32 = np.float32


@dataclasses.dataclass(frozen=True, eq=False)
class Taps:
  """Weighted source pixels of each output; one with fewer than the others ends in weights of 0."""

  weight: np.ndarray  # float32 [size_out, taps]
  source: np.ndarray  # int32 [size_out, taps]
  size_in: int

  @functools.cached_property
  def matrix(self) -> scipy.sparse.csr_array:
    """[size_out, size_in]; scipy adds the taps of an output one after another."""
    return self._matrix(slice(None), 0, self.size_in)

  @functools.cached_property
  def blocks(self) -> list[tuple[slice, slice, scipy.sparse.csr_array]]:
    """(slice of outputs, slice of the sources they use, the matrix between the two)."""
    blocks = []
    for outputs in _slices(len(self.source)):
      source = self.source[outputs]
      first, past = int(source.min()), int(source.max()) + 1
      blocks.append((outputs, slice(first, past), self._matrix(outputs, first, past)))
    return blocks

  def _matrix(self, outputs: slice, first: int, past: int) -> scipy.sparse.csr_array:
    weight, source = self.weight[outputs], self.source[outputs] - np.int32(first)
    starts = np.arange(0, source.size + 1, source.shape[1], dtype=np.int32)
    shape = len(source), past - first
    return scipy.sparse.csr_array((weight.ravel(), source.ravel(), starts), shape)


def _slices(size: int) -> list[slice]:
  return [slice(i, min(i + _BLOCK, size)) for i in range(0, size, _BLOCK)]


class Neighbours(NamedTuple):
  """An output is low + (high - low) * share."""

  low: np.ndarray  # int64 [size_out]: source indices.
  high: np.ndarray
  share: np.ndarray  # float32 [size_out]


@functools.lru_cache(maxsize=_CACHED)
def neighbours(size_in: int, size_out: int) -> Neighbours:
  """For bilinear without antialiasing: two sources, with half-pixel centres."""
  half, scale = _F32(0.5), _F32(size_in / size_out)
  centre = (np.arange(size_out, dtype=_F32) + half) * scale - half
  floor = np.floor(centre)
  lower = np.maximum(floor.astype(np.int64), 0)
  upper = np.minimum(np.ceil(centre).astype(np.int64), size_in - 1)
  return Neighbours(lower, upper, centre - floor)


@functools.lru_cache(maxsize=_CACHED)
def neighbour_blocks(size_in: int, size_out: int) -> list[tuple[slice, np.ndarray, Neighbours]]:
  """(slice of outputs, the sources they use, neighbours as indices of those sources)."""
  low, high, share = neighbours(size_in, size_out)
  blocks = []
  for outputs in _slices(size_out):
    used, places = np.unique([low[outputs], high[outputs]], return_inverse=True)
    blocks.append((outputs, used, Neighbours(*places, share[outputs])))
  return blocks


def nearest(size_in: int, size_out: int) -> np.ndarray:
  """int64 [size_out]: the source index of each output."""
  centre = (np.arange(size_out, dtype=_F32) + _F32(0.5)) * _F32(size_in / size_out)
  return np.minimum(np.floor(centre).astype(np.int64), size_in - 1)


@functools.lru_cache(maxsize=_CACHED)
def area_taps(size_in: int, size_out: int) -> Taps:
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
  return Taps(weight * (source < past), np.minimum(source, size_in - 1), size_in)


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


KERNELS = {
  "bilinear": _Kernel(1, lambda x: np.maximum(_F32(1) - x, _F32(0))),
  "keyscubic": _Kernel(2, _keys_cubic),
  "lanczos3": _lanczos(3),
  "lanczos5": _lanczos(5),
  "gaussian": _Kernel(1.5, _gaussian),
  "mitchellcubic": _Kernel(2, _mitchell_cubic),
}


@functools.lru_cache(maxsize=_CACHED)
def kernel_taps(size_in: int, size_out: int, method: str, antialias: bool) -> Taps:
  """For one of KERNELS; the weights of an output sum to 1, also at the borders."""
  if method == "keyscubic" and not antialias:
    return _table_cubic_taps(size_in, size_out)
  kernel, half, one = KERNELS[method], _F32(0.5), _F32(1)
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
  return Taps(weight, np.minimum(source, size_in - 1), size_in)


def _table_cubic_taps(size_in: int, size_out: int) -> Taps:
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
  return Taps(weight, np.clip(source, 0, size_in - 1), size_in)


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
