"""Checksums of arrays, the same on every mesh, in JAX and in NumPy.

Each element's bits are multiplied by an odd pseudo-random number that depends on its index in the
array (row-major, modulo 2^32), and summed modulo 2^32: the order of the elements counts, the order
of the additions does not. Older checkpoints have plain sums.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LOW = 1 << 16  # The index has two halves, each with its own factor.
_PIECE = 1 << 18  # Elements that NumPy weights at a time: they fit the cache.


@functools.cache
def jitted_checksums(*, ordered: bool = True) -> Callable[[Any], Any]:
  """`f({name: array}) -> {name: uint32}`, for any sharding; not ordered: plain sums."""

  def checksum(x):
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    bits = bits.astype(jnp.uint32)
    return jnp.sum(_weighted(bits) if ordered else bits, dtype=jnp.uint32)

  return jax.jit(lambda arrays: jax.tree.map(checksum, arrays))


def _weighted(bits: jax.Array) -> jax.Array:
  """uint32, as `bits`; XLA computes it inside of the sum, without another array."""
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis in range(bits.ndim):
    stride = np.uint32(math.prod(bits.shape[axis + 1 :]) % 2**32)
    index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * stride
  low, high = index & np.uint32(_LOW - 1), index >> np.uint32(16)
  return _folded(bits) * _factor(low) * _factor(high + np.uint32(_LOW))


def _folded(bits: Any) -> Any:
  """So that float32 values of bfloat16 precision, whose low bits are 0, use all bits."""
  return bits ^ (bits >> np.uint32(16))


def _factor(index: Any) -> Any:
  """An odd pseudo-random uint32 for each index."""
  mixed = index * np.uint32(0x9E3779B1)
  mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x85EBCA6B)
  return (mixed ^ (mixed >> np.uint32(13))) | np.uint32(1)


@functools.cache
def _low_factors() -> np.ndarray:
  return _factor(np.arange(_LOW, dtype=np.uint32))


def checksum(blocks: Iterable[np.ndarray], *, ordered: bool = True) -> int:
  """The same for an array that consists of these blocks of rows."""
  running = Checksum(ordered=ordered)
  for block in blocks:
    running.add(block)
  return running.value


class Checksum:
  """The checksum so far of an array whose blocks of rows are added in their order."""

  def __init__(self, *, ordered: bool = True):
    """Of nothing."""
    self.value, self._index, self._ordered = 0, 0, ordered

  def add(self, block: np.ndarray) -> None:
    """The next rows."""
    bits = np.ascontiguousarray(block).reshape(-1).view(f"uint{8 * block.dtype.itemsize}")
    if not self._ordered:
      self.value = (self.value + int(np.sum(bits, dtype=np.uint64))) % 2**32
      return
    start = 0
    while start < len(bits):  # Up to the next multiple of _PIECE.
      stop = min(len(bits), start + _PIECE - self._index % _PIECE)
      self._add_piece(bits[start:stop].astype(np.uint32))
      start = stop

  def _add_piece(self, bits: np.ndarray) -> None:
    """uint32 [N], N <= _PIECE, within one multiple of _PIECE."""
    first, before = divmod(self._index, _LOW)
    weighted = np.zeros(-(-(before + len(bits)) // _LOW) * _LOW, np.uint32)
    weighted[before : before + len(bits)] = _folded(bits)
    rows = weighted.reshape(-1, _LOW)
    rows *= _low_factors()
    sums = rows.sum(axis=1, dtype=np.uint32)
    high = (np.arange(first, first + len(sums)) % _LOW + _LOW).astype(np.uint32)
    self.value = (self.value + int(np.dot(sums, _factor(high)))) % 2**32
    self._index += len(bits)
