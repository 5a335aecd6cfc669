"""What is the average of the weights over the last steps?

Exponential: of the weights k steps ago it holds a share of (1 - decay) * decay^k, so that 0.999
looks back over about a thousand steps. It begins at the weights that the run began with, and is
kept in float32: in fewer digits, steps of 1 - decay would be lost.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pgjax.params import tree as param_tree


def start(trained: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """The averages before the first step."""
  return {name: leaf.astype(jnp.float32) for name, leaf in trained.items()}


def updated(
  averages: Mapping[str, jax.Array], trained: Mapping[str, jax.Array], decay: float
) -> dict[str, jax.Array]:
  """The averages after a step that led to `trained`."""
  return {n: a + (1 - decay) * (trained[n].astype(jnp.float32) - a) for n, a in averages.items()}


def scored(state: Any) -> dict[str, Any]:
  """The parameters that evaluations look at: averages where the state has them, nested."""
  if state.ema is None:
    return state.params
  return param_tree.unflatten(param_tree.flatten(state.params) | state.ema)
