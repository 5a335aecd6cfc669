"""How is a frozen matrix stored in four or eight bits a number?

A matrix's numbers are cut into blocks in the order of Hugging Face's tensors, [out, in] row by row,
so that bitsandbytes makes the same codes of exported weights. A block has one float32 scale, its
largest absolute value, and a code for each number. nf4: one of sixteen quantiles of a normal
distribution (QLoRA, arXiv:2305.14314, appendix E), two codes a byte, the first in the high half.
int8: round(127 x / scale). `double` quantizes the scales to eight bits: centred on their mean, in
groups of 256 with one float32 scale (section 3 there, with evenly spaced codes).

Axes: L layers, C matrices of a layer (parts of a fused leaf), M = L C, n numbers of a matrix,
padded with zeros to whole blocks.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from pgjax.layers import placement

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


class Order(NamedTuple):
  """The order in which the numbers of a layer are coded."""

  axes: tuple[int, ...]  # The layer's, as at Hugging Face: parts, then out, then in.
  parts: int = 1  # Matrices of the layer, each with blocks of its own.

  def rows(self, x_Ls: Any, xp: Any = jnp) -> Any:
    """The numbers of layers [L, ...] by matrix, [L C, n]."""
    by_row = xp.transpose(x_Ls, (0, *(axis + 1 for axis in self.axes)))
    return by_row.reshape(len(x_Ls) * self.parts, -1)

  def layer(self, x_Cn: Any, shape: tuple[int, ...], xp: Any = jnp) -> Any:
    """A layer of this shape from its numbers by matrix: the inverse of `rows`."""
    back = tuple(self.axes.index(axis) for axis in range(len(shape)))
    return xp.transpose(x_Cn.reshape([shape[axis] for axis in self.axes]), back)


_STATIC = dict(static=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A matrix of one layer (under a scan; before it, of all layers) and how to read it."""

  parts: dict[str, Any]
  scheme: Scheme = dataclasses.field(metadata=_STATIC)
  shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)  # Of one layer.
  order: Order = dataclasses.field(metadata=_STATIC)
  # The sharding in which codes are gathered, before they are decoded.
  place: Any = dataclasses.field(default=None, metadata=_STATIC)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """A matrix of one layer for kernels/quantized_product.py: a row of codes for each new axis."""

  codes: Any  # [new axes, i]: int8, or nf4 as that kernel reads it.
  scale: Any  # float32 [new axes, blocks].
  mesh: Any = dataclasses.field(default=None, metadata=_STATIC)


def by_rows(stored: Quantized, summed: int, mesh: Any = None) -> Rows | None:
  """One layer's matrix, whose last axes in coded order, `summed` of them, are summed over.

  None if the kernel cannot multiply it.
  """
  from pgjax.kernels import quantized_product  # Pallas takes long to import.

  scheme, shape = stored.scheme, [stored.shape[axis] for axis in stored.order.axes]
  new, inputs = shape[:-summed], math.prod(shape[-summed:])
  outputs = math.prod(new) // stored.order.parts
  if not quantized_product.fits(outputs, inputs, scheme.kind, scheme.block):
    return None
  by_part = {name: part.reshape(stored.order.parts, -1) for name, part in stored.parts.items()}
  codes_Oi = by_part[scheme.kind].reshape(math.prod(new), -1)
  if scheme.kind == "nf4":
    codes_Oi = quantized_product.packed(codes_Oi, scheme.block)
  return Rows(codes_Oi.reshape(*new, -1), _scales(by_part, scheme).reshape(*new, -1), mesh)


def multiply(x: Any, rows: Rows, *, gated: bool = False) -> Any:
  """x [..., summed] times the matrix: [..., new axes]; a mesh splits the first axis of x.

  gated: gelu(x gate) * (x up), where these are the parts of a matrix [2, new, summed].
  """
  from pgjax.kernels import quantized_product

  new = rows.codes.shape[1 if gated else 0 : -1]
  codes_Oi, scale_Ob = (a.reshape(-1, a.shape[-1]) for a in (rows.codes, rows.scale))
  table = jnp.asarray(NF4) if codes_Oi.dtype == jnp.uint8 else None
  x_MI = x.reshape(-1, x.shape[-1])
  run = functools.partial(quantized_product.product, gated=gated)
  if rows.mesh is not None and rows.mesh.size > 1:
    batch = P(placement.split_axes(rows.mesh, "B", len(x)) or None)
    specs = dict(in_specs=(batch, P(), P(), P()), out_specs=batch, check_vma=False)
    run = jax.shard_map(run, mesh=rows.mesh, **specs)
  return run(x_MI, codes_Oi, scale_Ob, table).reshape(*x.shape[:-1], *new)


