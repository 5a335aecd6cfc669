"""One update of the trainable parameters: loss, gradients, update, and the one jit of training.

Axes: B batch, T text tokens the model sees (the batch holds T+1), D width, M microbatches.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.kernels import choice
from pgjax.layers import cross_entropy, embedding, mixed_precision, remat
from pgjax.models import paligemma
from pgjax.params import of_model, rules as param_rules
from pgjax.params.tree import flatten, merge, split, unflatten
from pgjax.training import ema, host_offload, one_pass, state as train_state, stochastic_rounding


def jitted(model, tx, config, mesh):
  """`train_step(state, batch) -> (state, measured)`; the old state's buffers are reused.

  batch: see data/pipeline.py. measured: float32 scalars on the device, of this step:
  training_loss (with label smoothing), l2_grads (before clipping), l2_params, l2_updates (of the
  trainable leaves), avg_sup_seqlen and max_sup_seqlen (tokens with a loss, per example).
  """
  shardings = sharding.shardings_of(train_state.abstract_state(model, tx, config, mesh))
  leaves = of_model.stored_params(model, config)
  update = functools.partial(_update, tx)
  trained = of_model.trained_shapes(model, config)
  policy = remat.chosen(model.remat, model.dtype, mesh.size)
  # Before such an update XLA's schedule holds gradients early: 3 GB more where little is stored.
  stores = remat.policy(policy).mlp_chunks == 1 and policy != "nothing_saveable"
  if in_one_pass := stores and model.kernels and one_pass.fits(tx, config, mesh, trained):
    update = functools.partial(one_pass.update, tx, grad_clip_norm=config.grad_clip_norm)
  if config.opt_state_memory == "host":
    update = functools.partial(
      host_offload.update_by_leaf,
      tx,
      fetch=mesh_lib.on_device,
      shardings=shardings.opt_state,
      grad_clip_norm=config.grad_clip_norm,
    )
  return jax.jit(
    functools.partial(
      train_step,
      model=model.clone(constrain=mesh_lib.batch_constraint(mesh), remat=policy),
      update=update,
      widen=not in_one_pass,
      readable=sharding.for_model(leaves, mesh),
      is_trained=frozenset(param_rules.trained_names(leaves.rules)),
      options=loss_options(model, config, table_layout(mesh, shardings.params), mesh),
      config=config,
      cast_first=_copied_to_gather(shardings.params),
    ),
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=(shardings, mesh_lib.replicated(mesh)),
    donate_argnums=0,
  )


def loss_options(model, config, layout=None, mesh=None):
  """The loss's static options; `layout`: how a mesh shards the token table."""
  one = mesh is not None and mesh.size == 1
  return cross_entropy.LossOptions(
    label_smoothing=config.label_smoothing,
    softcap=model.llm_config.final_logits_softcap,
    train_table=of_model.rules(model, config)[paligemma.TOKEN_TABLE].kind == "train",
    layout=layout,
    kernels=one and model.kernels and choice.runs_triton(model.dtype, choice.device_of(mesh)),
  )


def _copied_to_gather(param_shardings):
  """Stacked leaves that are split on a later axis than a layer's first: a gather reorders them."""
  flat = flatten(param_shardings)
  gathered = mesh_lib.gathered_dims
  return frozenset(n for n, s in flat.items() if s.mesh.size > 1 and any(gathered(s)[2:]))


def table_layout(mesh, param_shardings):
  """How the token table is sharded on that mesh."""
  return embedding.table_layout(mesh, flatten(param_shardings)[paligemma.TOKEN_TABLE])


def train_step(
  state, batch, *, model, update, readable, is_trained, options, config, cast_first, widen=True
):
  """One update; see `jitted`."""
  trained, frozen = split(state.params, is_trained)
  key = jax.random.fold_in(jax.random.key(config.seed), state.step)
  gradients_of = functools.partial(
    gradients,
    trained,
    frozen,
    model=model,
    readable=readable,
    options=options,
    examples=len(batch["text"]),
    cast_first=cast_first,
    widen=widen or config.microbatches > 1,
  )
  if config.microbatches == 1:
    grads, loss = gradients_of(batch, key)
  else:
    dtype = config.accumulation_dtype
    grads, loss = accumulated(gradients_of, batch, key, config.microbatches, dtype)
  on = config.stochastic_rounding
  rounding_key = stochastic_rounding.leaf_key(key, "rounding") if on else None
  apply = functools.partial(stochastic_rounding.apply_updates, key=rounding_key)
  trained, opt_state, *norms = update(apply, grads, state.opt_state, trained)
  lengths_B = jnp.sum(batch["mask_loss"][:, 1:], axis=1).astype(jnp.float32)
  measured = dict(
    training_loss=loss,
    l2_grads=optax.tree.norm(_wide(grads)),
    l2_updates=norms[0],
    l2_params=norms[1],
    avg_sup_seqlen=jnp.mean(lengths_B),
    max_sup_seqlen=jnp.max(lengths_B),
  )
  decay = config.ema_decay
  averages = None if decay is None else ema.updated(state.ema, trained, decay)
  params = merge(trained, frozen)
  return train_state.TrainState(state.step + 1, params, opt_state, averages), measured


