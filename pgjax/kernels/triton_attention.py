"""Attention whose scores stay inside three kernels: Triton, for NVIDIA GPUs from Ampere on.

The forward kernel writes the output and the log of the softmax's denominator. The backward pass has
a kernel for the gradients of keys and values and one for that of queries; both make the scores
again, so nothing is added up between programs and results are the same each time. For short
sequences the first also writes the gradient of scores, which the second reads. Heads are cut into
powers of two of at least 16 numbers: 72 as 64 and 16. Scores and softmax are float32, probabilities
are rounded to v's dtype.

Axes: B batch, T query, S key, K key/value heads, G query heads per key/value head, H head size, h
numbers of a part of a head, t queries of a block, s keys of a block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from pgjax.kernels.chunked import MASKED, MAX_EXPONENT
from pgjax.kernels.triton import Blocks, Tile, parts, stores_scores
from pgjax.kernels.visible_keys import VisibleKeys


class _How(NamedTuple):
  """Static arguments of the kernels."""

  heads: tuple[tuple[int, int], ...]  # Where each part of a head begins, and its size.
  keys: int
  softcap: float
  masked: bool
  some_invalid: bool
  tile: Tile

  @property
  def num_masks(self) -> int:
    """Arrays of VisibleKeys."""
    return self.masked + self.some_invalid


def forward(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  visible: VisibleKeys | None,
  *,
  softcap: float,
  blocks: Blocks,
  interpret: bool,
) -> tuple[Float[Array, "B T K G H"], Float[Array, "B K G T"]]:
  """(output in v's dtype, log of the softmax's denominator in float32)."""
  B, T, K, G, _ = q_BTKGH.shape
  call = _Call(q_BTKGH, k_BSKH, visible, softcap, blocks.forward, interpret)
  return call.by_queries(
    _forward, "attention_forward", [q_BTKGH, k_BSKH, v_BSKH], [0, 1, 1],
    [jax.ShapeDtypeStruct(q_BTKGH.shape, v_BSKH.dtype),
     jax.ShapeDtypeStruct((B, K, G, T), jnp.float32)],
  )  # fmt: skip


def backward(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  visible: VisibleKeys | None,
  out_BTKGH: Float[Array, "B T K G H"],
  lse_BKGT: Float[Array, "B K G T"],
  dout_BTKGH: Float[Array, "B T K G H"],
  *,
  softcap: float,
  blocks: Blocks,
  interpret: bool,
) -> tuple[Float[Array, "B T K G H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
  """Gradients of q, k and v, in their dtypes."""
  like = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)  # noqa: E731
  B, T, K, G, _ = q_BTKGH.shape
  if stores_scores(k_BSKH.shape[1]):
    call = _Call(q_BTKGH, k_BSKH, None, softcap, blocks.queries, interpret)
    (mean_BKGT,) = call.by_queries(
      _means, "attention_means", [out_BTKGH, dout_BTKGH], [0, 0], [like(lse_BKGT)], first_output=1
    )
    call = _Call(q_BTKGH, k_BSKH, visible, softcap, blocks.keys, interpret)
    dscores = jax.ShapeDtypeStruct((B, K, G, T, k_BSKH.shape[1]), q_BTKGH.dtype)
    dk_BSKH, dv_BSKH, dscores_BKGTS = call.by_keys(
      _backward_keys, "attention_backward_keys",
      [q_BTKGH, k_BSKH, v_BSKH, lse_BKGT, mean_BKGT, dout_BTKGH], [0, 1, 1, 2, 2, 0],
      [like(k_BSKH), like(v_BSKH), dscores],
    )  # fmt: skip
    call = _Call(q_BTKGH, k_BSKH, None, softcap, blocks.queries, interpret)
    (dq_BTKGH,) = call.by_queries(
      _from_scores, "attention_from_scores", [dscores_BKGTS, k_BSKH], [3, 1], [like(q_BTKGH)]
    )
    return dq_BTKGH, dk_BSKH, dv_BSKH
  call = _Call(q_BTKGH, k_BSKH, visible, softcap, blocks.queries, interpret)
  dq_BTKGH, mean_BKGT = call.by_queries(
    _backward_queries, "attention_backward_queries",
    [q_BTKGH, k_BSKH, v_BSKH, out_BTKGH, lse_BKGT, dout_BTKGH], [0, 1, 1, 0, 2, 0],
    [like(q_BTKGH), like(lse_BKGT)],
  )  # fmt: skip
  call = _Call(q_BTKGH, k_BSKH, visible, softcap, blocks.keys, interpret)
  dk_BSKH, dv_BSKH = call.by_keys(
    _backward_keys, "attention_backward_keys",
    [q_BTKGH, k_BSKH, v_BSKH, lse_BKGT, mean_BKGT, dout_BTKGH], [0, 1, 1, 2, 2, 0],
    [like(k_BSKH), like(v_BSKH)],
  )  # fmt: skip
  return dq_BTKGH, dk_BSKH, dv_BSKH


class _Call:
  """How a kernel is started for arrays of these shapes."""

  def __init__(self, q_BTKGH, k_BSKH, visible, softcap, tile, interpret):
    self.sizes = q_BTKGH.shape
    self.num_keys = k_BSKH.shape[1]
    self.interpret = interpret
    invalid = visible is not None and visible.valid_BS is not None
    self.how = _How(parts(self.sizes[-1]), self.num_keys, softcap, visible is not None, invalid,
                    tile)  # fmt: skip
    self.masks = [] if visible is None else [visible.end_BT.astype(jnp.int32)]
    self.masks += [visible.valid_BS.astype(jnp.int8)] if invalid else []

  def by_queries(self, kernel, name, inputs, kinds, outputs, first_output=0) -> Any:
    """A program for a block of queries of a head; kinds: 0 as q, 1 as k, 2 as lse, 3 scores."""
    B, T, K, G, H = self.sizes
    S = self.num_keys
    specs = [
      pl.BlockSpec((None, T, None, None, H), lambda i, n, b: (b, 0, n // G, n % G, 0)),
      pl.BlockSpec((None, S, None, H), lambda i, n, b: (b, 0, n // G, 0)),
      pl.BlockSpec((None, None, None, T), lambda i, n, b: (b, n // G, n % G, 0)),
      pl.BlockSpec((None, None, None, T, S), lambda i, n, b: (b, n // G, n % G, 0, 0)),
    ]
    grid = (pl.cdiv(T, self.how.tile.queries), K * G, B)
    specs_in, specs_out = (
      [specs[i] for i in kinds],
      [specs[0], specs[2]][first_output:][: len(outputs)],
    )
    return self._run(kernel, name, grid, inputs, specs_in, outputs, specs_out)

  def by_keys(self, kernel, name, inputs, kinds, outputs) -> Any:
    """A program for a block of keys of a head, and all query heads that share them."""
    B, T, K, G, H = self.sizes
    S = self.num_keys
    specs = [
      pl.BlockSpec((None, T, None, G, H), lambda j, n, b: (b, 0, n, 0, 0)),
      pl.BlockSpec((None, S, None, H), lambda j, n, b: (b, 0, n, 0)),
      pl.BlockSpec((None, None, G, T), lambda j, n, b: (b, n, 0, 0)),
    ]
    grid = (pl.cdiv(S, self.how.tile.keys), K, B)
    dscores = pl.BlockSpec((None, None, G, T, S), lambda j, n, b: (b, n, 0, 0, 0))
    out_specs = [specs[1], specs[1], dscores][: len(outputs)]
    return self._run(kernel, name, grid, inputs, [specs[i] for i in kinds], outputs, out_specs)

  def _run(self, kernel, name, grid, inputs, specs, outputs, out_specs):
    each = [pl.BlockSpec((None, a.shape[1]), lambda i, n, b: (b, 0)) for a in self.masks]
    return pl.pallas_call(
      functools.partial(kernel, how=self.how),
      grid=grid,
      in_specs=[*specs, *each],
      out_specs=out_specs,
      out_shape=outputs,
      compiler_params=plgpu.CompilerParams(
        num_warps=self.how.tile.warps, num_stages=self.how.tile.stages
      ),
      interpret=self.interpret,
      name=name,
    )(*inputs, *self.masks)


def _forward(q_ref, k_ref, v_ref, *rest, how):
  *masks, out_ref, lse_ref = rest
  T, (queries, keys) = q_ref.shape[0], how.tile[:2]
  t = pl.program_id(0) * queries + jnp.arange(queries)
  q = _load(q_ref, how, t, T)
  end_t = _ends(masks, how, t, T)
  bounded = 0 < how.softcap <= MAX_EXPONENT

  def step(j, carry):
    *outs, largest_t, total_t = carry
    s = j * keys + jnp.arange(keys)
    k, v = (_load(ref, how, s, how.keys) for ref in (k_ref, v_ref))
    scores_ts, _ = _capped(_sum_of_products(q, k), how.softcap)
    seen_ts = _seen(masks, how, end_t and end_t[0][:, None], s[None])
    if seen_ts is not None:
      scores_ts = jnp.where(seen_ts, scores_ts, MASKED)
    if bounded:
      probs_ts = jnp.exp(scores_ts).astype(v[0].dtype)
    else:
      new_t = jnp.maximum(largest_t, jnp.max(scores_ts, axis=1))
      probs_ts = jnp.exp(scores_ts - new_t[:, None]).astype(v[0].dtype)
      less_t = jnp.exp(largest_t - new_t)
      outs, total_t, largest_t = [o * less_t[:, None] for o in outs], total_t * less_t, new_t
    total_t += jnp.sum(probs_ts.astype(jnp.float32), axis=1)
    outs = [o + plgpu.dot(probs_ts, v_sh) for o, v_sh in zip(outs, v, strict=True)]
    return *outs, largest_t, total_t

  zero_t = jnp.zeros((queries,), jnp.float32)
  outs = [jnp.zeros((queries, size), jnp.float32) for _, size in how.heads]
  start = (*outs, zero_t if bounded else zero_t + MASKED, zero_t)
  *outs, largest_t, total_t = jax.lax.fori_loop(0, _key_blocks(how, end_t), step, start)
  total_t = jnp.where(total_t > 0, total_t, 1.0)
  _store(out_ref, how, t, T, [o / total_t[:, None] for o in outs])
  plgpu.store(lse_ref.at[t], jnp.log(total_t) + largest_t, mask=_inside(t, T, queries))


def _backward_queries(q_ref, k_ref, v_ref, out_ref, lse_ref, dout_ref, *rest, how):
  *masks, dq_ref, mean_ref = rest
  T, (queries, keys) = q_ref.shape[0], how.tile[:2]
  t = pl.program_id(0) * queries + jnp.arange(queries)
  q, out, dout = (_load(ref, how, t, T) for ref in (q_ref, out_ref, dout_ref))
  end_t = _ends(masks, how, t, T)
  inside = _inside(t, T, queries)
  lse_t = plgpu.load(lse_ref.at[t], mask=inside, other=None if inside is None else 0.0)
  f32, mean_t = jnp.float32, _mean(out, dout)

  def step(j, dq):
    s = j * keys + jnp.arange(keys)
    k, v = (_load(ref, how, s, how.keys) for ref in (k_ref, v_ref))
    scores_ts, slope_ts = _capped(_sum_of_products(q, k), how.softcap)
    probs_ts = jnp.exp(scores_ts - lse_t[:, None])
    seen_ts = _seen(masks, how, end_t and end_t[0][:, None], s[None])
    if seen_ts is not None:
      probs_ts = jnp.where(seen_ts, probs_ts, 0.0)
    dscores_ts = probs_ts * (_sum_of_products(dout, v) - mean_t[:, None])
    if slope_ts is not None:
      dscores_ts *= slope_ts
    dscores_ts = dscores_ts.astype(k[0].dtype)
    return tuple(a + plgpu.dot(dscores_ts, k_sh) for a, k_sh in zip(dq, k, strict=True))

  zeros = tuple(jnp.zeros((queries, size), f32) for _, size in how.heads)
  dq = jax.lax.fori_loop(0, _key_blocks(how, end_t), step, zeros)
  _store(dq_ref, how, t, T, dq)
  plgpu.store(mean_ref.at[t], mean_t, mask=inside)


def _mean(out, dout):
  """The mean of the gradients of a query's probabilities."""
  f32, pairs = jnp.float32, zip(out, dout, strict=True)
  return sum(jnp.sum(a.astype(f32) * b.astype(f32), axis=1) for a, b in pairs)


