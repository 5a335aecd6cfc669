"""The keys and values of a layer that later tokens attend to.

Axes: B batch, K key/value heads, H head size, S slots.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Cache(NamedTuple):
  """In attention's layout, and written in place."""

  k_BKHS: Float[Array, "B K H S"]
  v_BKSH: Float[Array, "B K S H"]

  def written(self, new: "Cache", slot) -> "Cache":
    """With the slots of `new` written from `slot` on."""
    k_BKHS = jax.lax.dynamic_update_slice_in_dim(self.k_BKHS, new.k_BKHS, slot, axis=3)
    v_BKSH = jax.lax.dynamic_update_slice_in_dim(self.v_BKSH, new.v_BKSH, slot, axis=2)
    return Cache(k_BKHS, v_BKSH)

  def grown(self, slots: int) -> "Cache":
    """With this number of empty slots appended."""
    grow = (0, slots)
    k_BKHS = jnp.pad(self.k_BKHS, ((0, 0), (0, 0), (0, 0), grow))
    return Cache(k_BKHS, jnp.pad(self.v_BKSH, ((0, 0), (0, 0), grow, (0, 0))))


def of(k_BSKH: Float[Array, "B S K H"], v_BSKH: Float[Array, "B S K H"], dtype: Any) -> Cache:
  """A cache of these keys and values, rounded to `dtype`."""
  k_BKHS, v_BKSH = jnp.transpose(k_BSKH, (0, 2, 3, 1)), jnp.swapaxes(v_BSKH, 1, 2)
  return Cache(k_BKHS.astype(dtype), v_BKSH.astype(dtype))
