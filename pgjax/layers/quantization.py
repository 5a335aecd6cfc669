"""How is a frozen matrix stored in four or eight bits a number?

A layer's numbers, in memory order, are cut into blocks; a block has one float32 scale, its largest
absolute value, and a code for each number. nf4: one of sixteen quantiles of a normal distribution
(QLoRA, arXiv:2305.14314, appendix E), two codes a byte, the first in the high half. int8:
round(127 x / scale). `double` quantizes the scales to eight bits: centred on their mean, in groups
of 256 with one float32 scale (section 3 there, with evenly spaced codes).

Axes: L layers, n numbers of a layer, padded with zeros to whole blocks.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NF4 = np.array(
  [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
  ],
  np.float32,
)
_BETWEEN = (NF4[1:] + NF4[:-1]) / 2
GROUP = 256  # Scales that share a scale, under `double`.


class Scheme(NamedTuple):
  """How numbers are coded."""

  kind: str  # "nf4" or "int8"
  block: int = 64
  double: bool = False


_STATIC = dict(static=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A matrix of one layer (under a scan; before it, of all layers) and how to read it."""

  parts: dict[str, Any]
  scheme: Scheme = dataclasses.field(metadata=_STATIC)
  shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)  # Of one layer.
  # The sharding in which codes are gathered, before they are decoded.
  place: Any = dataclasses.field(default=None, metadata=_STATIC)


def part_shapes(
  layers: int, shape: tuple[int, ...], scheme: Scheme
) -> dict[str, jax.ShapeDtypeStruct]:
  """{part: shape}. nf4 takes block/2 + 4 bytes a block, int8 block + 4; `double` makes the 4 ~1."""
  blocks = -(-math.prod(shape) // scheme.block)
  codes = blocks * scheme.block
  packed = (codes // 2, jnp.uint8) if scheme.kind == "nf4" else (codes, jnp.int8)
  parts = {scheme.kind: packed, "scale": (blocks, jnp.float32)}
  if scheme.double:
    parts["scale"] = (blocks, jnp.int8)
    parts["scale_scale"] = (-(-blocks // GROUP), jnp.float32)
    parts["scale_mean"] = (1, jnp.float32)
  return {name: jax.ShapeDtypeStruct((layers, size), d) for name, (size, d) in parts.items()}


def encode(x_Ln: Any, scheme: Scheme, xp: Any = jnp) -> dict[str, Any]:
  """The parts of numbers [L, n]; `xp` is numpy or jax.numpy, and both give the same bits."""
  parts = {scheme.kind: codes(x_Ln, scheme, xp)}
  return parts | stored_scales(scales(x_Ln, scheme, xp), scheme, xp)


def scales(x_Ln: Any, scheme: Scheme, xp: Any = jnp) -> Any:
  """The largest absolute value of each block, float32 [L, blocks]."""
  return xp.max(xp.abs(_blocks(x_Ln.astype(np.float32), scheme.block, xp)), axis=-1)


def codes(x_Ln: Any, scheme: Scheme, xp: Any = jnp) -> Any:
  """The codes as they are stored; two of nf4 share a byte."""
  normed_Ln = _normed(_blocks(x_Ln.astype(np.float32), scheme.block, xp), xp)
  if scheme.kind == "int8":
    return xp.round(normed_Ln * 127).astype(np.int8)
  below_Ln = sum((normed_Ln > middle).astype(np.uint8) for middle in _BETWEEN)
  pairs_Ln2 = below_Ln.reshape(len(x_Ln), -1, 2)
  return pairs_Ln2[..., 0] << 4 | pairs_Ln2[..., 1]


def stored_scales(scale_Lb: Any, scheme: Scheme, xp: Any = jnp) -> dict[str, Any]:
  """The scales as they are stored: one part, or three where they are quantized too."""
  if not scheme.double:
    return {"scale": scale_Lb}
  mean_L1 = xp.mean(scale_Lb, axis=1, keepdims=True)
  centred_Lgs = _blocks(scale_Lb - mean_L1, GROUP, xp)
  inner_Lb = xp.round(_normed(centred_Lgs, xp) * 127).astype(np.int8)[:, : scale_Lb.shape[1]]
  outer_Lg = xp.max(xp.abs(centred_Lgs), axis=-1)
  return {"scale": inner_Lb, "scale_scale": outer_Lg, "scale_mean": mean_L1}


def _blocks(x_Ln, size, xp):
  return xp.pad(x_Ln, ((0, 0), (0, -x_Ln.shape[1] % size))).reshape(len(x_Ln), -1, size)


def _normed(blocks_Lbs, xp):
  """All numbers [L, n], each divided by the largest of its block; zeros stay zeros."""
  largest_Lb1 = xp.max(xp.abs(blocks_Lbs), axis=-1, keepdims=True)
  normed = blocks_Lbs / xp.where(largest_Lb1 > 0, largest_Lb1, np.float32(1))
  return normed.reshape(len(blocks_Lbs), -1)


def decode(parts_n: dict[str, Any], scheme: Scheme, shape: tuple[int, ...], xp: Any = jnp) -> Any:
  """The float32 numbers of one layer, from its parts without the layer axis."""
  scale_b = parts_n["scale"]
  if scheme.double:
    outer_b = xp.repeat(parts_n["scale_scale"], GROUP)[: len(scale_b)]
    scale_b = scale_b.astype(np.float32) / 127 * outer_b + parts_n["scale_mean"]
  if scheme.kind == "nf4":
    codes = (parts_n["nf4"][:, None] >> np.array([4, 0], np.uint8)) & 15
    values = xp.asarray(NF4)[codes]
  else:
    values = parts_n["int8"].astype(np.float32) / 127
  numbers = values.reshape(len(scale_b), scheme.block) * scale_b[:, None]
  return numbers.reshape(-1)[: math.prod(shape)].reshape(shape)


def weight(stored: Quantized, dtype: str) -> jax.Array:
  """One layer's matrix in the compute dtype, decoded where it is used; a mesh gathers the codes."""
  parts = stored.parts
  if stored.place is not None:
    parts = jax.lax.with_sharding_constraint(parts, stored.place)
  return decode(parts, stored.scheme, stored.shape).astype(dtype)
