"""Float32 weights, bfloat16 products, and gradients stored in bfloat16.

JAX widens the gradient of a cast weight to the weight's dtype. A `Master` leaves it narrow: the
same numbers in half the memory.
"""

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_NAMES = re.compile(r"llm/layers/(attn|mlp)/.*")  # Leaves that modules read through `weight`.


class Master(NamedTuple):
  """A weight plus a zero of the compute dtype, whose gradient is the weight's; XLA drops it."""

  value: Any
  zero: Any


def weight(stored: Any, dtype: str) -> jax.Array:
  """A parameter (an array or a `Master`) in the compute dtype."""
  if isinstance(stored, Master):
    return jax.lax.stop_gradient(stored.value).astype(dtype) + stored.zero
  return stored.astype(dtype)


def differentiable(leaves: dict[str, Any], dtype: str) -> dict[str, Any]:
  """The inputs to differentiate by: each leaf, or a narrow zero in place of a wider one."""
  return {
    name: jnp.zeros(leaf.shape, dtype) if _is_wider(name, leaf, dtype) else leaf
    for name, leaf in leaves.items()
  }


def restored(
  leaves: dict[str, Any], moving: dict[str, Any], dtype: str, cast_first: Collection[str] = ()
) -> dict[str, Any]:
  """The modules' parameters, from the leaves and the result of `differentiable`.

  `cast_first`: stacked leaves to cast before the scan over layers, so that XLA copies narrow ones.
  """
  return {
    name: Master(leaf.astype(dtype) if name in cast_first else leaf, moving[name])
    if _is_wider(name, leaf, dtype)
    else moving[name]
    for name, leaf in leaves.items()
  }


def _is_wider(name, leaf, dtype):
  return bool(_NAMES.fullmatch(name)) and leaf.dtype.itemsize > jnp.dtype(dtype).itemsize
