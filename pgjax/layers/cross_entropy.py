"""The loss over the vocabulary without all the logits.

One chunk of tokens at a time, only tokens with a loss: their logits become gradients at once, so
no [B, T, V] array exists and no logit is computed twice. On a mesh, a table sharded by rows is not
moved; the tokens are (Megatron-LM's vocabulary-parallel loss, arXiv:1909.08053, section 3).

Axes: B batch, T tokens, D width, V vocabulary (257,152), C tokens of one chunk.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pgjax.layers import embedding


class LossOptions(NamedTuple):
  """The static settings of a loss."""

  label_smoothing: float = 0.0
  softcap: float = 0.0  # 0: off.
  chunk: int | None = None  # Tokens of a chunk on a device; default: `chunk_size`.
  train_table: bool = True
  layout: embedding.TableLayout | None = None
  kernels: bool = False  # Of kernels/logsumexp.py, on one device.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def weighted_nll(
  h_BTD: Float[Array, "B T D"],
  table_VD: Float[Array, "V D"],
  targets_BT: Int[Array, "B T"],
  weights_BT: Float[Array, "B T"],
  options: LossOptions,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
  """(sum of weights * nll, nll per token) of the targets; nll is 0 where the weight is 0.

  With label smoothing s the target distribution is 1-s on the token and s/(V-1) on every other
  (trainers/proj/paligemma/train.py of the reference). Only the first result, and only with respect
  to h and the table, has a gradient.
  """
  nll_BT, _, _ = _run(h_BTD, table_VD, targets_BT, weights_BT, options, False)
  return jnp.sum(nll_BT * weights_BT), nll_BT


def _weighted_nll_forward(h_BTD, table_VD, targets_BT, weights_BT, options):
  nll_BT, dh, dtable = _run(h_BTD, table_VD, targets_BT, weights_BT, options, True)
  return (jnp.sum(nll_BT * weights_BT), nll_BT), (dh, dtable)


def _weighted_nll_backward(options, residuals, cotangents):
  g, (dh, dtable) = cotangents[0], residuals
  dtable = None if dtable is None else (dtable * g).astype(dtable.dtype)
  return (dh * g).astype(dh.dtype), dtable, None, None


weighted_nll.defvjp(_weighted_nll_forward, _weighted_nll_backward)


def _run(h_BTD, table_VD, targets_BT, weights_BT, options, with_gradients):
  run = functools.partial(_run_local, options=options, with_gradients=with_gradients)
  if options.layout:
    layout = options.layout.of(targets_BT)
    run = functools.partial(run, options=options._replace(layout=layout))
    batch, rows = layout.batch, layout.rows
    dh, dtable = with_gradients, with_gradients and options.train_table
    out_specs = (batch, batch if dh else None, rows if dtable else None)
    run = layout.sharded(run, (batch, rows, batch, batch), out_specs)
  return run(h_BTD, table_VD, targets_BT, weights_BT)


def _run_local(h_BTD, table_VD, targets_BT, weights_BT, options, with_gradients):
  """This device's rows; tokens with a loss come first and are processed in chunks."""
  layout = options.layout
  N, D = targets_BT.size, h_BTD.shape[-1]
  C = min(N, options.chunk or chunk_size(N, options.train_table))
  padding = -N % C
  order = jnp.argsort(weights_BT.reshape(N) <= 0, stable=True)
  h, targets, weights = (
    jnp.pad(a[order], ((0, padding),) + ((0, 0),) * (a.ndim - 1)).reshape(-1, C, *a.shape[1:])
    for a in (h_BTD.reshape(N, D), targets_BT.reshape(N), weights_BT.reshape(N))
  )
  used = jnp.sum(weights_BT > 0)
  if layout and layout.token_axes:
    used = jax.lax.pmax(used, layout.token_axes)  # A chunk's collectives need every device.

  trained = with_gradients and options.train_table
  table = table_VD.astype(h_BTD.dtype)  # One copy in the compute dtype, gone after the loss.
  step = functools.partial(_chunk, table=table, options=options, with_gradients=with_gradients)

  def body(i, carry):
    dtable, nll, dh = carry
    dtable, nll_C, dh_CD = step(dtable, h[i], targets[i], weights[i])
    return dtable, nll.at[i].set(nll_C), None if dh is None else dh.at[i].set(dh_CD)

  # Gradients accumulate in float32. Chunks without a token with a loss are skipped.
  dtable = jnp.zeros(table_VD.shape, jnp.float32) if trained else None
  carry = dtable, jnp.zeros(targets.shape), jnp.zeros_like(h) if with_gradients else None
  dtable, nll, dh = jax.lax.fori_loop(0, (used + C - 1) // C, body, carry)
  if trained:
    others = tuple(a for a in layout.token_axes if a not in layout.vocab_axes) if layout else ()
    dtable = (jax.lax.psum(dtable, others) if others else dtable).astype(table_VD.dtype)
  unpack = lambda a: jnp.zeros_like(a).at[order].set(a)  # noqa: E731
  nll_BT = unpack(nll.reshape(-1)[:N]).reshape(targets_BT.shape)
  dh_BTD = unpack(dh.reshape(-1, D)[:N]).reshape(h_BTD.shape) if with_gradients else None
  if trained and dtable.dtype != jnp.float32:
    # XLA would round the sums only when they are read, and hold them until then. So that it cannot,
    # the layers' backward pass waits for a number of the result.
    dtable = jax.lax.optimization_barrier(dtable)
    dh_BTD += (0.0 * dtable[0, 0]).astype(dh_BTD.dtype)
  return nll_BT, dh_BTD, dtable


def chunk_size(tokens: int, train_table: bool = True) -> int:
  """Tokens of one chunk, out of N: at most 1 GB of logits, in few passes over the table."""
  return min(1024, max(128, -(-tokens // (4 if train_table else 8))))


def _summed_over(axes):
  return functools.partial(jax.lax.psum, axis_name=axes) if axes else lambda a: a


def _logsumexp(logits_CV, axes, kernels):
  """Of each row, whose parts the devices along `axes` have."""
  if kernels and not axes:
    from pgjax.kernels import logsumexp  # Pallas takes long to import.

    return logsumexp.of_rows(logits_CV)
  largest = jnp.max(logits_CV, axis=-1)
  largest = jax.lax.pmax(largest, axes) if axes else largest
  exponentials = jnp.sum(jnp.exp(logits_CV - largest[:, None]), axis=-1)
  return largest + jnp.log(_summed_over(axes)(exponentials))


def _chunk(dtable, h_CD, targets_C, weights_C, *, table, options, with_gradients):
  """(table gradient with this chunk's, nll [C], gradient of h [C, D])."""
  layout, C = options.layout, h_CD.shape[0]
  axes, batch = (layout.vocab_axes, layout.gathered_axes) if layout else ((), ())
  total = _summed_over(axes)
  h_CD, targets_C, weights_C = embedding.gathered((h_CD, targets_C, weights_C), layout)
  V = table.shape[0] * math.prod(layout.mesh.shape[axis] for axis in axes)
  rest = options.label_smoothing / (V - 1)
  extra = 1.0 - options.label_smoothing - rest  # So that the token gets extra + rest = 1 - s.
  local, mine = embedding.local_ids(targets_C, table.shape[0], axes)
  target_CV = (jnp.arange(table.shape[0]) == local[:, None]) & mine[:, None]

  logits_CV = embedding.cap(embedding.product(h_CD, table), options.softcap)
  lse = _logsumexp(logits_CV, axes, options.kernels)
  at_target = total(jnp.sum(jnp.where(target_CV, logits_CV, 0.0), axis=-1))
  nll = lse - extra * at_target
  if rest:
    nll = nll - rest * total(jnp.sum(logits_CV, axis=-1))
  nll = jnp.where(weights_C > 0, nll, 0.0)
  nll = jax.lax.dynamic_slice_in_dim(nll, jax.lax.axis_index(batch) * C, C) if batch else nll
  if not with_gradients:
    return dtable, nll, None

  dlogits = jnp.exp(logits_CV - lse[:, None]) - rest - jnp.where(target_CV, extra, 0.0)
  if options.softcap:
    dlogits = dlogits * (1 - (logits_CV / options.softcap) ** 2)
  dlogits = (dlogits * weights_C[:, None]).astype(h_CD.dtype)
  dh = jnp.einsum("CV,VD->CD", dlogits, table, preferred_element_type=jnp.float32)
  dh = embedding.summed(dh, layout)
  if dtable is not None:
    dtable = dtable + jnp.einsum("CV,CD->VD", dlogits, h_CD, preferred_element_type=jnp.float32)
  return dtable, nll, dh.astype(h_CD.dtype)
