"""How do an image and a prompt become tokens? By a prefill, then one token a step over a KV cache.

A row of the batch may have several continuations, its branches: the samples of best_of, the live
hypotheses of a beam search (search.py). They share the prompt's keys and values, and each attends
only to the slots of its own tokens, so a search never copies the cache.

Axes: B batch, N branches of a row, T new tokens, L prefill length (image and prompt), S cache
slots (L for the prompt, then N for each new token), V vocabulary. The reference is
trainers/proj/paligemma/predict_fns.py.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pgjax.config.decode_method import GREEDY
from pgjax.distributed import mesh as mesh_lib
from pgjax.inference import decode_weights, kernel_check, search
from pgjax.kernels import choice
from pgjax.layers import embedding, rotary
from pgjax.models import paligemma
from pgjax.params import tree as param_tree


class Decoded(NamedTuple):
  """The answers; a row's tokens end with its eos, followed by zeros."""

  tokens: Int[Array, "B T"]
  logp: Float[Array, "B T"]  # Before temperature, top-k and grammar; 0 after the eos.


def jitted(
  model, mesh, param_places, *, max_decode_len, method=GREEDY, eos=1, readable=param_tree.unflatten
):
  """`f(params, batch, key=None, masks=None) -> Decoded` of max_decode_len tokens a row.

  batch: image, text, mask_ar, mask_input [B, T], optionally image_mask; `_mask` [B], false for
  padding rows; `_index` [B], the row's number in its split, which seeds its samples instead of its
  place in the batch; `_grammar` [B], which grammar of `masks` (grammar.py) constrains it.
  key: of random numbers, for methods that sample. Stops when every row has ended; eos=-1 never.
  readable: from the flat dict of stored parameters to what modules read (sharding.for_model).
  """
  layout = embedding.table_layout(mesh, param_tree.flatten(param_places)[paligemma.TOKEN_TABLE])
  run = functools.partial(
    decoded,
    model=model.clone(constrain=mesh_lib.batch_constraint(mesh)),
    layout=layout,
    readable=readable,
    max_decode_len=max_decode_len,
    method=method,
    eos=eos,
    mesh=mesh,
    byte_budget=decode_weights.byte_budget(mesh),
    kernels=kernel_check.right(model, mesh),
  )
  rows, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
  inputs = (param_places, rows, everywhere, everywhere)
  compiled = jax.jit(run, in_shardings=inputs, out_shardings=rows)
  return lambda params, batch, key=None, masks=None: compiled(params, batch, key, masks)


def decoded(
  params,
  batch,
  key=None,
  masks=None,
  *,
  model,
  layout,
  max_decode_len,
  method=GREEDY,
  eos=1,
  readable=param_tree.unflatten,
  mesh=None,
  byte_budget=math.inf,
  kernels=True,
) -> Decoded:
  """What `jitted` compiles. It reads a copy of the weights if that fits `byte_budget`.

  kernels: those of pgjax/kernels may be used where they fit.
  """
  flat = param_tree.flatten(params)
  fits = decode_weights.size(flat, model.dtype, mesh) <= byte_budget
  weights = decode_weights.gather_and_cast(flat, model.dtype, mesh) if fits else flat
  variables = {"params": readable(weights)}
  N = method.branches
  embed = functools.partial(embedding.embed, flat[paligemma.TOKEN_TABLE], layout=layout)
  platform = choice.device_of(mesh).platform
  next_logits = functools.partial(_logits, model, variables, platform)
  h_BD, caches, lengths_B = model.apply(
    variables,
    model.apply(variables, batch["image"], method="embed_image"),
    embed(batch["text"]),
    batch["mask_ar"],
    batch["mask_input"].astype(bool),
    batch.get("image_mask"),
    max_decode_len * N,
    kernels,
    method="prefill",
  )
  rows = len(batch["text"]) * N
  layers = _layers(model, variables, rows, kernels) if fits else None
  L = caches[0].k_BKHS.shape[3] - max_decode_len * N
  table = rotary.table(L + max_decode_len, model.llm_config.head_dim)
  rules = search.rules(method, eos, batch, key, masks, mesh)

  def extend(state):
    """Reads the last token of each branch, then chooses the next."""
    last = state.step - 1
    tokens_BN = jax.lax.dynamic_index_in_dim(state.tokens, last, axis=2, keepdims=False)
    h_BND, caches = model.apply(
      variables,
      embed(tokens_BN),
      state.caches,
      rotary.at(table, jnp.broadcast_to((lengths_B + last)[:, None], tokens_BN.shape)),
      _visible(state.path, last, lengths_B, L),
      L + last * N,
      layers,
      kernels,
      method="extend",
    )
    return search.choose(state._replace(caches=caches), next_logits(h_BND), rules)

  first_BNV = jnp.repeat(next_logits(h_BD)[:, None], N, axis=1)
  state = search.choose(search.start(caches, rules, max_decode_len), first_BNV, rules)
  state = jax.lax.while_loop(functools.partial(search.is_unfinished, rules=rules), extend, state)
  return Decoded(*search.best(state, rules))


def _layers(model, variables, rows, kernels):
  """The copy of each layer's parameters that is fast for so many rows."""
  in_kernels = kernels and decode_weights.multiplies_codes(rows, model.dtype, model.constrain)
  stacked = model.apply(variables, method="layer_params")
  return [decode_weights.fuse(layer, model.dtype, model.constrain, in_kernels) for layer in stacked]


def _logits(model, variables, platform, h_BND):
  """The logits of a few rows, by the product that the platform is fast at."""
  if platform == "gpu" and math.prod(h_BND.shape[:-1]) == 1:
    # XLA for GPUs multiplies one row in float32, with a copy of the table.
    h_BND = jnp.pad(h_BND, ((0, 7), *((0, 0),) * (h_BND.ndim - 1)))
    return model.apply(variables, h_BND, method="logits")[:1]
  rows = math.prod(h_BND.shape[:-1])
  columns = platform == "cpu" and decode_weights.are_few(rows, model.constrain)
  return model.apply(variables, h_BND, columns, method="logits")


def _visible(path_BNT, last, lengths_B, L):
  """Bool [B, N, S]: the prompt, right-aligned in its slots, and the branch's own tokens."""
  B, N, T = path_BNT.shape
  prompt_BL = jnp.arange(L) >= (L - lengths_B)[:, None]
  own_BNTN = path_BNT[..., None] == jnp.arange(N)
  own_BNTN = own_BNTN & (jnp.arange(T) <= last)[:, None]
  prompt_BNL = jnp.broadcast_to(prompt_BL[:, None], (B, N, L))
  return jnp.concatenate([prompt_BNL, own_BNTN.reshape(B, N, T * N)], axis=2)
