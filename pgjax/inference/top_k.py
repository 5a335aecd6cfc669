"""The largest of each row of a sharded array, without moving the rows.

XLA gathers what it takes the largest of: all logits of all rows, on every device. Axes: B batch, N
branches, V vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from pgjax.layers import placement


def of_rows(
  x_BNV: Float[Array, "B N V"], k: int, mesh: Any = None, *, by_vocabulary: bool = True
) -> tuple[Float[Array, "B N k"], Int[Array, "B N k"]]:
  """(values, indices) as of jax.lax.top_k, the lowest index first on ties.

  by_vocabulary: the devices along `tensor` share V, as they do that of logits.
  """
  if mesh is None or mesh.size == 1:
    return tuple(jax.lax.top_k(x_BNV, k))
  batch = placement.split_axes(mesh, "B", x_BNV.shape[0])
  vocabulary = placement.split_axes(mesh, "V", x_BNV.shape[2]) if by_vocabulary else ()
  rows, whole = PartitionSpec(batch or None), PartitionSpec(batch or None, None, vocabulary or None)
  run = functools.partial(_local, k=k, axes=vocabulary)
  return jax.shard_map(run, mesh=mesh, in_specs=whole, out_specs=rows, check_vma=False)(x_BNV)


def _local(x_BNV, k, axes):
  if not axes:
    return tuple(jax.lax.top_k(x_BNV, k))
  V = x_BNV.shape[2]
  largest_BNK, index_BNK = jax.lax.top_k(x_BNV, min(k, V))
  index_BNK += jax.lax.axis_index(axes) * V
  both = jax.lax.all_gather((largest_BNK, index_BNK), axes, axis=2, tiled=True)
  largest_BNk, at_BNk = jax.lax.top_k(both[0], k)
  return largest_BNk, jnp.take_along_axis(both[1], at_BNk, axis=2)