def _means(out_ref, dout_ref, mean_ref, *, how):
  T, queries = out_ref.shape[0], how.tile.queries
  t = pl.program_id(0) * queries + jnp.arange(queries)
  out, dout = (_load(ref, how, t, T) for ref in (out_ref, dout_ref))
  plgpu.store(mean_ref.at[t], _mean(out, dout), mask=_inside(t, T, queries))


def _from_scores(dscores_ref, k_ref, dq_ref, *, how):
  (T, S), (queries, keys) = dscores_ref.shape, how.tile[:2]
  t = pl.program_id(0) * queries + jnp.arange(queries)

  def step(j, dq):
    s = j * keys + jnp.arange(keys)
    mask = _pairs(t, T, s, S)
    other = None if mask is None else 0.0
    dscores_ts = plgpu.load(dscores_ref.at[t[:, None], s[None]], mask=mask, other=other)
    k = _load(k_ref, how, s, S)
    return tuple(a + plgpu.dot(dscores_ts, k_sh) for a, k_sh in zip(dq, k, strict=True))

  zeros = tuple(jnp.zeros((queries, size), jnp.float32) for _, size in how.heads)
  _store(dq_ref, how, t, T, jax.lax.fori_loop(0, pl.cdiv(S, keys), step, zeros))


def _backward_keys(q_ref, k_ref, v_ref, lse_ref, mean_ref, dout_ref, *rest, how):
  masks, (dk_ref, dv_ref, *dscores_ref) = rest[: how.num_masks], rest[how.num_masks :]
  (T, G, _), (queries, keys) = q_ref.shape, how.tile[:2]
  s = pl.program_id(0) * keys + jnp.arange(keys)
  k, v = (_load(ref, how, s, how.keys) for ref in (k_ref, v_ref))
  blocks = pl.cdiv(T, queries)

  def step(i, carry):  # Scores are transposed, so that both are the left side of a product.
    dk, dv = carry
    g, t = jax.lax.div(i, blocks), jax.lax.rem(i, blocks) * queries + jnp.arange(queries)
    q, dout = (_load(ref, how, t, T, g) for ref in (q_ref, dout_ref))
    inside = _inside(t, T, queries)
    lse_t, mean_t = (
      plgpu.load(ref.at[g, t], mask=inside, other=None if inside is None else 0.0)
      for ref in (lse_ref, mean_ref)
    )
    scores_st, slope_st = _capped(_sum_of_products(k, q), how.softcap)
    probs_st = jnp.exp(scores_st - lse_t[None])
    end_t = _ends(masks, how, t, T)
    seen_st = _seen(masks, how, end_t and end_t[0][None], s[:, None])
    if seen_st is not None:
      probs_st = jnp.where(seen_st, probs_st, 0.0)
    dscores_st = probs_st * (_sum_of_products(v, dout) - mean_t[None])
    if slope_st is not None:
      dscores_st *= slope_st
    dscores_st, probs_st = dscores_st.astype(q[0].dtype), probs_st.astype(v[0].dtype)
    if dscores_ref:
      mask = _pairs(s, how.keys, t, T)
      plgpu.store(dscores_ref[0].at[g, t[None], s[:, None]], dscores_st, mask=mask)
    dv = tuple(a + plgpu.dot(probs_st, d) for a, d in zip(dv, dout, strict=True))
    return tuple(a + plgpu.dot(dscores_st, b) for a, b in zip(dk, q, strict=True)), dv

  zeros = tuple(jnp.zeros((keys, size), jnp.float32) for _, size in how.heads)
  dk, dv = jax.lax.fori_loop(0, G * blocks, step, (zeros, zeros))
  _store(dk_ref, how, s, how.keys, dk)
  _store(dv_ref, how, s, how.keys, dv)


