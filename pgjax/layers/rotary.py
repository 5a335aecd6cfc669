"""Where is a token? Its position, rotated into its queries and keys (arXiv:2104.09864)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
  x_BTNH: Float[Array, "B T N H"], positions_BT: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
  """Rotary position embedding, base 10,000, halves rotated against each other; float32."""
  half = x_BTNH.shape[-1] // 2
  wavelengths = 10_000.0 ** (jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions_BT[..., None, None].astype(jnp.float32) / wavelengths
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
