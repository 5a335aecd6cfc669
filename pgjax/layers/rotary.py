"""Where is a token? Its position, rotated into its queries and keys (arXiv:2104.09864)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Rotation(NamedTuple):
  """How far each pair of a head's numbers turns; the same in all layers. Axes: R pairs, H/2."""

  cos_BTR: Float[Array, "B T R"]
  sin_BTR: Float[Array, "B T R"]


def rotation(positions_BT: Int[Array, "B T"], head_dim: int) -> Rotation:
  """The rotation of these positions, base 10,000; float32."""
  half = head_dim // 2
  wavelengths = 10_000.0 ** (jnp.arange(half, dtype=jnp.float32) / half)
  angle_BTR = positions_BT[..., None].astype(jnp.float32) / wavelengths
  return Rotation(jnp.cos(angle_BTR), jnp.sin(angle_BTR))


def table(size: int, head_dim: int) -> Rotation:
  """The rotation of the positions 0 ... size-1, as one row."""
  return rotation(jnp.arange(size)[None], head_dim)


def at(known: Rotation, positions_BT: Int[Array, "B T"]) -> Rotation:
  """The rotation of these positions, from a table."""
  return Rotation(known.cos_BTR[0, positions_BT], known.sin_BTR[0, positions_BT])


def rotate(x_BTNH: Float[Array, "B T N H"], by: Rotation) -> Float[Array, "B T N H"]:
  """Rotary position embedding, halves rotated against each other; float32.

  A rotation of one row is that of all rows.
  """
  cos, sin = by.cos_BTR[:, :, None], by.sin_BTR[:, :, None]
  first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
