"""One pass over large arrays of one shape that also adds up squares: Triton, for NVIDIA GPUs.

XLA makes two passes of an optimizer's update whose norms are measured: it does not write several
arrays and reduce in one kernel. Here any function of a block of numbers runs in one. It must work
number by number.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

_BLOCK = 2048  # Numbers of a program.

Blocks = Sequence[jax.Array]


def run(
  function: Callable[[Blocks, Blocks], tuple[Blocks, Blocks]],
  replaced: Blocks,
  read: Blocks,
  scalars: Blocks,
  *,
  interpret: bool = False,
) -> tuple[list[jax.Array], jax.Array]:
  """(new arrays in place of `replaced`, sums of squares).

  function(blocks of all arrays, scalars) gives the new blocks and the blocks to square.
  """
  shape, size, n = replaced[0].shape, replaced[0].size, len(replaced)
  programs = pl.cdiv(size, _BLOCK)
  flat = [a.reshape(-1) for a in (*replaced, *read)]
  scalars = [jnp.asarray(s).reshape(1) for s in scalars]
  blocks = [jax.ShapeDtypeStruct((_BLOCK,), a.dtype) for a in flat]
  squared = len(
    jax.eval_shape(function, blocks, [jax.ShapeDtypeStruct((), s.dtype) for s in scalars])[1]
  )
  whole = pl.BlockSpec((size,), lambda i: (0,))
  *new, squares = pl.pallas_call(
    functools.partial(_kernel, function=function, size=size, arrays=len(flat), replaced=n),
    grid=(programs,),
    in_specs=[*[whole] * len(flat), *[pl.BlockSpec((1,), lambda i: (0,))] * len(scalars)],
    out_specs=[*[whole] * n, pl.BlockSpec((squared, None), lambda i: (0, i))],
    out_shape=[
      *[jax.ShapeDtypeStruct((size,), a.dtype) for a in replaced],
      jax.ShapeDtypeStruct((squared, programs), jnp.float32),
    ],
    input_output_aliases={i: i for i in range(n)},
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
    interpret=interpret,
    name="elementwise_pass",
  )(*flat, *scalars)
  return [a.reshape(shape) for a in new], jnp.sum(squares, axis=1)


def _kernel(*refs, function: Any, size: int, arrays: int, replaced: int) -> None:
  inputs, refs = refs[:arrays], refs[arrays:]
  scalars, outs, squares_ref = refs[: -replaced - 1], refs[-replaced - 1 : -1], refs[-1]
  index = pl.program_id(0) * _BLOCK + jnp.arange(_BLOCK)
  inside = None if size % _BLOCK == 0 else index < size
  other = None if inside is None else 0
  blocks = [plgpu.load(ref.at[index], mask=inside, other=other) for ref in inputs]
  new, squared = function(blocks, [ref[0] for ref in scalars])
  for ref, block in zip(outs, new, strict=True):
    plgpu.store(ref.at[index], block.astype(ref.dtype), mask=inside)
  for i, block in enumerate(squared):
    block = block if inside is None else jnp.where(inside, block, 0.0)
    squares_ref[i] = jnp.sum(block * block)
