"""From image and prompt to tokens: prefill, then one token at a time over a KV cache, in one jit.

Axes: B batch, T prompt tokens, L prefill length (image and prompt), S cache slots, V vocabulary.
The reference is trainers/proj/paligemma/predict_fns.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax import params as params_lib
from pgjax import sharding
from pgjax.models import gemma, paligemma, vocabulary


class State(NamedTuple):
  """What is carried from one token to the next."""

  step: Int[Array, ""]  # Tokens chosen so far.
  cache: gemma.Cache
  tokens: Int[Array, "B S"]  # 0 where nothing has been chosen yet, and after an eos.
  logp: Float[Array, "B S"]
  ended: Bool[Array, " B"]


def jitted(model, mesh, param_places, *, max_decode_len, eos=1, readable=params_lib.unflatten):
  """`f(params, batch) -> (tokens int32 [B, max_decode_len], logp float32 likewise)`, greedily.

  batch: image, text, mask_ar, mask_input [B, T], optionally image_mask, and `_mask` [B], false for
  rows that only fill the batch. A row's tokens end with its eos, zeros follow; logp is each
  token's log-probability, 0 after the eos. Stops when every row has ended.
  readable: from a flat dict of what is kept of the parameters to what modules read (step.readable).
  """
  layout = vocabulary.layout(mesh, params_lib.flatten(param_places)[paligemma.TABLE])
  decode = functools.partial(
    greedy,
    model=model.clone(constrain=sharding.batch_constraint(mesh)),
    layout=layout,
    readable=readable,
    max_decode_len=max_decode_len,
    eos=eos,
  )
  place = sharding.batch_sharding(mesh)
  return jax.jit(decode, in_shardings=(param_places, place), out_shardings=place)


def greedy(params, batch, *, model, layout, max_decode_len, eos, readable=params_lib.unflatten):
  """The most probable token at each step; ties go to the lowest id."""
  flat = params_lib.flatten(params)
  variables = {"params": readable(flat)}
  embed = functools.partial(_embed, flat[paligemma.TABLE], layout)
  zimg = model.apply(variables, batch["image"], method="embed_image")
  h_BD, cache, lengths_B = model.apply(
    variables,
    zimg,
    embed(batch["text"]),
    batch["mask_ar"],
    batch["mask_input"].astype(bool),
    batch.get("image_mask"),
    max_decode_len,
    method="prefill",
  )
  logits = functools.partial(model.apply, variables, method="logits")
  B, S = cache.k_LBSKH.shape[1:3]
  L = S - max_decode_len
  tokens = jnp.zeros((B, max_decode_len), jnp.int32)
  ended = ~batch["_mask"] if "_mask" in batch else jnp.zeros((B,), bool)
  state = State(jnp.zeros((), jnp.int32), cache, tokens, tokens.astype(jnp.float32), ended)

  def going_on(state):
    return (state.step < max_decode_len) & ~jnp.all(state.ended)

  def extend(state):
    """Reads the last token, then chooses the next."""
    last = state.step - 1
    slots_S = jnp.arange(S)  # A row's tokens stand without a gap, after its padding.
    seen_BS = (slots_S >= (L - lengths_B)[:, None]) & (slots_S <= L + last)
    h_BD, cache = model.apply(
      variables,
      embed(jax.lax.dynamic_slice_in_dim(state.tokens, last, 1, axis=1)),
      state.cache,
      lengths_B + last,
      seen_BS,
      L + last,
      method="extend",
    )
    return _choose(state._replace(cache=cache), logits(h_BD), eos)

  state = jax.lax.while_loop(going_on, extend, _choose(state, logits(h_BD), eos))
  return state.tokens, state.logp


def _choose(state, logits_BV, eos):
  """The most probable token of each row that has not ended."""
  token_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logp_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), token_B[:, None], axis=-1)[:, 0]
  token_B = jnp.where(state.ended, 0, token_B)
  return state._replace(
    step=state.step + 1,
    tokens=state.tokens.at[:, state.step].set(token_B),
    logp=state.logp.at[:, state.step].set(jnp.where(state.ended, 0.0, logp_B)),
    ended=state.ended | (token_B == eos),
  )


def _embed(table_VD, layout, tokens_BT):
  return vocabulary.embed(table_VD, tokens_BT, layout)
