"""Attention of a few new tokens to a cache, in one kernel: Triton, for NVIDIA GPUs from Ampere on.

XLA's products pad the few query rows of a key/value head, and scores, their exponentials and sums
pass through memory: seven kernels a layer. This one reads the cache and writes the output. The
rounding is that of layers/attention.attend: scores float32, probabilities in v's dtype, their sum
float32. Of an example's slots it reads those from the first to the last that a query sees, not the
room for tokens to come.

Axes: B batch, T new tokens, S cache slots, K key/value heads, G query heads per key/value head, H
head size, R rows of queries of a key/value head: T times G, up to a power of two.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float

from pgjax.kernels.chunked import MASKED

_SLOTS = 32  # Of one step; with heads of 256 numbers two steps fit every GPU's shared memory.


def attend(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BKHS: Float[Array, "B K H S"],
  v_BKSH: Float[Array, "B K S H"],
  mask_BTS: Bool[Array, "B T S"],
  *,
  softcap: float,
  interpret: bool = False,
) -> Float[Array, "B T K G H"]:
  """As layers/attention.attend; every query sees a key."""
  B, T, K, G, H = q_BTKGH.shape
  row = lambda b, k: (b, 0, k, 0, 0)  # noqa: E731
  slots = lambda b, k: (b, k, 0, 0)  # noqa: E731
  S = k_BKHS.shape[3]
  queries = pl.BlockSpec((None, T, None, G, H), row)
  return pl.pallas_call(
    functools.partial(_kernel, softcap=softcap),
    grid=(B, K),
    in_specs=[
      queries,
      pl.BlockSpec((None, None, H, S), slots),
      pl.BlockSpec((None, None, S, H), slots),
      pl.BlockSpec((None, T, S), lambda b, k: (b, 0, 0)),
      pl.BlockSpec((None, 2), lambda b, k: (b, 0)),
    ],
    out_specs=queries,
    out_shape=jax.ShapeDtypeStruct(q_BTKGH.shape, v_BKSH.dtype),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
    interpret=interpret,
    name="decode_attention",
  )(q_BTKGH, k_BKHS, v_BKSH, mask_BTS.astype(jnp.int8), _seen_slots(mask_BTS))


def _seen_slots(mask_BTS):
  """Int [B, 2]: the first slot that a query of the example sees, and one past the last."""
  seen_BS = jnp.any(mask_BTS, axis=1)
  first_B, after_B = jnp.argmax(seen_BS, axis=1), jnp.argmax(seen_BS[:, ::-1], axis=1)
  return jnp.stack([first_B, seen_BS.shape[1] - after_B], axis=1).astype(jnp.int32)


def rows(T: int, G: int) -> int:
  """Rows of one key/value head; Triton's products take 16 at least."""
  return max(16, 1 << math.ceil(math.log2(T * G)))


def _kernel(q_ref, k_ref, v_ref, mask_ref, seen_ref, out_ref, *, softcap):
  (T, G, H), S = q_ref.shape, v_ref.shape[0]
  row_R1 = jnp.arange(rows(T, G))[:, None]
  real_R1, head_1H = row_R1 < T * G, jnp.arange(H)[None]
  t_R1, g_R1 = jnp.minimum(row_R1 // G, T - 1), row_R1 % G
  q_RH = plgpu.load(q_ref.at[t_R1, g_R1, head_1H], mask=real_R1, other=0.0)

  def step(i, carry):
    out_RH, largest_R1, total_R1 = carry
    slot_s = i * _SLOTS + jnp.arange(_SLOTS)
    slot_1s, slot_s1 = slot_s[None], slot_s[:, None]
    k_Hs = plgpu.load(k_ref.at[head_1H.T, slot_1s], mask=slot_1s < S, other=0.0)
    v_sH = plgpu.load(v_ref.at[slot_s1, head_1H], mask=slot_s1 < S, other=0.0)
    seen_Rs = plgpu.load(mask_ref.at[t_R1, slot_1s], mask=slot_1s < S, other=0)
    scores_Rs = plgpu.dot(q_RH, k_Hs)
    if softcap:
      scores_Rs = softcap * jnp.tanh(scores_Rs / softcap)
    scores_Rs = jnp.where(seen_Rs != 0, scores_Rs, MASKED)
    new_R1 = jnp.maximum(largest_R1, jnp.max(scores_Rs, axis=1, keepdims=True))
    probs_Rs = jnp.exp(scores_Rs - new_R1).astype(v_sH.dtype)
    kept_R1 = jnp.exp(largest_R1 - new_R1)
    total_R1 = total_R1 * kept_R1 + jnp.sum(probs_Rs.astype(jnp.float32), axis=1, keepdims=True)
    return out_RH * kept_R1 + plgpu.dot(probs_Rs, v_sH), new_R1, total_R1

  R = row_R1.shape[0]
  start = jnp.zeros((R, H)), jnp.full((R, 1), MASKED), jnp.zeros((R, 1))
  first, end = seen_ref[0] // _SLOTS, pl.cdiv(seen_ref[1], _SLOTS)
  out_RH, _, total_R1 = jax.lax.fori_loop(first, end, step, start)
  out_RH = (out_RH / total_R1).astype(out_ref.dtype)
  plgpu.store(out_ref.at[row_R1 // G, g_R1, head_1H], out_RH, mask=real_R1)
