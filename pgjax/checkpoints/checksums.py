"""Checksums of arrays, the same on every mesh, in JAX and in NumPy."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def jitted_checksums():
  """`f({name: array}) -> {name: uint32}`: the sums of all elements' bits, for any sharding."""

  def checksum(x):
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

  return jax.jit(lambda arrays: jax.tree.map(checksum, arrays))


def checksum(blocks: Iterable[np.ndarray]) -> int:
  """The same for an array that consists of these blocks."""
  total = 0
  for block in blocks:
    bits = np.ascontiguousarray(block).reshape(-1).view(f"uint{8 * block.dtype.itemsize}")
    total += int(np.sum(bits, dtype=np.uint64))
  return total % 2**32
