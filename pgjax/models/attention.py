"""Grouped-query attention with a soft-cap and a mask, and its backward pass.

Axes: B batch, T query, S key, K key/value heads, G query heads per key/value head, H head size.

The scores are the widest array of a layer ([B, K, T, G, S]); at 896 px they are most of a step's
memory traffic. So the backward pass is written by hand. It keeps the output and the logarithm of
the softmax's denominator, which a remat policy may save under the names attn_out and attn_lse;
it makes the scores once more and needs no reduction over them. A soft-cap bounds the scores, so
no maximum has to be found before the exponential.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

_MAX_EXPONENT = 80.0  # exp(80) and its sum over any sequence fit float32.


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

  Queries come scaled. The softmax is float32; `score_dtype` is what the products q k are rounded
  to before it. A query that may attend to no key gets zeros (the reference: the mean of all
  values; nothing ever reads either). The result has v's dtype.
  """
  return _forward(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype)[0]


def _capped(q_BTKGH, k_BSKH, mask_BTS, softcap, score_dtype):
  """Masked scores in float32, and tanh's value for its derivative (None without a soft-cap)."""
  scores = jnp.einsum("BTKGH,BSKH->BKTGS", q_BTKGH, k_BSKH, preferred_element_type=score_dtype)
  scores = scores.astype(jnp.float32)
  tanh = jnp.tanh(scores / softcap) if softcap else None
  scores = softcap * tanh if softcap else scores
  if mask_BTS is not None:
    scores = jnp.where(mask_BTS[:, None, :, None], scores, -jnp.inf)
  return scores, tanh


def _forward(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype):
  scores_BKTGS, _ = _capped(q_BTKGH, k_BSKH, mask_BTS, softcap, score_dtype)
  shift_BKTG = jnp.zeros(scores_BKTGS.shape[:-1])
  if not 0 < softcap <= _MAX_EXPONENT:
    shift_BKTG = jnp.max(scores_BKTGS, axis=-1)
    shift_BKTG = jnp.where(jnp.isfinite(shift_BKTG), shift_BKTG, 0.0)
  probs_BKTGS = jnp.exp(scores_BKTGS - shift_BKTG[..., None])
  total_BKTG = jnp.sum(probs_BKTGS, axis=-1)
  out = jnp.einsum(
    "BKTGS,BSKH->BKTGH",
    probs_BKTGS.astype(v_BSKH.dtype),
    v_BSKH,
    preferred_element_type=jnp.float32,
  )
  total_BKTG = jnp.where(total_BKTG > 0, total_BKTG, 1.0)
  out_BTKGH = jnp.einsum("BKTGH->BTKGH", (out / total_BKTG[..., None]).astype(v_BSKH.dtype))
  lse_BKTG = jnp.log(total_BKTG) + shift_BKTG
  return checkpoint_name(out_BTKGH, "attn_out"), checkpoint_name(lse_BKTG, "attn_lse")


def _forward_rule(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype):
  out, lse = _forward(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype)
  return out, (q_BTKGH, k_BSKH, v_BSKH, mask_BTS, out, lse)


def _backward_rule(softcap, score_dtype, kept, dout_BTKGH):
  q_BTKGH, k_BSKH, v_BSKH, mask_BTS, out_BTKGH, lse_BKTG = kept
  f32 = jnp.float32
  product = functools.partial(jnp.einsum, preferred_element_type=f32)
  scores, tanh = _capped(q_BTKGH, k_BSKH, mask_BTS, softcap, score_dtype)
  probs = jnp.exp(scores - lse_BKTG[..., None])
  dprobs = product("BTKGH,BSKH->BKTGS", dout_BTKGH, v_BSKH)
  mean_BKTG = product("BTKGH,BTKGH->BKTG", dout_BTKGH.astype(f32), out_BTKGH.astype(f32))
  dscores = probs * (dprobs - mean_BKTG[..., None])
  if softcap:
    dscores = dscores * (1 - tanh * tanh)
  dscores, probs = dscores.astype(q_BTKGH.dtype), probs.astype(v_BSKH.dtype)
  dq = product("BKTGS,BSKH->BTKGH", dscores, k_BSKH).astype(q_BTKGH.dtype)
  dk = product("BKTGS,BTKGH->BSKH", dscores, q_BTKGH).astype(k_BSKH.dtype)
  dv = product("BKTGS,BTKGH->BSKH", probs, dout_BTKGH).astype(v_BSKH.dtype)
  return dq, dk, dv, None


attend.defvjp(_forward_rule, _backward_rule)
