"""The state of training: its shapes and shardings, and the first one, born sharded."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.params import of_model, rules as param_rules, tree as param_tree
from pgjax.training import ema as ema_lib


class TrainState(NamedTuple):
  """What a step reads and writes, and what a checkpoint holds."""

  step: Int[Array, ""]
  params: dict[str, Any]  # Nested, all that is kept; see params/storage.py.
  opt_state: Any  # Of the trained leaves alone, keyed by their flat names.
  ema: Any = None  # Averages of the trained leaves in float32, by flat name, if the run keeps them.


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
  places = sharding.shardings(config.sharding_strategy, state, mesh)
  if state.ema is not None:  # They take the leaves' places when they are scored.
    of_leaves = param_tree.flatten(places.params)
    places = places._replace(ema={name: of_leaves[name] for name in state.ema})
  if config.opt_state_memory == "host":
    places = places._replace(opt_state=mesh_lib.on_host(places.opt_state))
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, places
  )


def init(model, tx, config, mesh, loaded=None) -> TrainState:
  """The first state, born sharded: random from config.seed, or `loaded`.

  loaded: what is kept of the parameters, nested; what is missing in it, such as the factors of
  adapters, is random.
  """
  abstract = abstract_state(model, tx, config, mesh)
  places = sharding.shardings_of(abstract)
  image, text = (jnp.zeros(s.shape, s.dtype) for s in of_model.example_shapes(config))
  leaves = of_model.stored_params(model, config)

  flat_places, flat = param_tree.flatten(places.params), param_tree.flatten(loaded or {})
  missing = {name: place for name, place in flat_places.items() if name not in flat}

  @functools.partial(jax.jit, out_shardings=missing)
  def random_params():
    made = model.init(jax.random.key(config.seed), image, text, text)["params"]
    kept = param_tree.flatten(leaves.encode(made, config.seed))
    return {name: kept[name] for name in missing}

  if missing:
    flat |= random_params()
  values = param_tree.unflatten(dict(sorted(flat.items())))

  @functools.partial(jax.jit, out_shardings=(places.opt_state, places.ema))
  def beside(values):
    trained, _ = param_tree.split(values, param_rules.trained_names(leaves.rules))
    return tx.init(trained), None if config.ema_decay is None else ema_lib.start(trained)

  step = jax.device_put(jnp.zeros((), jnp.int32), places.step)
  return TrainState(step, values, *beside(values))