def _inside(token, tokens, block):
  """Which tokens of a block there are; None if blocks are whole."""
  return None if tokens % block == 0 else token < tokens


def _pairs(row, rows, column, columns):
  """Which pairs of tokens there are, of `rows` and `columns`; None if blocks are whole."""
  insides = (_inside(row, rows, row.shape[0]), _inside(column, columns, column.shape[0]))
  masks = [a if axis else a[:, None] for axis, a in enumerate(insides) if a is not None]
  if not masks:
    return None
  return jnp.broadcast_to(functools.reduce(jnp.logical_and, masks), (row.size, column.size))


def _part(how, head, token, tokens):
  """(indices of a part of a head for these tokens, which of them there are, or None)."""
  start, size = head
  h = start + jnp.arange(size)
  masks = []
  if (inside := _inside(token, tokens, token.shape[0])) is not None:
    masks.append(inside[:, None])
  if start + size > how.tile.head_size:
    masks.append(h[None] < how.tile.head_size)
  mask = functools.reduce(jnp.logical_and, masks) if masks else None
  if mask is not None:
    mask = jnp.broadcast_to(mask, (token.shape[0], size))
  return (token[:, None], h[None]), mask


def _load(ref, how, token, tokens, *group):
  """The parts of a head for a block of tokens, [block, size] each; zeros where there is nothing."""
  loaded = []
  for head in how.heads:
    (t, h), mask = _part(how, head, token, tokens)
    other = None if mask is None else 0.0
    loaded.append(plgpu.load(ref.at[(t, *group, h)], mask=mask, other=other))
  return loaded


