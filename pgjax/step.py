"""One update of the trained leaves: state, loss, gradients, and the one jit of training.

Axes: B batch, T text tokens the model sees (the batch holds T+1), D width, M microbatches.
Everything here is a pure function of (state, batch); logging and saving are the caller's.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pgjax import params as params_lib
from pgjax import sharding
from pgjax.models import mixed, remat, vocabulary

TABLE = "llm/embedder/input_embedding"


class TrainState(NamedTuple):
  """What a step reads and writes, and what a checkpoint holds."""

  step: Int[Array, ""]
  params: dict[str, Any]  # Nested, all leaves; frozen ones in their storage dtype.
  opt_state: Any  # Of the trained leaves alone, keyed by their flat names.


def example_shapes(config, text_len=None):
  """(image, text) of a batch of one, abstract."""
  images = (config.num_frames,) if config.num_frames else ()
  image = jax.ShapeDtypeStruct((1, *images, config.res, config.res, 3), jnp.float32)
  return image, jax.ShapeDtypeStruct((1, text_len or config.text_len), jnp.int32)


def param_shapes(model, config):
  """Names and shapes of all parameters as a nested dict of float32 ShapeDtypeStructs."""
  image, text = example_shapes(config)
  return jax.eval_shape(model.init, jax.random.key(0), image, text, text)["params"]


def rules(model, config) -> dict[str, params_lib.Rule]:
  """What trains: the config's list applied to the model's names."""
  return _rules(config, param_shapes(model, config))


def _rules(config, tree):
  """The same, for who has the names already: finding them means tracing the whole model."""
  return params_lib.rules(config.params, params_lib.flatten(tree))


def _stored(shapes, rule_of):
  """Shapes with the dtype that each leaf is kept in."""
  flat = params_lib.flatten(shapes)
  dtypes = {name: rule_of[name].dtype or leaf.dtype for name, leaf in flat.items()}
  return params_lib.unflatten(
    {name: jax.ShapeDtypeStruct(leaf.shape, dtypes[name]) for name, leaf in flat.items()}
  )


def abstract_state(model, tx, config, mesh) -> TrainState:
  """The state as shapes, dtypes and shardings; nothing is allocated."""
  shapes = param_shapes(model, config)
  rule_of = _rules(config, shapes)
  stored = _stored(shapes, rule_of)
  trained, _ = params_lib.split(stored, rule_of)
  state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), stored, jax.eval_shape(tx.init, trained))
  places = sharding.shardings(config.sharding_strategy, state, mesh)
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, places
  )


def shardings_of(tree):
  """The shardings of arrays or abstract arrays."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def init(model, tx, config, mesh, loaded=None) -> TrainState:
  """The first state, born sharded: random from config.seed, or `loaded` (all parameters)."""
  abstract = abstract_state(model, tx, config, mesh)
  places = shardings_of(abstract)
  image, text = (jnp.zeros(s.shape, s.dtype) for s in example_shapes(config))
  rule_of = _rules(config, abstract.params)

  @functools.partial(jax.jit, out_shardings=places.params)
  def random_params():
    made = model.init(jax.random.key(config.seed), image, text, text)["params"]
    return jax.tree.map(lambda a, leaf: a.astype(leaf.dtype), made, abstract.params)

  values = random_params() if loaded is None else loaded

  @functools.partial(jax.jit, out_shardings=places.opt_state)
  def fresh_opt_state(values):
    return tx.init(params_lib.split(values, rule_of)[0])

  step = jax.device_put(jnp.zeros((), jnp.int32), places.step)
  return TrainState(step, values, fresh_opt_state(values))


def jitted(model, tx, config, mesh):
  """`train_step(state, batch) -> (state, measured)`; the old state's buffers are reused.

  batch: see data/pipeline.py. measured: float32 scalars on the device, of this step:
  training_loss (with label smoothing), l2_grads (before clipping), l2_params, l2_updates (of the
  trained leaves), avg_sup_seqlen and max_sup_seqlen (tokens with a loss, per example).
  """
  abstract = abstract_state(model, tx, config, mesh)
  places = shardings_of(abstract)
  batch_place = sharding.batch_sharding(mesh)
  options = loss_options(model, config, _layout(mesh, places.params))
  return jax.jit(
    functools.partial(
      train_step,
      model=model.clone(
        constrain=sharding.batch_constraint(mesh),
        remat=remat.chosen(model.remat, model.dtype, mesh.size),
      ),
      tx=tx,
      rule_of=_rules(config, abstract.params),
      options=options,
      seed=config.seed,
      microbatches=config.microbatches,
      cast_first=_copied_to_gather(places.params),
    ),
    in_shardings=(places, batch_place),
    out_shardings=(places, sharding.replicated(mesh)),
    donate_argnums=0,
  )


def loss_options(model, config, layout=None, *, train=True):
  """What is static about the loss; `layout` says where the table lies on a mesh."""
  return vocabulary.Options(
    label_smoothing=config.label_smoothing if train else 0.0,
    softcap=model.llm_config.final_logits_softcap,
    train_table=train and rules(model, config)[TABLE].kind == "train",
    layout=layout,
  )


def _copied_to_gather(param_places):
  """Names of stacked leaves whose slices of a layer do not lie in the order of their shards."""
  places = params_lib.flatten(param_places)
  return frozenset(
    name for name, place in places.items() if place.mesh.size > 1 and any(place.spec[2:])
  )


def _layout(mesh, param_places):
  return vocabulary.layout(mesh, params_lib.flatten(param_places)[TABLE])


