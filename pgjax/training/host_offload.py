"""The update with the optimizer's state on the host: one leaf at a time visits the device.

Left to itself XLA fetches the whole state at the beginning of a step, when activations need the
memory, and holds it to the end: more memory than without the host.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def update_by_leaf(
  tx: optax.GradientTransformation,
  apply: Callable[[Any, Any], Any],
  grads: Mapping[str, jax.Array],
  state: Any,
  leaves: Mapping[str, jax.Array],
  *,
  fetch: Callable[[Any, Any], Any],
  shardings: Any,
  grad_clip_norm: float | None,
) -> tuple[dict[str, jax.Array], Any, jax.Array, jax.Array]:
  """(new leaves, new state, norm of all updates, and of all new leaves).

  `apply(leaves, updates)` gives new leaves.

  `fetch(part of the state, its shardings)` moves it to the device. Clipping is the only part of
  optimizer.py's chain that needs all leaves, so it happens here, first; for a single leaf there is
  then nothing left to clip. A state consists of dicts by leaf name and of scalars shared by all.
  """
  norm = optax.tree.norm(grads)
  new_leaves, new, total = {}, None, 0.0 * norm
  for name, grad in grads.items():
    # Both numbers wait for all gradients and for the leaf before. XLA drops unused values from
    # barriers: these two are used.
    old, norm, total = jax.lax.optimization_barrier((_only(state, name, grads), norm, total))
    if grad_clip_norm:
      grad = grad * jnp.where(norm < grad_clip_norm, 1.0, grad_clip_norm / norm)
    part = fetch(old, _only(shardings, name, grads))
    updates, part = tx.update({name: grad}, part, {name: leaves[name]})
    leaf, square = apply({name: leaves[name]}, updates)[name], jnp.sum(updates[name] ** 2)
    new_leaves[name], square = jax.lax.optimization_barrier((leaf, square))
    total = total + square
    new = part if new is None else _joined(new, part, grads)
  return new_leaves, new, jnp.sqrt(total), optax.tree.norm(new_leaves)


def _only(state, name, names):
  """The state of one leaf, and what all share."""
  pick = lambda node: {n: x for n, x in node.items() if n == name}  # noqa: E731
  return _map_by_name(pick, names, state)


def _joined(state, part, names):
  return _map_by_name(lambda a, b: a | b, names, state, part)


def _map_by_name(function, names: Collection[str], *states):
  """Applies `function` to the dicts by leaf name; other nodes are the last state's."""

  def is_by_name(node):
    return isinstance(node, dict) and all(key in names for key in node)

  def apply(*nodes):
    return function(*nodes) if is_by_name(nodes[0]) else nodes[-1]

  return jax.tree.map(apply, *states, is_leaf=is_by_name)
