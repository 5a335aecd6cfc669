"""The state of training: its shapes and shardings, and the initial one, sharded from the start."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.params import of_model, rules as param_rules, tree as param_tree
from pgjax.training import ema as ema_lib


class TrainState(NamedTuple):
  """What a step reads and writes, and a checkpoint stores."""

  step: Int[Array, ""]
  params: dict[str, Any]  # Nested, as stored; see params/storage.py.
  opt_state: Any  # Of the trainable leaves only, by flat name.
  ema: Any = None  # EMA of the trainable leaves in float32, by flat name; None without ema_decay.


def abstract_state(model, tx, config, mesh) -> TrainState:
  """The state as shapes, dtypes and shardings; nothing is allocated."""
  leaves = of_model.stored_params(model, config)
  stored = leaves.abstract()
  trained, _ = param_tree.split(stored, param_rules.trained_names(leaves.rules))
  state = TrainState(
    jax.ShapeDtypeStruct((), jnp.int32),
    stored,
    jax.eval_shape(tx.init, trained),
    None if config.ema_decay is None else jax.eval_shape(ema_lib.start, trained),
  )
  shardings = sharding.shardings(config.sharding_strategy, state, mesh)
  if state.ema is not None:  # They replace the leaves in evaluations.
    of_leaves = param_tree.flatten(shardings.params)
    shardings = shardings._replace(ema={name: of_leaves[name] for name in state.ema})
  if config.opt_state_memory == "host":
    shardings = shardings._replace(opt_state=mesh_lib.on_host(shardings.opt_state))
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), state, shardings
  )


def init(model, tx, config, mesh, loaded=None) -> TrainState:
  """The initial state, sharded from the start; parameters that `loaded` lacks are random."""
  shardings = sharding.shardings_of(abstract_state(model, tx, config, mesh))
  make, (_, *inputs) = of_model.init_of(model, config.res)
  leaves, flat = of_model.stored_params(model, config), param_tree.flatten(loaded or {})
  of_params = param_tree.flatten(shardings.params)
  missing = {name: of_params[name] for name in of_params if name not in flat}

  @functools.partial(jax.jit, out_shardings=missing, compiler_options=_run_once(mesh))
  def random_params():
    zeros = (jnp.zeros(s.shape, s.dtype) for s in inputs)
    params = jax.jit(make)(jax.random.key(config.seed), *zeros)
    stored = param_tree.flatten(leaves.encode(params, config.seed))
    return {name: stored[name] for name in missing}

  if missing:
    flat |= random_params()
  values = param_tree.unflatten(dict(sorted(flat.items())))

  @functools.partial(jax.jit, out_shardings=(shardings.opt_state, shardings.ema))
  def beside(values):
    trained, _ = param_tree.split(values, param_rules.trained_names(leaves.rules))
    return tx.init(trained), None if config.ema_decay is None else ema_lib.start(trained)

  step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
  return TrainState(step, values, *beside(values))


def _run_once(mesh):
  """Options of a program that runs once: LLVM's third level would triple its time to compile."""
  return {"xla_backend_optimization_level": 1} if mesh.devices.flat[0].platform == "cpu" else None
