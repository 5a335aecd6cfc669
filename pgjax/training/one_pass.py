"""Adam's update as one pass over parameters, moments and gradients (kernels/elementwise.py).

Left to itself XLA makes two, because the norms of parameters and updates are measured. Before it is
used, the kernel is compared with plain JAX on the run's own device.
"""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pgjax.errors import cut
from pgjax.kernels import choice
from pgjax.training import optimizer

log = logging.getLogger("pgjax")

TOLERANCE = 1e-5  # Of the norm of each result. Float32 alone gives 1e-7.
MOST = 2**31 - 2**16  # Numbers of a leaf: the kernel's indices have 32 bits.


def fits(tx: optax.GradientTransformation, config: Any, mesh: Any, leaves: Any) -> bool:
  """Whether the update can be one pass: Adam on float32 leaves of one NVIDIA GPU."""
  if getattr(tx, "adam", None) is None or mesh.size > 1:
    return False
  plain = not config.stochastic_rounding and config.opt_state_memory == "device"
  sizes = all(a.dtype == jnp.float32 and a.size <= MOST for a in leaves.values())
  device = choice.device_of(mesh)
  if not (plain and sizes and choice.runs_triton("bfloat16", device)):
    return False
  return not device.local or is_right(mesh.devices.flat[0])


@functools.cache
def is_right(device: Any) -> bool:
  """Whether the kernel runs on this device and gives what plain JAX gives; why not is logged."""
  try:
    with jax.default_device(device):
      error = float(self_check())
  except Exception as failure:  # Of a compiler, a driver or a kernel: of any type.
    trouble = f"fails ({cut(' '.join(str(failure).split()))})"
  else:
    if error <= TOLERANCE:
      return True
    trouble = f"differs from plain JAX by {error:.2g} of its norm (allowed: {TOLERANCE:g})"
  kind = device.device_kind
  log.warning("On this %s, the kernel of Adam %s: XLA computes the update.", kind, trouble)
  return False


def self_check(*, interpret: bool = False) -> jax.Array:
  """The largest relative difference of the kernel's results and plain JAX's."""
  from pgjax.kernels import elementwise

  rng, size = np.random.default_rng(0), 5000  # Three programs, the last of them not whole.
  random = lambda: jnp.asarray(rng.normal(size=size), jnp.float32)  # noqa: E731
  arrays = [random(), random(), jnp.square(random())]
  grad = random().astype(jnp.bfloat16)
  scalars = [jnp.float32(x) for x in (0.7, 0.1, 0.05, 0.9)]
  step = functools.partial(_step, optimizer.Adam({}, {}), 1e-2, 1e-3)

  def plain(arrays, grad, scalars):
    new, squared = step([*arrays, grad], scalars)
    return new, jnp.stack([jnp.sum(a * a) for a in squared])

  run = functools.partial(elementwise.run, step, interpret=interpret)
  ours = jax.jit(lambda a, g, s: run(a, [g], s))(arrays, grad, scalars)
  right = jax.jit(plain)(arrays, grad, scalars)
  pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True)
  return jnp.max(jnp.stack([jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in pairs]))


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
    step = functools.partial(_step, adam, *adam.rates[name])
    results, squared = run(step, arrays, [grad], [jnp.asarray(s, jnp.float32) for s in scalars])
    for into, result in zip(new, results, strict=True):
      into[name] = result
    squares = squares + squared
  after = {
    optax.ScaleByAdamState: optax.ScaleByAdamState(count, *new[1:]),
    optax.ScaleByScheduleState: optax.ScaleByScheduleState(optax.safe_increment(steps.count)),
  }
  return new[0], tuple(after.get(type(s), s) for s in state), *jnp.sqrt(squares)


def _step(adam, lr, wd, blocks, scalars):
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
