"""Which keys does each query attend to? A prefix of them, in O(T + S) numbers instead of T x S.

In a prefix-LM the keys that a query sees are the first `end` ones; of those, images that are
padding are excluded. Axes: B batch, T query, S key.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class VisibleKeys(NamedTuple):
  """Query t attends to the valid keys before end[t]; to none if end[t] is 0."""

  end_BT: Int[Array, "B T"]
  valid_BS: Bool[Array, "B S"] | None = None  # None: all.

  def mask(self, num_keys: int) -> Bool[Array, "B T S"]:
    """The same as an array, for small sizes and inside loops over blocks of T."""
    mask_BTS = jnp.arange(num_keys) < self.end_BT[..., None]
    return mask_BTS if self.valid_BS is None else mask_BTS & self.valid_BS[:, None]


def valid_first(
  visible: VisibleKeys,
) -> tuple[VisibleKeys, Int[Array, "B S"] | None, Int[Array, "B S"] | None]:
  """(visible keys without `valid_BS`, the order of keys to use with them, its inverse).

  For kernels that know only a number of keys. Both orders are None if all keys are valid.
  """
  end_BT, valid_BS = visible
  if valid_BS is None:
    return visible, None, None
  order_BS = jnp.argsort(~valid_BS, axis=1, stable=True)
  return VisibleKeys(valid_before(end_BT, valid_BS)), order_BS, jnp.argsort(order_BS, axis=1)


def valid_before(end_BT: Int[Array, "B T"], valid_BS: Bool[Array, "B S"]) -> Int[Array, "B T"]:
  """How many of the keys before `end` are valid."""
  counts_BS = jnp.cumsum(valid_BS, axis=1, dtype=end_BT.dtype)
  counted_BT = jnp.take_along_axis(counts_BS, jnp.maximum(end_BT - 1, 0), axis=1)
  return jnp.where(end_BT > 0, counted_BT, 0)