def _update(tx, apply, grads, opt_state, leaves):
  """(new leaves, new state, norm of all updates, and of all new leaves).

  `apply(leaves, updates)` gives new leaves.
  """
  updates, opt_state = tx.update(grads, opt_state, leaves)
  leaves = apply(leaves, updates)
  return leaves, opt_state, optax.tree.norm(updates), optax.tree.norm(leaves)


def _wide(grads):
  return {name: g.astype(jnp.float32) for name, g in grads.items()}


def gradients(
  trained, frozen, batch, key, *, model, options, examples, readable=unflatten, cast_first=(),
  widen=True,
):  # fmt: skip
  """(gradients, loss) of these rows' part of the mean over `examples` examples.

  widen: gradients are float32; else most have the compute dtype, the table's too.
  """
  table = {**trained, **frozen}[paligemma.TOKEN_TABLE]
  tokens_BT = batch["text"][:, :-1]
  x_BTD = embedding.embed(table, tokens_BT, options.layout).astype(model.dtype)

  def loss_fn(moving, x_BTD):
    masters = mixed_precision.restored(trained, moving, model.dtype, cast_first)
    if narrow_table:
      master = mixed_precision.Master(table, moving[paligemma.TOKEN_TABLE])
      masters[paligemma.TOKEN_TABLE] = mixed_precision.weight(master, model.dtype)
    variables = {"params": readable({**masters, **frozen})}
    return _loss(model, variables, x_BTD, batch, options, examples, key)

  moving = mixed_precision.differentiable(trained, model.dtype)
  narrow_table = options.train_table and not widen and model.dtype == "bfloat16"
  if narrow_table:
    moving[paligemma.TOKEN_TABLE] = jnp.zeros(table.shape, model.dtype)
  if options.train_table:
    # The lookup's gradient goes into the buffer of the loss's: one table-sized array, not two.
    loss, (grads, dx_BTD) = jax.value_and_grad(loss_fn, argnums=(0, 1))(moving, x_BTD)
    dtable = grads[paligemma.TOKEN_TABLE]
    if narrow_table:
      dtable = embedding.add_narrow_embed_gradient(dtable, tokens_BT, dx_BTD)
    else:
      dtable = embedding.add_embed_gradient(dtable, tokens_BT, dx_BTD, options.layout)
    grads[paligemma.TOKEN_TABLE] = dtable
  else:
    loss, grads = jax.value_and_grad(loss_fn)(moving, x_BTD)
  return _wide(grads) if widen else grads, loss


def _loss(model, variables, x_BTD, batch, options, examples, key):
  """Mean over an example's tokens with a loss, then over examples."""
  mask_BT = batch["mask_loss"][:, 1:].astype(jnp.float32)
  weights_BT = mask_BT / jnp.maximum(1.0, jnp.sum(mask_BT, axis=1, keepdims=True)) / examples
  h_BTD = hidden_states(model, variables, x_BTD, batch, key)
  table = flatten(variables["params"])[paligemma.TOKEN_TABLE]
  return cross_entropy.weighted_nll(h_BTD, table, batch["text"][:, 1:], weights_BT, options)[0]


def hidden_states(model, variables, x_BTD, batch, key=None):
  """Normalized states of the text tokens; with a key as in training, with dropout."""
  rngs = {"dropout": key} if key is not None else None
  zimg = model.apply(variables, batch["image"], rngs=rngs, method="embed_image")
  return model.apply(
    variables,
    zimg,
    x_BTD,
    batch["mask_ar"][:, :-1],
    train=key is not None,
    image_mask=batch.get("image_mask"),
    rngs=rngs,
    method="hidden",
  )


def accumulated(gradients_of, batch, key, microbatches, dtype):
  """Sums over microbatches of every M-th row each, so that no row changes its device.

  The gradients' sum is stored in `dtype`, and rounded to it once for each microbatch.
  """
  parts = jax.tree.map(
    lambda a: jnp.swapaxes(a.reshape(-1, microbatches, *a.shape[1:]), 0, 1), batch
  )

  def body(total, numbered):
    number, part = numbered
    new = gradients_of(part, jax.random.fold_in(key, number))
    return stored(jax.tree.map(jnp.add, total, new)), None

  def stored(sums):
    grads, loss = sums
    return {name: g.astype(dtype) for name, g in grads.items()}, loss

  first = gradients_of(jax.tree.map(lambda a: a[0], parts), jax.random.fold_in(key, 0))
  rest = jax.tree.map(lambda a: a[1:], parts)
  (grads, loss), _ = jax.lax.scan(body, stored(first), (jnp.arange(1, microbatches), rest))
  return {name: g.astype(jnp.float32) for name, g in grads.items()}, loss
