"""A residual sum and the norms beside it as one pass over memory: Triton, for NVIDIA GPUs.

Forward: x1 = x + post(branch), h = norm(x1), where each of the three parts may be missing. The
backward kernel reads x1, the branch and both cotangents once, and adds up the gradients of scales
over its rows; XLA adds those of all programs. Statistics are float32, and x1 and h are rounded
where the layers round them. A norm is an RMS norm with scale 1 + s, or a layer norm with scale s
and a bias.

Axes: M rows, D numbers of a row, d numbers of a part of a row (a power of two), r rows of a step.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from pgjax.kernels.triton import parts

_ROWS, _BACKWARD_ROWS = 4, 2  # Of a step; with more, the backward kernel runs out of registers.
_PROGRAMS = 512  # Of the backward kernel, each with a partial sum of the gradients of scales.


class Parts(NamedTuple):
  """What is computed; static."""

  branch: bool  # Something is added to x.
  post: bool  # The branch has a norm of its own.
  norm: bool  # The sum is normed.
  centered: bool  # The norm is a layer norm.
  eps: float

  @property
  def scales(self) -> int:
    """How many vectors [D] there are: scale of `post`, scale and bias of `norm`."""
    return self.post + self.norm * (1 + self.centered)


def forward(
  x_MD: Float[Array, "M D"],
  branch_MD: Float[Array, "M D"] | None,
  scales: tuple[Float[Array, " D"], ...],
  how: Parts,
  *,
  interpret: bool = False,
) -> tuple[Float[Array, "M D"], ...]:
  """(x1 if there is a branch, h if there is a norm)."""
  M, D = x_MD.shape
  rows = pl.BlockSpec((M, D), lambda i: (0, 0))
  outputs = how.branch + how.norm
  results = pl.pallas_call(
    functools.partial(_forward, how=how),
    grid=(pl.cdiv(M, _ROWS),),
    in_specs=[rows] * (1 + how.branch) + [pl.BlockSpec((D,), lambda i: (0,))] * how.scales,
    out_specs=[rows] * outputs,
    out_shape=[jax.ShapeDtypeStruct(x_MD.shape, x_MD.dtype)] * outputs,
    compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
    interpret=interpret,
    name="residual_norm_forward",
  )(x_MD, *([branch_MD] if how.branch else []), *scales)
  return tuple(results)


def backward(
  x1_MD: Float[Array, "M D"] | None,
  branch_MD: Float[Array, "M D"] | None,
  scales: tuple[Float[Array, " D"], ...],
  dx1_MD: Float[Array, "M D"],
  dh_MD: Float[Array, "M D"] | None,
  how: Parts,
  *,
  interpret: bool = False,
) -> tuple[Float[Array, "M D"], Float[Array, "M D"], Float[Array, "P N D"]]:
  """Gradients of x and of the branch, and of the N vectors as partial sums of P programs."""
  M, D = dx1_MD.shape
  programs = min(_PROGRAMS, pl.cdiv(M, _BACKWARD_ROWS))
  rows = pl.BlockSpec((M, D), lambda i: (0, 0))
  sums = pl.BlockSpec((None, how.scales, D), lambda i: (i, 0, 0))
  arrays = [dx1_MD] + [x1_MD, dh_MD] * how.norm + [branch_MD] * how.post
  outputs = how.norm + how.post
  (*results,) = pl.pallas_call(
    functools.partial(_backward, how=how, programs=programs),
    grid=(programs,),
    in_specs=[rows] * len(arrays) + [pl.BlockSpec((D,), lambda i: (0,))] * how.scales,
    out_specs=[rows] * outputs + [sums],
    out_shape=[
      *[jax.ShapeDtypeStruct(dx1_MD.shape, dx1_MD.dtype)] * outputs,
      jax.ShapeDtypeStruct((programs, how.scales, D), jnp.float32),
    ],
    compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
    interpret=interpret,
    name="residual_norm_backward",
  )(*arrays, *scales)
  dx_MD = results.pop(0) if how.norm else dx1_MD
  dbranch_MD = results.pop(0) if how.post else dx_MD
  return dx_MD, dbranch_MD, results[0]


def _forward(*refs, how):
  refs = list(refs)
  x_ref = refs.pop(0)
  branch_ref = refs.pop(0) if how.branch else None
  scales, outs = refs[: how.scales], refs[how.scales :]
  D = x_ref.shape[1]
  row_r = pl.program_id(0) * _ROWS + jnp.arange(_ROWS)
  x1 = _rows(x_ref, row_r)
  if how.branch:
    branch = _rows(branch_ref, row_r)
    if how.post:
      normed, _ = _normed(branch, D, how._replace(centered=False))
      branch = _rounded(_scaled(normed, _vector(scales.pop(0), D)), x_ref.dtype)
    x1 = _rounded([a + b for a, b in zip(x1, branch, strict=True)], x_ref.dtype)
    _write(outs.pop(0), row_r, x1)
  if how.norm:
    h, _ = _normed(x1, D, how)
    scale = _vector(scales.pop(0), D)
    if how.centered:
      bias = _vector(scales.pop(0), D)
      h = [a * s[None] + b[None] for a, s, b in zip(h, scale, bias, strict=True)]
    else:
      h = _scaled(h, scale)
    _write(outs.pop(0), row_r, h)


def _backward(*refs, how, programs):
  refs = list(refs)
  dx1_ref = refs.pop(0)
  x1_ref, dh_ref = (refs.pop(0), refs.pop(0)) if how.norm else (None, None)
  branch_ref = refs.pop(0) if how.post else None
  scale_refs, (*outs, sums_ref) = refs[: how.scales], refs[how.scales :]
  (M, D), program = dx1_ref.shape, pl.program_id(0)
  dx_ref = outs.pop(0) if how.norm else None
  dbranch_ref = outs.pop(0) if how.post else None
  scales = [_vector(ref, D) for ref in scale_refs]

  def step(i, sums):
    sums = [list(s) for s in sums]
    row_r = (i * programs + program) * _BACKWARD_ROWS + jnp.arange(_BACKWARD_ROWS)
    dx = _rows(dx1_ref, row_r)
    if how.norm:
      dh, scale = _rows(dh_ref, row_r), scales[how.post]
      normed, inverse_r = _normed(_rows(x1_ref, row_r), D, how)
      sums[how.post] = _added(sums[how.post], dh, normed)
      if how.centered:
        sums[-1] = [s + jnp.sum(d, axis=0) for s, d in zip(sums[-1], dh, strict=True)]
        dh = [d * s[None] for d, s in zip(dh, scale, strict=True)]
      else:
        dh = _scaled(dh, scale)
      more = _through(dh, normed, inverse_r, D, centered=how.centered)
      dx = [a + b for a, b in zip(dx, more, strict=True)]
      _write(dx_ref, row_r, dx)
    if how.post:
      normed, inverse_r = _normed(_rows(branch_ref, row_r), D, how._replace(centered=False))
      sums[0] = _added(sums[0], dx, normed)
      dbranch = _through(_scaled(dx, scales[0]), normed, inverse_r, D, centered=False)
      _write(dbranch_ref, row_r, dbranch)
    return tuple(tuple(s) for s in sums)

  zeros = tuple(jnp.zeros((size,), jnp.float32) for _, size in parts(D))
  steps = pl.cdiv(M, programs * _BACKWARD_ROWS)
  for n, total in enumerate(jax.lax.fori_loop(0, steps, step, (zeros,) * how.scales)):
    for (start, size), value in zip(parts(D), total, strict=True):
      d = start + jnp.arange(size)
      plgpu.store(sums_ref.at[n, d], value, mask=_inside(start, d, D))


def _normed(x, D, how):
  """(x over its deviation, the inverse of that [r, 1])."""
  squares_r = _sum(x, x) / D
  if how.centered:
    mean_r = sum(jnp.sum(a, axis=1, keepdims=True) for a in x) / D
    inverse_r = jax.lax.rsqrt(jnp.maximum(squares_r - mean_r * mean_r, 0.0) + how.eps)
    return [(a - mean_r) * inverse_r for a in x], inverse_r
  inverse_r = jax.lax.rsqrt(squares_r + how.eps)
  return [a * inverse_r for a in x], inverse_r


def _through(dy, normed, inverse_r, D, *, centered):
  """The gradient before the norm from that of the normed numbers."""
  along_r = _sum(dy, normed) / D
  mean_r = sum(jnp.sum(a, axis=1, keepdims=True) for a in dy) / D if centered else 0.0
  return [(a - mean_r - n * along_r) * inverse_r for a, n in zip(dy, normed, strict=True)]


def _sum(a, b):
  return sum(jnp.sum(x * y, axis=1, keepdims=True) for x, y in zip(a, b, strict=True))


def _scaled(x, scale):
  return [a * (1 + s)[None] for a, s in zip(x, scale, strict=True)]


def _added(sums, dy, normed):
  return [s + jnp.sum(d * n, axis=0) for s, d, n in zip(sums, dy, normed, strict=True)]


def _rounded(x, dtype):
  return [a.astype(dtype).astype(jnp.float32) for a in x]


def _inside(start, d, D):
  return None if start + d.shape[0] <= D else d < D


def _index(ref, row_r, start, size) -> tuple[Any, Any]:
  """(indices of a part of rows, which of them there are)."""
  M, D = ref.shape
  d = start + jnp.arange(size)
  mask = (row_r < M)[:, None]
  inside = _inside(start, d, D)
  mask = mask if inside is None else mask & inside[None]
  return (row_r[:, None], d[None]), jnp.broadcast_to(mask, (row_r.shape[0], size))


def _rows(ref, row_r):
  """The parts of some rows in float32; zeros where there is nothing."""
  loaded = []
  for start, size in parts(ref.shape[1]):
    index, mask = _index(ref, row_r, start, size)
    loaded.append(plgpu.load(ref.at[index], mask=mask, other=0.0).astype(jnp.float32))
  return loaded


def _write(ref, row_r, values):
  for (start, size), value in zip(parts(ref.shape[1]), values, strict=True):
    index, mask = _index(ref, row_r, start, size)
    plgpu.store(ref.at[index], value.astype(ref.dtype), mask=mask)


def _vector(ref, D):
  loaded = []
  for start, size in parts(D):
    d = start + jnp.arange(size)
    inside = _inside(start, d, D)
    other = None if inside is None else 0.0
    loaded.append(plgpu.load(ref.at[d], mask=inside, other=other).astype(jnp.float32))
  return loaded
