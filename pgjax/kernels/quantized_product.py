"""A product of a few rows with a quantized matrix, decoded inside: Triton, from Ampere on.

XLA writes the decoded matrix to memory and reads it again: for codes of four bits nine times the
bytes that are stored. Here a program decodes a tile, rounds it as quantization.weight does, and
multiplies it at once.

Axes: M rows of x, O outputs, I inputs, b the numbers of a block of codes, s those of a tile.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Integer

_PROGRAMS = 128  # Keep a large GPU busy.
_OUTPUTS, _SPLITS = (128, 64, 32, 16), (1, 2, 4, 8)
_BLOCKS = (16, 32, 64)  # Tiles of larger ones do not fit the shared memory of an L4, 99 KiB.
_CACHED = 1 / 8  # The cost of a byte from the cache against one from memory.


class Tiling(NamedTuple):
  """How the work is cut: outputs of a program, and programs that share the sum over inputs."""

  outputs: int
  splits: int


def fits(outputs: int, inputs: int, kind: str, block: int) -> bool:
  """Whether a matrix [outputs, inputs] of this kind ("nf4" or "int8") can be multiplied here."""
  return block in _BLOCKS and outputs % _OUTPUTS[-1] == 0 and inputs % _step(kind, block) == 0


def packed(nf4_Oi: Integer[Array, "O i"], block: int) -> Integer[Array, "O i"]:
  """Codes of four bits, two a byte, as `product` reads them.

  Stored are two neighbours in a byte; here the numbers of a block are the high halves of as many
  bytes, and those of the next block their low halves.
  """
  both_Oi2 = jnp.stack([nf4_Oi >> 4, nf4_Oi & 15], axis=-1)
  both_Op2b = both_Oi2.reshape(len(nf4_Oi), -1, 2, block)
  return (both_Op2b[:, :, 0] << 4 | both_Op2b[:, :, 1]).reshape(nf4_Oi.shape)


def product(
  x_MI: Float[Array, "M I"],
  codes_Oi: Integer[Array, "O i"],
  scale_Ob: Float[Array, "O blocks"],
  table: Float[Array, "16"] | None,
  *,
  gated: bool = False,
  interpret: bool = False,
) -> Float[Array, "M Y"]:
  """x times the transposed matrix, summed in float32; the result has x's dtype.

  codes: int8, or `packed` with the `table` of the values that they stand for. gated: the result is
  gelu(first half of the outputs) * second half, as in layers/geglu.py.
  """
  (M, inputs), parts = x_MI.shape, 2 if gated else 1
  codes_COi, scale_COb = (
    a.reshape(parts, len(a) // parts, a.shape[1]) for a in (codes_Oi, scale_Ob)
  )
  (_, outputs, width), blocks = codes_COi.shape, scale_COb.shape[2]
  block = inputs // blocks
  kind = "int8" if table is None else "nf4"
  rows = max(16, min(64, 1 << math.ceil(math.log2(M))))
  x_MI = jnp.pad(x_MI, ((0, -M % rows), (0, 0)))
  n, splits = tiling_of(len(x_MI), outputs, inputs, _step(kind, block), gated=gated)
  partial_sMO = pl.pallas_call(
    functools.partial(_kernel, kind=kind, block=block),
    grid=(outputs // n, splits, len(x_MI) // rows),
    in_specs=[
      pl.BlockSpec((rows, inputs // splits), lambda o, s, m: (m, s)),
      pl.BlockSpec((parts, n, width // splits), lambda o, s, m: (0, o, s)),
      pl.BlockSpec((parts, n, blocks // splits), lambda o, s, m: (0, o, s)),
      *([] if table is None else [pl.BlockSpec((16,), lambda o, s, m: (0,))]),
    ],
    out_specs=pl.BlockSpec((None, rows, n), lambda o, s, m: (s, m, o)),
    out_shape=jax.ShapeDtypeStruct(
      (splits, len(x_MI), outputs), x_MI.dtype if splits == 1 else jnp.float32
    ),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=4),
    interpret=interpret,
    name=f"{kind}_product",
  )(x_MI, codes_COi, scale_COb, *([] if table is None else [table]))
  y_MO = partial_sMO[0] if splits == 1 else jnp.sum(partial_sMO, axis=0).astype(x_MI.dtype)
  return y_MO[:M]


def tiling_of(rows: int, outputs: int, inputs: int, step: int, *, gated: bool = False) -> Tiling:
  """That with the least traffic of those that keep a GPU busy, or the busiest.

  Two sums of a gated product cannot be shared by programs, and their tiles are at most 64 wide,
  which fit an L4.
  """

  def cost(tiling):
    programs = outputs // tiling.outputs * tiling.splits
    again = rows * inputs * 2 * (outputs // tiling.outputs)  # Each program reads all of x.
    partial = 2 * 4 * rows * outputs * tiling.splits if tiling.splits > 1 else 0
    return max(0, _PROGRAMS - programs), _CACHED * again + partial

  wide, splits = (_OUTPUTS[1:], (1,)) if gated else (_OUTPUTS, _SPLITS)
  tilings = (Tiling(n, s) for n in wide if outputs % n == 0 for s in splits)
  return min((t for t in tilings if inputs % (t.splits * step) == 0), key=cost)


def _step(kind, block):
  """Inputs of a tile: a block, or two that share bytes."""
  return block if kind == "int8" else 2 * block


def _kernel(x_ref, codes_ref, scale_ref, *rest, kind, block):
  *table, out_ref = rest
  output_n1 = jnp.arange(out_ref.shape[1])[:, None]
  parts = range(codes_ref.shape[0])

  def added(sum_mn, part, values_nb, i):
    """With the product of x and block i, whose numbers are rounded first."""
    scale_n1 = plgpu.load(scale_ref.at[part, output_n1, jnp.full((1, 1), i)])
    numbers_nb = (values_nb * scale_n1).astype(x_ref.dtype)
    return sum_mn + plgpu.dot(x_ref[:, pl.ds(i * block, block)], numbers_nb.T)

  def int8(sum_mn, part, i):
    values_nb = codes_ref[part, :, pl.ds(i * block, block)].astype(jnp.float32) / 127
    return added(sum_mn, part, values_nb, i)

  def nf4(sum_mn, part, i):
    codes_nb = codes_ref[part, :, pl.ds(i * block, block)].astype(jnp.int32)
    for half, half_nb in enumerate((codes_nb >> 4, codes_nb & 15)):
      sum_mn = added(sum_mn, part, plgpu.load(table[0].at[half_nb]), 2 * i + half)
    return sum_mn

  def step(i, sums):
    one = int8 if kind == "int8" else nf4
    return tuple(one(sum_mn, part, i) for part, sum_mn in zip(parts, sums, strict=True))

  start = tuple(jnp.zeros(out_ref.shape, jnp.float32) for _ in parts)
  sums = jax.lax.fori_loop(0, codes_ref.shape[2] // block, step, start)
  if len(sums) == 2:
    gate_mn, up_mn = (sum_mn.astype(out_ref.dtype).astype(jnp.float32) for sum_mn in sums)
    out_ref[...] = (jax.nn.gelu(gate_mn) * up_mn).astype(out_ref.dtype)
  else:
    out_ref[...] = sums[0].astype(out_ref.dtype)