def part_shapes(
  layers: int, shape: tuple[int, ...], scheme: Scheme, parts: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
  """{part: shape}. nf4 takes block/2 + 4 bytes a block, int8 block + 4; `double` makes the 4 ~1."""
  blocks = -(-math.prod(shape) // parts // scheme.block)
  codes = blocks * scheme.block
  packed = (codes // 2, jnp.uint8) if scheme.kind == "nf4" else (codes, jnp.int8)
  sizes = {scheme.kind: packed, "scale": (blocks, jnp.float32)}
  if scheme.double:
    sizes["scale"] = (blocks, jnp.int8)
    sizes["scale_scale"] = (-(-blocks // GROUP), jnp.float32)
    sizes["scale_mean"] = (1, jnp.float32)
  return {n: jax.ShapeDtypeStruct((layers, parts * size), d) for n, (size, d) in sizes.items()}


def encode(x_Mn: Any, scheme: Scheme, xp: Any = jnp) -> dict[str, Any]:
  """The parts of numbers [M, n]; `xp` is numpy or jax.numpy, and both give the same bits."""
  parts = {scheme.kind: codes(x_Mn, scheme, xp)}
  return parts | stored_scales(scales(x_Mn, scheme, xp), scheme, xp)


def scales(x_Mn: Any, scheme: Scheme, xp: Any = jnp) -> Any:
  """The largest absolute value of each block, float32 [M, blocks]."""
  return xp.max(xp.abs(_blocks(x_Mn.astype(np.float32), scheme.block, xp)), axis=-1)


def codes(x_Mn: Any, scheme: Scheme, xp: Any = jnp) -> Any:
  """The codes as they are stored; two of nf4 share a byte."""
  normed_Mn = _normed(_blocks(x_Mn.astype(np.float32), scheme.block, xp), xp)
  if scheme.kind == "int8":
    return xp.round(normed_Mn * 127).astype(np.int8)
  below_Mn = sum((normed_Mn > middle).astype(np.uint8) for middle in _BETWEEN)
  pairs_Mn2 = below_Mn.reshape(len(x_Mn), -1, 2)
  return pairs_Mn2[..., 0] << 4 | pairs_Mn2[..., 1]


def stored_scales(scale_Mb: Any, scheme: Scheme, xp: Any = jnp) -> dict[str, Any]:
  """The scales as they are stored: one part, or three where they are quantized too."""
  if not scheme.double:
    return {"scale": scale_Mb}
  mean_M1 = xp.mean(scale_Mb, axis=1, keepdims=True)
  centred_Mgs = _blocks(scale_Mb - mean_M1, GROUP, xp)
  inner_Mb = xp.round(_normed(centred_Mgs, xp) * 127).astype(np.int8)[:, : scale_Mb.shape[1]]
  outer_Mg = xp.max(xp.abs(centred_Mgs), axis=-1)
  return {"scale": inner_Mb, "scale_scale": outer_Mg, "scale_mean": mean_M1}


def _blocks(x_Mn, size, xp):
  return xp.pad(x_Mn, ((0, 0), (0, -x_Mn.shape[1] % size))).reshape(len(x_Mn), -1, size)


def _normed(blocks_Mbs, xp):
  """All numbers [M, n], times the inverse of the largest of their block, as in bitsandbytes."""
  largest_Mb1 = xp.max(xp.abs(blocks_Mbs), axis=-1, keepdims=True)
  inverse_Mb1 = np.float32(1) / xp.maximum(largest_Mb1, np.finfo(np.float32).tiny)
  return (blocks_Mbs * inverse_Mb1).reshape(len(blocks_Mbs), -1)


def decode(parts_n: dict[str, Any], scheme: Scheme, shape: tuple[int, ...], xp: Any = jnp) -> Any:
  """The float32 numbers of one matrix, in the order of its codes; or of several: axes in front."""
  scale_b = _scales(parts_n, scheme, xp)
  *several, blocks = scale_b.shape
  if scheme.kind == "nf4":
    codes = (parts_n["nf4"][..., None] >> np.array([4, 0], np.uint8)) & 15
    values = xp.asarray(NF4)[codes]
  else:
    values = parts_n["int8"].astype(np.float32) / 127
  numbers = values.reshape(*several, blocks, scheme.block) * scale_b[..., None]
  return numbers.reshape(*several, -1)[..., : math.prod(shape)].reshape(*several, *shape)


def _scales(parts_n, scheme, xp=jnp):
  """The float32 scale of each block."""
  scale_b = parts_n["scale"]
  if not scheme.double:
    return scale_b
  outer_b = xp.repeat(parts_n["scale_scale"], GROUP, axis=-1)[..., : scale_b.shape[-1]]
  return scale_b.astype(np.float32) / 127 * outer_b + parts_n["scale_mean"]


def decode_layer(
  parts_n: dict[str, Any], scheme: Scheme, shape: tuple[int, ...], order: Order, xp: Any = jnp
) -> Any:
  """The float32 numbers of one layer of this shape, from its parts without the layer axis."""
  parts_Cn = {name: part.reshape(order.parts, -1) for name, part in parts_n.items()}
  size = math.prod(shape) // order.parts
  return order.layer(decode(parts_Cn, scheme, (size,), xp), shape, xp)


def weight(stored: Quantized, dtype: str) -> jax.Array:
  """One layer's matrix in the compute dtype, decoded where it is used; a mesh gathers the codes."""
  parts = stored.parts
  if stored.place is not None:
    parts = jax.lax.with_sharding_constraint(parts, stored.place)
  return decode_layer(parts, stored.scheme, stored.shape, stored.order).astype(dtype)
