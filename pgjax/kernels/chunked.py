"""Attention a block of queries at a time: memory is linear in tokens, on any device.

Scores exist for one block of queries and all keys. The backward pass recomputes them from the log
of the softmax's denominator, and adds up the gradients of keys and values in float32. Where a mesh
splits tokens, each device loops over its own (kernels/on_mesh.py).

Axes: B batch, T query, S key, K key/value heads, G query heads per key/value head, H head size, N
blocks, t query of a block, R = G * t rows of a block.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pgjax.kernels.visible_keys import VisibleKeys

MASKED = -2.3819763e38  # The reference's score of a masked key.
MAX_EXPONENT = 80.0  # exp(80), and its sum over any sequence, fit float32: no maximum needed.
SCORE_BYTES = 128 << 20  # About as many scores of a block, in float32, on a device.
_LEAST_QUERIES, _MOST_QUERIES = 64, 1024  # Of a block.


def queries_of_a_block(B: int, T: int, S: int, heads: int) -> int:
  """How many queries to compute at once, so that blocks are even: a multiple of 8, or T."""
  fits = max(1, SCORE_BYTES // (4 * B * heads * S))
  most = min(max(1 << (fits.bit_length() - 1), _LEAST_QUERIES), _MOST_QUERIES)
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
  S = k_BSKH.shape[1]
  block = block or queries_of_a_block(B, T, S, K * G)
  q_NBKRH = _blocks(q_BTKGH, block)
  k_BKSH, v_BKSH = (jnp.swapaxes(a, 1, 2) for a in (k_BSKH, v_BSKH))

  def one(_, of_block):
    q_BKRH, end_Bt = of_block
    scores, _ = _scores(q_BKRH, k_BKSH, end_Bt, visible, softcap, score_dtype)
    if bounded := 0 < softcap <= MAX_EXPONENT:
      probs = jnp.exp(scores).astype(v_BSKH.dtype)
    else:
      largest_BKR = jnp.max(scores, axis=-1)
      probs = jnp.exp(scores - largest_BKR[..., None]).astype(v_BSKH.dtype)
    total_BKR = jnp.sum(probs.astype(jnp.float32), axis=-1)
    total_BKR = jnp.where(total_BKR > 0, total_BKR, 1.0)
    out_BKRH = _product("BKRS,BKSH->BKRH", probs, v_BKSH) / total_BKR[..., None]
    lse_BKR = jnp.log(total_BKR) if bounded else jnp.log(total_BKR) + largest_BKR
    return None, (out_BKRH.astype(v_BSKH.dtype), lse_BKR)

  _, (out_NBKRH, lse_NBKR) = _scan(one, None, (q_NBKRH, _ends(visible, block, T)))
  lse_BTKG1 = _unblocked(lse_NBKR[..., None], T, G)
  return _unblocked(out_NBKRH, T, G), jnp.transpose(lse_BTKG1[..., 0], (0, 2, 3, 1))


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
  S, f32 = k_BSKH.shape[1], jnp.float32
  block = block or queries_of_a_block(B, T, S, K * G)
  k_BKSH, v_BKSH = (jnp.swapaxes(a, 1, 2) for a in (k_BSKH, v_BSKH))
  mean_BTKG = jnp.sum(dout_BTKGH.astype(f32) * out_BTKGH.astype(f32), axis=-1)
  lse_BTKG = jnp.transpose(lse_BKGT, (0, 3, 1, 2))
  rows = jnp.stack([lse_BTKG, mean_BTKG], axis=-1)
  blocks = (_blocks(a, block) for a in (q_BTKGH, dout_BTKGH, rows))

  def one(dk_dv, of_block):
    q_BKRH, dout_BKRH, rows_BKR2, end_Bt = of_block
    scores, tanh = _scores(q_BKRH, k_BKSH, end_Bt, visible, softcap, score_dtype)
    probs = jnp.exp(scores - rows_BKR2[..., :1])
    dprobs = _product("BKRH,BKSH->BKRS", dout_BKRH, v_BKSH, score_dtype).astype(f32)
    dscores = probs * (dprobs - rows_BKR2[..., 1:])
    if softcap:
      dscores = dscores * (1 - tanh * tanh)
    dscores, probs = dscores.astype(q_BKRH.dtype), probs.astype(v_BKSH.dtype)
    dq_BKRH = _product("BKRS,BKSH->BKRH", dscores, k_BKSH).astype(q_BKRH.dtype)
    dk_BKSH = dk_dv[0] + _product("BKRS,BKRH->BKSH", dscores, q_BKRH)
    dv_BKSH = dk_dv[1] + _product("BKRS,BKRH->BKSH", probs, dout_BKRH)
    return (dk_BKSH, dv_BKSH), dq_BKRH

  zeros = tuple(jnp.zeros(a.shape, f32) for a in (k_BKSH, v_BKSH))
  (dk_BKSH, dv_BKSH), dq_NBKRH = _scan(one, zeros, (*blocks, _ends(visible, block, T)))
  dk_BSKH, dv_BSKH = (jnp.swapaxes(a, 1, 2) for a in (dk_BKSH, dv_BKSH))
  return _unblocked(dq_NBKRH, T, G), dk_BSKH, dv_BSKH


def _scan(body, carry, blocks):
  """lax.scan; one block is computed without a loop."""
  if jax.tree.leaves(blocks)[0].shape[0] > 1:
    return jax.lax.scan(body, carry, blocks)
  carry, outputs = body(carry, jax.tree.map(lambda a: a[0], blocks))
  return carry, jax.tree.map(lambda a: a[None], outputs)


def _blocks(x_BTKGH, block):
  """[B, T, K, G, H] to [N, B, K, R, H]; the last block is filled with zeros."""
  B, T, K, G, H = x_BTKGH.shape
  x = jnp.pad(x_BTKGH, ((0, 0), (0, -T % block), *[(0, 0)] * 3)) if T % block else x_BTKGH
  x_NBKGtH = jnp.transpose(x.reshape(B, -1, block, K, G, H), (1, 0, 3, 4, 2, 5))
  return x_NBKGtH.reshape(-1, B, K, G * block, H)


def _unblocked(x_NBKRH, T, G):
  """The inverse, without what fills the last block."""
  N, B, K, R, H = x_NBKRH.shape
  x_BNtKGH = jnp.transpose(x_NBKRH.reshape(N, B, K, G, R // G, H), (1, 0, 4, 2, 3, 5))
  return x_BNtKGH.reshape(B, N * R // G, K, G, H)[:, :T]


def _ends(visible, block, T):
  """end_BT in blocks [N, B, t]; queries that fill the last block see nothing."""
  if visible is None:
    return None
  end_BT = jnp.pad(visible.end_BT, ((0, 0), (0, -T % block)))
  return jnp.swapaxes(end_BT.reshape(len(end_BT), -1, block), 0, 1)


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