def train_step(state, batch, *, model, tx, rule_of, options, seed, microbatches, cast_first):
  """One update; see `jitted`."""
  trained, frozen = params_lib.split(state.params, rule_of)
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  gradients_of = functools.partial(
    gradients,
    trained,
    frozen,
    model=model,
    options=options,
    examples=len(batch["text"]),
    cast_first=cast_first,
  )
  if microbatches == 1:
    grads, loss = gradients_of(batch, key)
  else:
    grads, loss = _accumulated(gradients_of, batch, key, microbatches)
  updates, opt_state = tx.update(grads, state.opt_state, trained)
  trained = optax.apply_updates(trained, updates)
  lengths_B = jnp.sum(batch["mask_loss"][:, 1:], axis=1).astype(jnp.float32)
  measured = dict(
    training_loss=loss,
    l2_grads=optax.tree.norm(grads),
    l2_params=optax.tree.norm(trained),
    l2_updates=optax.tree.norm(updates),
    avg_sup_seqlen=jnp.mean(lengths_B),
    max_sup_seqlen=jnp.max(lengths_B),
  )
  return TrainState(state.step + 1, params_lib.merge(trained, frozen), opt_state), measured


def gradients(trained, frozen, batch, key, *, model, options, examples, cast_first=()):
  """(gradients, loss) of these rows' part of the mean over `examples` examples."""
  table = {**trained, **frozen}[TABLE]
  tokens_BT = batch["text"][:, :-1]
  x_BTD = vocabulary.embed(table, tokens_BT, options.layout).astype(model.dtype)

  def loss_fn(moving, x_BTD):
    leaves = mixed.restored(trained, moving, model.dtype, cast_first)
    variables = {"params": params_lib.merge(leaves, frozen)}
    return _loss(model, variables, x_BTD, batch, options, examples, key)

  moving = mixed.differentiable(trained, model.dtype)
  if options.train_table:
    # The lookup's gradient goes into the buffer of the loss's: one table-sized array, not two.
    loss, (grads, dx_BTD) = jax.value_and_grad(loss_fn, argnums=(0, 1))(moving, x_BTD)
    grads[TABLE] = vocabulary.add_embed_gradient(grads[TABLE], tokens_BT, dx_BTD, options.layout)
  else:
    loss, grads = jax.value_and_grad(loss_fn)(moving, x_BTD)
  return {name: g.astype(trained[name].dtype) for name, g in grads.items()}, loss


def _loss(model, variables, x_BTD, batch, options, examples, key):
  """Mean over an example's learned tokens, then over examples."""
  mask_BT = batch["mask_loss"][:, 1:].astype(jnp.float32)
  weights_BT = mask_BT / jnp.maximum(1.0, jnp.sum(mask_BT, axis=1, keepdims=True)) / examples
  h_BTD = _hidden(model, variables, x_BTD, batch, train=True, rngs={"dropout": key})
  table = params_lib.flatten(variables["params"])[TABLE]
  return vocabulary.weighted_nll(h_BTD, table, batch["text"][:, 1:], weights_BT, options)[0]


def _hidden(model, variables, x_BTD, batch, train=False, rngs=None):
  zimg = model.apply(variables, batch["image"], method="embed_image")
  return model.apply(
    variables,
    zimg,
    x_BTD,
    batch["mask_ar"][:, :-1],
    train=train,
    image_mask=batch.get("image_mask"),
    rngs=rngs,
    method="hidden",
  )


def _accumulated(gradients_of, batch, key, microbatches):
  """Sums over microbatches; each takes every M-th row, so that no row changes its device."""
  parts = jax.tree.map(
    lambda a: jnp.swapaxes(a.reshape(-1, microbatches, *a.shape[1:]), 0, 1), batch
  )

  def body(total, xs):
    number, part = xs
    new = gradients_of(part, jax.random.fold_in(key, number))
    return jax.tree.map(jnp.add, total, new), None

  first = gradients_of(jax.tree.map(lambda a: a[0], parts), jax.random.fold_in(key, 0))
  rest = jax.tree.map(lambda a: a[1:], parts)
  total, _ = jax.lax.scan(body, first, (jnp.arange(1, microbatches), rest))
  return total


def jitted_nll(model, config, mesh, param_places):
  """`f(params, batch) -> (nll [B], count [B])`: sum of -log p over learned tokens, their number.

  Without dropout and label smoothing; the perplexity evaluator divides.
  """
  options = loss_options(model, config, _layout(mesh, param_places), train=False)
  model = model.clone(constrain=sharding.batch_constraint(mesh))

  def nll(params, batch) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    table = params_lib.flatten(params)[TABLE]
    x_BTD = vocabulary.embed(table, batch["text"][:, :-1], options.layout).astype(model.dtype)
    h_BTD = _hidden(model, {"params": params}, x_BTD, batch)
    mask_BT = batch["mask_loss"][:, 1:].astype(jnp.float32)
    _, nll_BT = vocabulary.weighted_nll(h_BTD, table, batch["text"][:, 1:], mask_BT, options)
    return jnp.sum(nll_BT, axis=1), jnp.sum(mask_BT, axis=1)

  place = sharding.batch_sharding(mesh)
  return jax.jit(nll, in_shardings=(param_places, place), out_shardings=place)


def jitted_checksums():
  """`f({name: array}) -> {name: uint32}`: the sum of an array's bits, the same on every mesh.

  For checkpoints: whole numbers add up to the same whatever the order and the sharding.
  """

  def checksum(x):
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

  return jax.jit(lambda arrays: jax.tree.map(checksum, arrays))
