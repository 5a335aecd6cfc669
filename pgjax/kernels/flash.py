"""Fused attention of NVIDIA's Hopper and Blackwell GPUs: tokamax's Mosaic kernels.

The forward kernel also gives the softmax's denominator, so that any backward pass can follow. That
is the kernel's own, except where it was measured to lose against products of XLA: with a soft-cap
and heads of more than 128 numbers on an H100 (benchmarks/results/2026-11-26-H100.md). There it is
our own Triton kernels'.

tokamax asks the default device what it can run. Where a program is compiled for a GPU that is not
there, the answers are those of the GPU that is compiled for (`compute_capability`).

Axes: B batch, T query, S key, K key/value heads, G query heads per key/value head, H head size, N
all query heads.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags
from jaxtyping import Array, Float

from pgjax.kernels import triton
from pgjax.kernels.visible_keys import VisibleKeys, valid_first

CAPABILITIES = (9.0, 10.0)  # Of the GPUs with kernels for both directions, up to the next whole.
_TILE = 128  # Tokens of a tile.
_WIDE_HEAD = 128
_PRECISION = dict(
  bfloat16=jax.lax.DotAlgorithmPreset.BF16_BF16_F32, float16=jax.lax.DotAlgorithmPreset.F16_F16_F32
)


def installed() -> bool:
  """Whether tokamax is (requirements-cuda.txt)."""
  return importlib.util.find_spec("tokamax") is not None


def own_backward(capability: float, softcap: float, head_size: int) -> bool:
  """Whether the kernel's backward pass is used, and not that of triton.py."""
  return not (int(capability) == 9 and softcap and head_size > _WIDE_HEAD)


def forward(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  visible: VisibleKeys | None,
  *,
  softcap: float,
  score_dtype: str,
  capability: float,
) -> tuple[Float[Array, "B T K G H"], Float[Array, "B K G T"]]:
  """(output, log of the softmax's denominator); scores are float32 whatever score_dtype is."""
  from tokamax._src.ops.attention import pallas_mosaic_gpu

  B, T, K, G, H = q_BTKGH.shape
  visible, order_BS, _ = _prefix(visible, B, T, k_BSKH.shape[1])
  k_BSKH, v_BSKH = (_tiled(_ordered(a, order_BS)) for a in (k_BSKH, v_BSKH))
  q_BTNH, mask = _tiled(_heads(q_BTKGH)), _mask(visible)
  with _as_on(capability):
    out_BTNH, (largest_BNT, total_BNT) = pallas_mosaic_gpu.PallasMosaicGpuFlashAttention()(
      q_BTNH,
      k_BSKH,
      v_BSKH,
      mask=mask,
      logits_scale=1.0,
      logits_soft_cap=softcap or None,
      return_residuals=True,
    )
  seen_BNT = total_BNT > 0
  if mask.k_end is not None:  # Kernels give queries without keys any number, or none.
    seen_BNT &= mask.k_end > 0
  lse_BNT = jnp.where(seen_BNT, jnp.log(jnp.where(seen_BNT, total_BNT, 1)) + largest_BNT, 0)
  out_BTNH = jnp.where(jnp.swapaxes(seen_BNT, 1, 2)[..., None], out_BTNH, 0)
  return out_BTNH[:, :T].reshape(B, T, K, G, H), lse_BNT[..., :T].reshape(B, K, G, T)


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
  capability: float,
) -> tuple[Float[Array, "B T K G H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
  """Gradients of q, k and v."""
  arrays = (q_BTKGH, k_BSKH, v_BSKH, visible, out_BTKGH, lse_BKGT, dout_BTKGH)
  if own_backward(capability, softcap, q_BTKGH.shape[-1]):
    return _own_backward(*arrays, softcap=softcap, capability=capability)
  how = dict(softcap=softcap, score_dtype=score_dtype, capability=capability)
  return triton.backward(*arrays, **how)


def _own_backward(q_BTKGH, k_BSKH, v_BSKH, visible, out_BTKGH, lse_BKGT, dout_BTKGH, *, softcap,
                  capability):  # fmt: skip
  from tokamax._src.ops.attention import pallas_mosaic_gpu_vjp

  B, T, K, G, H = q_BTKGH.shape
  S = k_BSKH.shape[1]
  visible, order_BS, back_BS = _prefix(visible, B, T, S)
  k_BSKH, v_BSKH = (_tiled(_ordered(a, order_BS)) for a in (k_BSKH, v_BSKH))
  q_BTNH, out_BTNH, dout_BTNH = (_tiled(_heads(a)) for a in (q_BTKGH, out_BTKGH, dout_BTKGH))
  more = q_BTNH.shape[1] - T
  lse_BNT = jnp.pad(lse_BKGT.reshape(B, K * G, T), ((0, 0), (0, 0), (0, more)))
  with _as_on(capability):
    grads = pallas_mosaic_gpu_vjp.PallasMosaicGpuFlashAttentionVjp()(
      (lse_BNT, jnp.ones_like(lse_BNT)),
      out_BTNH,
      dout_BTNH.astype(q_BTNH.dtype),
      q_BTNH,
      k_BSKH,
      v_BSKH,
      precision=(_PRECISION[q_BTNH.dtype.name],) * 2,
      logits_dtype=jnp.dtype("float32"),
      logits_scale=1.0,
      bias=None,
      logits_soft_cap=softcap or None,
      mask=_mask(visible),
      dropout_mask=None,
      dropout_rate=0.0,
      paging_info=None,
      q_indices=None,
      k_indices=None,
      normalize_output=True,
    )
  dq_BTKGH = grads["q"][:, :T].reshape(B, T, K, G, H)
  return dq_BTKGH, *(_ordered(grads[name][:, :S], back_BS) for name in "kv")


def _heads(x_BTKGH):
  B, T, K, G, H = x_BTKGH.shape
  return x_BTKGH.reshape(B, T, K * G, H)


def _tiled(x_BTNH):
  """With zeros after the last token, up to a whole tile."""
  more = -x_BTNH.shape[1] % _TILE
  return jnp.pad(x_BTNH, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x_BTNH


def _prefix(visible, B, T, S):
  """valid_first; keys that fill a tile are seen by no query."""
  if visible is None and S % _TILE:
    visible = VisibleKeys(jnp.full((B, T), S))
  return (None, None, None) if visible is None else valid_first(visible)


def _ordered(x_BSKH, order_BS):
  return x_BSKH if order_BS is None else jnp.take_along_axis(x_BSKH, order_BS[..., None, None], 1)


def _mask(visible):
  """tokamax's mask; queries that fill a tile see nothing."""
  from tokamax._src.ops.attention import base

  if visible is None:
    return base.Mask()
  end_BT = jnp.pad(visible.end_BT, ((0, 0), (0, -visible.end_BT.shape[1] % _TILE)))
  return base.Mask(k_end=end_BT[:, None])


@contextlib.contextmanager
def _as_on(capability: float) -> Iterator[None]:
  """tokamax's questions about the device are answered for a GPU of this compute capability.

  Its options are absl flags, which it would read from the command line.
  """
  from tokamax._src import config, gpu_utils

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  with (
    config.cross_compile(True),
    mock.patch.object(gpu_utils, "_compute_capability", return_value=capability),
  ):
    yield
