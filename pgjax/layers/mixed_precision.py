"""Float32 weights, bfloat16 products, and gradients that take no more room than they have digits.

A weight that is cast for its product gets a gradient of the product's dtype. JAX widens it to the
weight's dtype where it was cast, layer by layer, so that the stack of all layers' gradients takes
twice the bytes its numbers need. A `Master` keeps it narrow: the same numbers, half the memory.
"""

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# The leaves that modules read through `weight`.
_NAMES = re.compile(r"llm/layers/(attn|mlp)/.*")


class Master(NamedTuple):
  """A weight, and a zero of the compute dtype that is added to it where it is used.

  The gradient with respect to the zero is the weight's. XLA drops the zeros: they cost nothing.
  """

  value: Any
  zero: Any


def weight(stored: Any, dtype: str) -> jax.Array:
  """A parameter (an array or a `Master`) in the compute dtype."""
  if isinstance(stored, Master):
    return jax.lax.stop_gradient(stored.value).astype(dtype) + stored.zero
  return stored.astype(dtype)


def differentiable(leaves: dict[str, Any], dtype: str) -> dict[str, Any]:
  """What to take gradients with respect to: the leaves, or zeros that stand for wider ones."""
  return {
    name: jnp.zeros(leaf.shape, dtype) if _is_wider(name, leaf, dtype) else leaf
    for name, leaf in leaves.items()
  }


def restored(
  leaves: dict[str, Any], moving: dict[str, Any], dtype: str, cast_first: Collection[str] = ()
) -> dict[str, Any]:
  """What the modules read, from the leaves and what `differentiable` made of them.

  `cast_first`: names of stacked leaves to cast as a whole, before the scan over layers. The numbers
  are the same. It pays where a leaf is sharded so that XLA copies it into another order to gather
  it: the copy is then of the narrow numbers.
  """
  return {
    name: Master(leaf.astype(dtype) if name in cast_first else leaf, moving[name])
    if _is_wider(name, leaf, dtype)
    else moving[name]
    for name, leaf in leaves.items()
  }


def _is_wider(name, leaf, dtype):
  return bool(_NAMES.fullmatch(name)) and leaf.dtype.itemsize > jnp.dtype(dtype).itemsize
