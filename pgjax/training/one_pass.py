"""Adam's update as one pass over parameters, moments and gradients (kernels/elementwise.py).

Left to itself XLA makes two, because the norms of parameters and updates are measured.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pgjax.kernels import choice
from pgjax.training import optimizer

MOST = 2**31 - 2**16  # Numbers of a leaf: the kernel's indices have 32 bits.


def fits(tx: optax.GradientTransformation, config: Any, mesh: Any, leaves: Any) -> bool:
  """Whether the update can be one pass: Adam on float32 leaves of one NVIDIA GPU."""
  if getattr(tx, "adam", None) is None or mesh.size > 1:
    return False
  plain = not config.stochastic_rounding and config.opt_state_memory == "device"
  sizes = all(a.dtype == jnp.float32 and a.size <= MOST for a in leaves.values())
  return plain and sizes and choice.runs_triton("bfloat16", choice.device_of(mesh))


def update(
  tx: optimizer.Chain,
  apply: Any,
  grads: Mapping[str, jax.Array],
  state: Any,
  leaves: Mapping[str, jax.Array],
  *,
  grad_clip_norm: float | None,
  interpret: bool = False,
) -> tuple[dict[str, jax.Array], Any, jax.Array, jax.Array]:
  """(new leaves, new state, norm of all updates, norm of all new leaves); as optax' chain."""
  from pgjax.kernels import elementwise  # Pallas takes long to import.

  del apply  # Nothing is rounded.
  adam = tx.adam
  (moments,) = (s for s in state if isinstance(s, optax.ScaleByAdamState))
  (steps,) = (s for s in state if isinstance(s, optax.ScaleByScheduleState))
  count = optax.safe_increment(moments.count)
  factor = jnp.float32(1)
  if grad_clip_norm:
    norm = optax.tree.norm({n: g.astype(jnp.float32) for n, g in grads.items()})
    factor = jnp.where(norm < grad_clip_norm, 1.0, grad_clip_norm / norm)
  mults = {fn: fn(steps.count) for fn in set(adam.schedules.values())}
  debias = [1.0 - b**count for b in (adam.b1, adam.b2)]
  new, squares = ({}, {}, {}), jnp.zeros(2)
  for name, grad in grads.items():
    run = functools.partial(elementwise.run, interpret=interpret)
    arrays = [leaves[name], moments.mu[name], moments.nu[name]]
    scalars = [factor, *debias, mults[adam.schedules[name]]]
    function = functools.partial(step, adam, *adam.rates[name])
    results, squared = run(function, arrays, [grad], [jnp.asarray(s, jnp.float32) for s in scalars])
    for into, result in zip(new, results, strict=True):
      into[name] = result
    squares = squares + squared
  after = {
    optax.ScaleByAdamState: optax.ScaleByAdamState(count, *new[1:]),
    optax.ScaleByScheduleState: optax.ScaleByScheduleState(optax.safe_increment(steps.count)),
  }
  return new[0], tuple(after.get(type(s), s) for s in state), *jnp.sqrt(squares)


def step(adam: optimizer.Adam, lr: float, wd: float, blocks: Any, scalars: Any) -> Any:
  """([leaf, moments], [update, leaf]) of a block of numbers."""
  leaf, mu, nu, grad = blocks
  factor, debias_mu, debias_nu, mult = scalars
  grad = grad.astype(jnp.float32) * factor
  mu = (1 - adam.b1) * grad + adam.b1 * mu
  nu = (1 - adam.b2) * grad * grad + adam.b2 * nu
  update = lr * ((mu / debias_mu) / (jnp.sqrt(nu / debias_nu) + adam.eps))
  update = -mult * (update + wd * leaf if wd else update)
  leaf = leaf + update
  return [leaf, mu, nu], [update, leaf]
