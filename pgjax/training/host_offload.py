"""How does an optimizer's state lie on the host between steps, and little of it on a device in one?

Leaf after leaf: the state of one is fetched, its update made and applied, its new state put back,
and then the next one's is fetched. Left to itself XLA fetches all of it at the beginning of a step,
when memory is needed for activations, and keeps all to the end: more than without the host.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def one_by_one(
  tx: optax.GradientTransformation,
  apply: Callable[[Any, Any], Any],
  grads: Mapping[str, jax.Array],
  state: Any,
  leaves: Mapping[str, jax.Array],
  *,
  fetch: Callable[[Any, Any], Any],
  places: Any,
  grad_clip_norm: float | None,
) -> tuple[dict[str, jax.Array], Any, jax.Array]:
  """(new leaves, new state, norm of all updates); `apply(leaves, updates)` gives new leaves.

  `fetch(part of the state, its places)` brings it to the device. Of what optimizer.py makes only
  clipping looks at all leaves together, so it is done here, first; once more for a leaf by itself
  it finds nothing to clip. A state is made of dicts by the leaves' names and of scalars that are
  the same for all.
  """
  norm = optax.tree.norm(grads)
  new_leaves, new, total = {}, None, 0.0 * norm
  for name, grad in grads.items():
    # Both numbers wait for all gradients, and for what became of the leaf before. XLA drops from
    # barriers what nobody uses afterwards: these two are used.
    old, norm, total = jax.lax.optimization_barrier((_only(state, name, grads), norm, total))
    if grad_clip_norm:
      grad = grad * jnp.where(norm < grad_clip_norm, 1.0, grad_clip_norm / norm)
    part = fetch(old, _only(places, name, grads))
    updates, part = tx.update({name: grad}, part, {name: leaves[name]})
    leaf, square = apply({name: leaves[name]}, updates)[name], jnp.sum(updates[name] ** 2)
    new_leaves[name], square = jax.lax.optimization_barrier((leaf, square))
    total = total + square
    new = part if new is None else _joined(new, part, grads)
  return new_leaves, new, jnp.sqrt(total)


def _is_by_name(node, names: Collection[str]):
  return isinstance(node, dict) and all(key in names for key in node)


def _only(state, name, names):
  """The state of one leaf, and what is shared."""
  pick = lambda node: (  # noqa: E731
    {n: x for n, x in node.items() if n == name} if _is_by_name(node, names) else node
  )
  return jax.tree.map(pick, state, is_leaf=lambda node: _is_by_name(node, names))


def _joined(state, part, names):
  join = lambda a, b: a | b if _is_by_name(a, names) else b  # noqa: E731
  return jax.tree.map(join, state, part, is_leaf=lambda node: _is_by_name(node, names))