def _store(ref, how, token, tokens, values):
  for head, value in zip(how.heads, values, strict=True):
    index, mask = _part(how, head, token, tokens)
    plgpu.store(ref.at[index], value.astype(ref.dtype), mask=mask)


def _sum_of_products(a, b):
  """a times b transposed, over all parts of a head."""
  return sum(plgpu.dot(x, y.T) for x, y in zip(a, b, strict=True))


def _capped(scores, softcap):
  """(capped scores, the derivative of the cap; None without)."""
  if not softcap:
    return scores, None
  if softcap > MAX_EXPONENT:
    tanh = jnp.tanh(scores / softcap)
  else:  # Faster, and an error of 1e-7 of the cap; right where exp overflows, too.
    tanh = 1 - 2 / (1 + jnp.exp(scores * (2 / softcap)))
  return softcap * tanh, 1 - tanh * tanh


def _ends(masks, how, t, T):
  """[number of keys that each query may see], or nothing without a mask."""
  if not how.masked:
    return []
  inside = _inside(t, T, t.shape[0])
  return [plgpu.load(masks[0].at[t], mask=inside, other=None if inside is None else 0)]


def _seen(masks, how, end, s):
  """Which keys are seen, as the product of queries and keys; None: all."""
  seen = None
  if how.masked:
    seen = s < end
  elif how.keys % how.tile.keys:
    seen = s < how.keys
  if how.some_invalid:
    inside = None if how.keys % how.tile.keys == 0 else s < how.keys
    other = None if inside is None else 0
    seen &= plgpu.load(masks[1].at[s], mask=inside, other=other) != 0
  return seen


def _key_blocks(how, end_t):
  """How many blocks of keys the queries of a program see."""
  keys = how.keys
  if end_t:
    keys = jnp.minimum(jnp.max(end_t[0]), keys)
  return pl.cdiv(keys, how.tile.keys)
