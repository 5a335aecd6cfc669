"""Fused attention of cuDNN, by JAX: no soft-cap, heads of a multiple of 8 numbers.

JAX asks the local GPU for cuDNN, so a program with it cannot be compiled for a GPU that is not
there. A prefix-LM's mask is an array of T x S numbers here. Axes: as in chunked.py.
"""

import jax
from jaxtyping import Array, Float

from pgjax.kernels.visible_keys import VisibleKeys

WIDEST_HEAD = {8: 128, 9: 256, 10: 256}  # By the whole number of the compute capability.


def attend(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  visible: VisibleKeys | None,
  implementation: str = "cudnn",
) -> Float[Array, "B T K G H"]:
  """The output; JAX differentiates it. implementation: "xla" for tests without a GPU."""
  B, T, K, G, H = q_BTKGH.shape
  mask = None if visible is None else visible.mask(k_BSKH.shape[1])[:, None]
  out_BTNH = jax.nn.dot_product_attention(
    q_BTKGH.reshape(B, T, K * G, H),
    k_BSKH,
    v_BSKH,
    mask=mask,
    scale=1.0,
    implementation=implementation,
  )
  return out_BTNH.reshape(q_BTKGH.shape)
