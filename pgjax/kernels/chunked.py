"""Attention a block of queries at a time: memory is linear in tokens, on any device.

Scores exist for one block of queries and all keys. The backward pass recomputes them from the log
of the softmax's denominator, and adds up the gradients of keys and values in float32. Where a mesh
splits tokens, each device loops over its own (kernels/on_mesh.py).

Axes: B batch, T query, S key, K key/value heads, G query heads per key/value head, H head size, t
query of a block, R = G * t rows of a block.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pgjax.kernels.visible_keys import VisibleKeys

MASKED = -2.3819763e38  # The reference's score of a masked key.
MAX_EXPONENT = 80.0  # exp(80), and its sum over any sequence, fit float32: no maximum needed.
SCORE_BYTES = 128 << 20  # About as many scores of a block, in float32, on a device.
_LEAST_QUERIES, _MOST_QUERIES = 64, 512  # Of a block.


def queries_of_a_block(
  B: int, T: int, S: int, K: int, G: int, score_bytes: int = SCORE_BYTES
) -> int:
  """How many queries to compute at once: T, or a multiple of 8, so that blocks are even.

  The rows of all heads that share keys are at most half of T, so that no product is of T x S.
  """
  fits = max(1, score_bytes // (4 * B * K * G * S))
  most = min(1 << (fits.bit_length() - 1), _MOST_QUERIES, T // (2 * G))
  most = max(most, _LEAST_QUERIES)
  return -(-T // -(-T // most) // 8) * 8 if most < T else T


def forward(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  visible: VisibleKeys | None,
  *,
  softcap: float,
  score_dtype: str,
  block: int | None = None,
) -> tuple[Float[Array, "B T K G H"], Float[Array, "B K G T"]]:
  """(output in v's dtype, log of the softmax's denominator in float32)."""
  B, T, K, G, _ = q_BTKGH.shape
  block = block or queries_of_a_block(B, T, k_BSKH.shape[1], K, G)
  k_BKSH, v_BKSH = (jnp.swapaxes(a, 1, 2).astype(q_BTKGH.dtype) for a in (k_BSKH, v_BSKH))
  q_BTKGH, end_BT = _whole_blocks(block, q_BTKGH, visible and visible.end_BT)

  def one(results, n):  # The output takes the place of the queries.
    q_BtKGH, end_Bt = _block(n * block, block, results[0], end_BT)
    scores, _ = _scores(_rows(q_BtKGH), k_BKSH, end_Bt, visible, softcap, score_dtype)
    if bounded := 0 < softcap <= MAX_EXPONENT:
      probs = jnp.exp(scores).astype(v_BKSH.dtype)
    else:
      largest_BKR = jnp.max(scores, axis=-1)
      probs = jnp.exp(scores - largest_BKR[..., None]).astype(v_BKSH.dtype)
    total_BKR = jnp.sum(probs.astype(jnp.float32), axis=-1)
    total_BKR = jnp.where(total_BKR > 0, total_BKR, 1.0)
    out_BKRH = _product("BKRS,BKSH->BKRH", probs, v_BKSH) / total_BKR[..., None]
    lse_BKR = jnp.log(total_BKR) if bounded else jnp.log(total_BKR) + largest_BKR
    block_results = (_unrows(a, G) for a in (out_BKRH.astype(v_BKSH.dtype), lse_BKR[..., None]))
    return _written(results, n * block, block_results)

  Tp = q_BTKGH.shape[1]
  begin = (q_BTKGH, jnp.zeros((B, Tp, K, G, 1), jnp.float32))
  out_BTKGH, lse_BTKG1 = _loop(one, begin, Tp // block)
  out_BTKGH = out_BTKGH[:, :T].astype(v_BSKH.dtype)
  return out_BTKGH, jnp.transpose(lse_BTKG1[:, :T, ..., 0], (0, 2, 3, 1))


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
  score_dtype: str,
  block: int | None = None,
) -> tuple[Float[Array, "B T K G H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
  """Gradients of q, in its dtype, and of k and v, in float32."""
  B, T, K, G, _ = q_BTKGH.shape
  f32 = jnp.float32
  block = block or queries_of_a_block(B, T, k_BSKH.shape[1], K, G)
  k_BKSH, v_BKSH = (jnp.swapaxes(a, 1, 2) for a in (k_BSKH, v_BSKH))
  mean_BTKG = jnp.sum(dout_BTKGH.astype(f32) * out_BTKGH.astype(f32), axis=-1)
  lse_BTKG = jnp.transpose(lse_BKGT, (0, 3, 1, 2))
  arrays = (q_BTKGH, dout_BTKGH, lse_BTKG[..., None], mean_BTKG[..., None])
  q_BTKGH, *arrays = _whole_blocks(block, *arrays, visible and visible.end_BT)

  def one(gradients, n):  # The queries' gradient takes their place.
    q_BTKGH, dk_BKSH, dv_BKSH = gradients
    *of_block, end_Bt = _block(n * block, block, q_BTKGH, *arrays)
    q_BKRH, dout_BKRH, lse_BKR1, mean_BKR1 = map(_rows, of_block)
    scores, tanh = _scores(q_BKRH, k_BKSH, end_Bt, visible, softcap, score_dtype)
    probs = jnp.exp(scores - lse_BKR1)
    dprobs = _product("BKRH,BKSH->BKRS", dout_BKRH, v_BKSH, score_dtype).astype(f32)
    dscores = probs * (dprobs - mean_BKR1)
    if softcap:
      dscores = dscores * (1 - tanh * tanh)
    dscores, probs = dscores.astype(q_BKRH.dtype), probs.astype(v_BKSH.dtype)
    dq_BKRH = _product("BKRS,BKSH->BKRH", dscores, k_BKSH).astype(q_BKRH.dtype)
    dk_BKSH += _product("BKRS,BKRH->BKSH", dscores, q_BKRH)
    dv_BKSH += _product("BKRS,BKRH->BKSH", probs, dout_BKRH)
    return *_written([q_BTKGH], n * block, [_unrows(dq_BKRH, G)]), dk_BKSH, dv_BKSH

  zeros = (jnp.zeros(a.shape, f32) for a in (k_BKSH, v_BKSH))
  dq_BTKGH, *dk_dv = _loop(one, (q_BTKGH, *zeros), q_BTKGH.shape[1] // block)
  dk_BSKH, dv_BSKH = (jnp.swapaxes(a, 1, 2) for a in dk_dv)
  return dq_BTKGH[:, :T], dk_BSKH, dv_BSKH


def _loop(body, carry, length):
  """body(carry, n) for every n below `length`; one block is computed without a loop."""
  if length == 1:
    return body(carry, 0)
  return jax.lax.fori_loop(0, length, lambda n, carry: body(carry, n), carry)


def _whole_blocks(block, *arrays):
  """Zeros after the last query; those see nothing and have no gradient."""
  more = -arrays[0].shape[1] % block

  def grown(x):
    rest = [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, [(0, 0), (0, more), *rest])

  return [grown(x) if more and x is not None else x for x in arrays]


def _block(start, block, *arrays):
  """The queries of a block."""

  def cut(x):
    return None if x is None else jax.lax.dynamic_slice_in_dim(x, start, block, axis=1)

  return [cut(x) for x in arrays]


def _written(arrays, start, blocks):
  """Arrays [B, T, ...] with a block of queries each."""
  update = jax.lax.dynamic_update_slice_in_dim
  return tuple(update(x, new, start, axis=1) for x, new in zip(arrays, blocks, strict=True))


def _rows(x_BtKGH):
  """[B, t, K, G, H] to [B, K, R, H]."""
  B, t, K, G, H = x_BtKGH.shape
  return jnp.transpose(x_BtKGH, (0, 2, 3, 1, 4)).reshape(B, K, G * t, H)


def _unrows(x_BKRH, G):
  """The inverse."""
  B, K, R, H = x_BKRH.shape
  return jnp.transpose(x_BKRH.reshape(B, K, G, R // G, H), (0, 3, 1, 2, 4))


def _product(equation, a, b, dtype=jnp.float32):
  return jnp.einsum(equation, a, b, preferred_element_type=dtype)


def _scores(q_BKRH, k_BKSH, end_Bt, visible, softcap, score_dtype):
  """Masked scores of a block in float32, and tanh for its derivative (None without a soft-cap)."""
  scores = _product("BKRH,BKSH->BKRS", q_BKRH, k_BKSH, score_dtype).astype(jnp.float32)
  tanh = jnp.tanh(scores / softcap) if softcap else None
  scores = softcap * tanh if softcap else scores
  if visible is not None:
    R, S = scores.shape[2:]
    end_BR = jnp.tile(end_Bt, (1, R // end_Bt.shape[1]))
    seen_BRS = VisibleKeys(end_BR, visible.valid_BS).mask(S)
    scores = jnp.where(seen_BRS[:, None], scores, MASKED)
  return scores, tanh
