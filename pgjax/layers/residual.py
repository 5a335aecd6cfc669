"""A residual sum and the norms beside it: x + post(branch), and the norm of the sum.

On the CPU, and wherever attention is not a kernel for GPUs, each is computed by itself. Beside such
a kernel, all of it is one pass over memory (kernels/norms.py), forward and backward, on every
device of a mesh for its own rows.

Axes: B batch, T tokens, D width.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from pgjax.layers import placement


class Norm(NamedTuple):
  """The parameters of a norm."""

  scale_D: Float[Array, " D"]
  bias_D: Float[Array, " D"] | None  # None: an RMS norm, whose scale is 1 + scale_D.


class _How(NamedTuple):
  """Static arguments of the kernels."""

  eps: float
  constrain: placement.Placement
  interpret: bool


class RMSNorm(nn.Module):
  """The parameter of x / rms(x) * (1 + scale); initially zero."""

  width: int

  @nn.compact
  def __call__(self) -> Norm:
    return Norm(self.param("scale", nn.initializers.zeros, (self.width,)), None)


class LayerNorm(nn.Module):
  """The parameters of flax' LayerNorm."""

  width: int

  @nn.compact
  def __call__(self) -> Norm:
    scale = self.param("scale", nn.initializers.ones, (self.width,))
    return Norm(scale, self.param("bias", nn.initializers.zeros, (self.width,)))


def normed(x: Float[Array, "*B D"], norm: Norm, eps: float) -> Float[Array, "*B D"]:
  """The norm of x, in float32 inside."""
  if norm.bias_D is not None:
    layer = nn.LayerNorm(epsilon=eps, dtype=x.dtype, parent=None)
    return layer.apply({"params": dict(scale=norm.scale_D, bias=norm.bias_D)}, x)
  f32 = x.astype(jnp.float32)
  over_rms = f32 * jax.lax.rsqrt(jnp.mean(f32 * f32, axis=-1, keepdims=True) + eps)
  return (over_rms * (1 + norm.scale_D.astype(jnp.float32))).astype(x.dtype)


def added(
  x_BTD: Float[Array, "B T D"],
  branch_BTD: Float[Array, "B T D"] | None,
  post: Norm | None,
  norm: Norm | None,
  *,
  eps: float,
  kernels: bool = False,
  constrain: placement.Placement = placement.NO_MESH,
  interpret: bool = False,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"] | None]:
  """(x1 = x + post(branch), norm(x1)); without a branch x1 is x, and None without a norm."""
  if kernels and (norm is not None or post is not None):
    how = _How(eps, constrain, interpret)
    return _in_kernels(x_BTD, branch_BTD, post, norm, how)
  if branch_BTD is not None:
    x_BTD = x_BTD + (branch_BTD if post is None else normed(branch_BTD, post, eps))
  return x_BTD, None if norm is None else normed(x_BTD, norm, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _in_kernels(x_BTD, branch_BTD, post, norm, how):
  return _forward(x_BTD, branch_BTD, post, norm, how)[0]


def _forward(x_BTD, branch_BTD, post, norm, how):
  from pgjax.kernels import norms  # Pallas takes long to import.

  parts = _parts(norms, branch_BTD, post, norm, how)
  scales = _scales(post, norm)

  def run(x, branch, scales):
    results = norms.forward(_flat(x), _flat(branch), scales, parts, interpret=how.interpret)
    return [a.reshape(x.shape) for a in results]

  rows = _rows(how.constrain, x_BTD.shape)
  # Without the barrier XLA shares the results with a recomputed forward pass, and holds them.
  arrays = jax.lax.optimization_barrier((x_BTD, branch_BTD))
  results = _on_each(how, run, (rows, rows, P()), rows)(*arrays, scales)
  x1_BTD = results.pop(0) if parts.branch else x_BTD
  h_BTD = results.pop(0) if parts.norm else None
  return (x1_BTD, h_BTD), (x1_BTD, branch_BTD, post, norm)


def _backward(how, residuals, cotangents):
  from pgjax.kernels import norms

  (x1_BTD, branch_BTD, post, norm), (dx1_BTD, dh_BTD) = residuals, cotangents
  parts = _parts(norms, branch_BTD, post, norm, how)
  scales = _scales(post, norm)

  def run(x1, branch, scales, dx1, dh):
    dx, dbranch, sums = norms.backward(
      _flat(x1), _flat(branch), scales, _flat(dx1), _flat(dh), parts, interpret=how.interpret
    )
    return dx.reshape(dx1.shape), dbranch.reshape(dx1.shape), sums

  rows = _rows(how.constrain, dx1_BTD.shape)
  each = P(sum(_axes(how.constrain, dx1_BTD.shape), ()))  # One after the other.
  run = _on_each(how, run, (rows, rows, P(), rows, rows), (rows, rows, each))
  dx_BTD, dbranch_BTD, sums = run(x1_BTD, branch_BTD, scales, dx1_BTD, dh_BTD)
  sums = [s.astype(a.dtype) for s, a in zip(jnp.sum(sums, axis=0), scales, strict=True)]
  dpost = None if post is None else Norm(sums.pop(0), None)
  dnorm = None if norm is None else Norm(sums.pop(0), sums.pop(0) if parts.centered else None)
  return dx_BTD, None if branch_BTD is None else dbranch_BTD, dpost, dnorm


_in_kernels.defvjp(_forward, _backward)


def _parts(norms, branch, post, norm, how) -> Any:
  centered = norm is not None and norm.bias_D is not None
  return norms.Parts(branch is not None, post is not None, norm is not None, centered, how.eps)


def _scales(post, norm):
  """The vectors of both, in the kernels' order."""
  return tuple(a for n in (post, norm) if n is not None for a in n if a is not None)


def _flat(x):
  return None if x is None else x.reshape(-1, x.shape[-1])


def _axes(constrain, shape) -> list[tuple[str, ...]]:
  """The mesh's axes that split B and T."""
  if constrain.mesh is None:
    return []
  letters = "BT" if constrain.splits_tokens else "B."
  pairs = zip(letters, shape, strict=False)
  return [placement.split_axes(constrain.mesh, *pair) for pair in pairs]


def _rows(constrain, shape):
  """How a mesh splits [B, T, D]."""
  return P(*(axes or None for axes in _axes(constrain, shape)))


def _on_each(how, run, inputs, outputs):
  mesh = how.constrain.mesh
  if mesh is None or mesh.size == 1:
    return run
  return jax.shard_map(run, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
