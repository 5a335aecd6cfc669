"""Grouped-query attention with a soft-cap and a mask, and its backward pass.

The scores [B, K, M, S] are the widest array of a layer. The hand-written backward pass recomputes
them once; it stores the output and the log of the softmax's denominator (attn_out, attn_lse).

Axes: B batch, T query, S key, K key/value heads, G query heads per key/value head, M = G * T rows
of one key/value head, H head size.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

MASKED = -2.3819763e38  # The reference's score of a masked key.
_MAX_EXPONENT = 80.0  # exp(80), and its sum over any sequence, fit float32: no maximum needed.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  mask_BTS: Bool[Array, "B T S"] | None,
  softcap: float = 0.0,
  score_dtype: str = "float32",
) -> Float[Array, "B T K G H"]:
  """Softmax(cap(q k)) v, where cap(x) is softcap * tanh(x / softcap), or x if softcap is 0.

  Queries come scaled; the products q k are rounded to `score_dtype`, then the softmax is float32. A
  query without keys gets zeros under a soft-cap, else the mean of all values, as in the reference;
  nothing reads either. The result has v's dtype.
  """
  return _forward(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype)[0]


def _rows(x_BTKGH):
  """[B, T, K, G, H] to [B, K, M, H], so that all products are plain batched ones."""
  B, T, K, G, H = x_BTKGH.shape
  return jnp.transpose(x_BTKGH, (0, 2, 3, 1, 4)).reshape(B, K, G * T, H)


def _unrows(x_BKMH, like):
  B, T, K, G, H = like.shape
  return jnp.transpose(x_BKMH.reshape(B, K, G, T, H), (0, 3, 1, 2, 4)).astype(like.dtype)


def _product(equation, a, b, dtype=jnp.float32):
  return jnp.einsum(equation, a, b, preferred_element_type=dtype)


def _capped(q_BKMH, k_BSKH, mask_BTS, softcap, score_dtype):
  """Masked scores in float32, and tanh for its derivative (None without a soft-cap).

  JAX hoists layer-independent values out of a scan over layers; the barrier, and a sum instead of
  a `where`, prevent it from hoisting masks of the scores' size.
  """
  if mask_BTS is not None:
    mask_BTS, q_BKMH = jax.lax.optimization_barrier((mask_BTS, q_BKMH))
  scores = _product("BKMH,BSKH->BKMS", q_BKMH, k_BSKH, score_dtype).astype(jnp.float32)
  tanh = jnp.tanh(scores / softcap) if softcap else None
  scores = softcap * tanh if softcap else scores
  if mask_BTS is not None:
    B, T, S = mask_BTS.shape
    bias_B1TS = (mask_BTS[:, None].astype(jnp.float32) - 1.0) * -MASKED
    groups = scores.shape[2] // T
    scores = scores + jnp.broadcast_to(bias_B1TS, (B, groups, T, S)).reshape(B, 1, -1, S)
  return scores, tanh


def _forward(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype):
  scores_BKMS, _ = _capped(_rows(q_BTKGH), k_BSKH, mask_BTS, softcap, score_dtype)
  if bounded := 0 < softcap <= _MAX_EXPONENT:
    probs_BKMS = jnp.exp(scores_BKMS).astype(v_BSKH.dtype)
  else:
    largest_BKM = jnp.max(scores_BKMS, axis=-1)
    probs_BKMS = jnp.exp(scores_BKMS - largest_BKM[..., None]).astype(v_BSKH.dtype)
  # Without the barrier XLA writes the scores a second time for the sum.
  probs_BKMS = jax.lax.optimization_barrier(probs_BKMS)
  total_BKM = jnp.sum(probs_BKMS.astype(jnp.float32), axis=-1)
  total_BKM = jnp.where(total_BKM > 0, total_BKM, 1.0)
  out_BKMH = _product("BKMS,BSKH->BKMH", probs_BKMS, v_BSKH) / total_BKM[..., None]
  # Without it a recomputed forward pass holds the float32 product until the backward pass.
  out_BTKGH = jax.lax.optimization_barrier(_unrows(out_BKMH, like=q_BTKGH).astype(v_BSKH.dtype))
  lse_BKM = jnp.log(total_BKM) if bounded else jnp.log(total_BKM) + largest_BKM
  return checkpoint_name(out_BTKGH, "attn_out"), checkpoint_name(lse_BKM, "attn_lse")


def _forward_rule(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype):
  out, lse = _forward(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype)
  return out, (q_BTKGH, k_BSKH, v_BSKH, mask_BTS, out, lse)


def _backward_rule(softcap, score_dtype, residuals, dout_BTKGH):
  q_BTKGH, k_BSKH, v_BSKH, mask_BTS, out_BTKGH, lse_BKM = residuals
  f32 = jnp.float32
  # Without the barrier XLA shares the scores with a recomputed forward pass and holds them.
  q_BTKGH, dout_BTKGH = jax.lax.optimization_barrier((q_BTKGH, dout_BTKGH))
  q_BKMH, out_BKMH, dout_BKMH = _rows(q_BTKGH), _rows(out_BTKGH), _rows(dout_BTKGH)
  scores, tanh = _capped(q_BKMH, k_BSKH, mask_BTS, softcap, score_dtype)
  probs = jnp.exp(scores - lse_BKM[..., None])
  dprobs = _product("BKMH,BSKH->BKMS", dout_BKMH, v_BSKH, score_dtype).astype(f32)
  mean_BKM = jnp.sum(dout_BKMH.astype(f32) * out_BKMH.astype(f32), axis=-1)
  dscores = probs * (dprobs - mean_BKM[..., None])
  if softcap:
    dscores = dscores * (1 - tanh * tanh)
  dscores, probs = dscores.astype(q_BTKGH.dtype), probs.astype(v_BSKH.dtype)
  dq_BKMH = _product("BKMS,BSKH->BKMH", dscores, k_BSKH)
  dk = _product("BKMS,BKMH->BSKH", dscores, q_BKMH).astype(k_BSKH.dtype)
  dv = _product("BKMS,BKMH->BSKH", probs, dout_BKMH).astype(v_BSKH.dtype)
  return _unrows(dq_BKMH, like=q_BTKGH), dk, dv, None


attend.defvjp(_forward_rule, _backward_rule)
