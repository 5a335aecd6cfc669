"""An exponential moving average (EMA) of the trained weights.

The weights k steps ago have a share of (1 - decay) * decay^k. It begins at the initial weights and
is float32: with fewer digits, steps of 1 - decay would be lost.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pgjax.params import tree as param_tree


def start(trained: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """The EMA weights before the first step."""
  return {name: leaf.astype(jnp.float32) for name, leaf in trained.items()}


def updated(
  ema: Mapping[str, jax.Array], trained: Mapping[str, jax.Array], decay: float
) -> dict[str, jax.Array]:
  """The EMA weights after a step that led to `trained`."""
  return {n: a + (1 - decay) * (trained[n].astype(jnp.float32) - a) for n, a in ema.items()}


def scored(state: Any) -> dict[str, Any]:
  """The parameters to evaluate, nested: EMA weights where the state has them."""
  if state.ema is None:
    return state.params
  return param_tree.unflatten(param_tree.flatten(state.params) | state.ema)
