"""What do low-rank adapters add to a product with a frozen matrix? (LoRA, arXiv:2106.09685)

y = x w + scale (dropout(x) a) b: a maps the summed axes of w to R numbers, b maps these to the new
axes. Both train in float32, b from zero. As at Hugging Face, each part of a fused leaf (key and
value; gate and up) has its own factors. Axes: R rank, others as in params/names.py.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from pgjax.layers import quantization
from pgjax.layers.quantization import Rows

_STATIC = dict(static=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """An adapted leaf of the parameters: its base (an array or a Quantized) and its factors."""

  base: Any
  a: Any
  b: Any
  scale: float = dataclasses.field(metadata=_STATIC)
  dropout: float = dataclasses.field(metadata=_STATIC)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
  """A matrix in the compute dtype, ready for a product, with its adapter if it has one."""

  w: Any
  a: Any = None
  b: Any = None  # Multiplied by the scale.
  key: Any = None  # The bits of a key, which pass every transformation; None: nothing is dropped.
  dropout: float = dataclasses.field(default=0.0, metadata=_STATIC)

  def __getitem__(self, i: int) -> "Linear":
    """Part i of a fused leaf."""
    a, b = (None, None) if self.a is None else (self.a[i], self.b[i])
    return Linear(self.w[i], a, b, self.key, self.dropout).with_key_of(i)

  def with_key_of(self, i: Any) -> "Linear":
    """The same with a dropout key of its own for each i."""
    if self.key is None:
      return self
    key = jax.random.fold_in(jax.random.wrap_key_data(self.key), i)
    return dataclasses.replace(self, key=jax.random.key_data(key))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transposed:
  """A matrix for products with a few rows: [new axes, summed], or [parts, new, summed].

  The summed axes are one: for two, XLA's CPU copies the matrix at each product.

  XLA's CPU multiplies it by a few columns up to twice as fast as a few rows by its transpose.
  """

  w: jax.Array


def is_by_rows(linear: Any) -> bool:
  """Whether its matrix is in the form for a few rows of x, parts of a fused leaf in one."""
  return isinstance(linear, Linear) and isinstance(linear.w, Transposed | Rows)


def adapted(w: Any, leaf: Adapted, dtype: str, key: Any = None) -> Linear:
  """The matrix `w` with the leaf's adapter in the compute dtype."""
  a, b = leaf.a.astype(dtype), (leaf.b * leaf.scale).astype(dtype)
  return Linear(w, a, b, key, leaf.dropout)


def dot(equation: str, x: jax.Array, w: jax.Array | Transposed | Rows) -> jax.Array:
  """einsum(equation, x, w)."""
  if not isinstance(w, Transposed | Rows):
    return jnp.einsum(equation, x, w)
  x_axes, summed, new, result = _axes(equation)
  rest = "".join(axis for axis in x_axes if axis in result)
  x = x.reshape(*x.shape[: len(rest)], -1)
  if isinstance(w, Rows):
    return jnp.einsum(f"{rest}{new}->{result}", quantization.multiply(x, w))
  y = jnp.einsum(f"{new}{summed[0]},{rest}{summed[0]}->{new}{rest}", w.w, x)
  y = jax.lax.optimization_barrier(y)  # Else XLA transposes the product, not the result.
  return jnp.einsum(f"{new}{rest}->{result}", y)


def _axes(equation):
  """(axes of x, axes of w that are summed over, those of w that are new, axes of the result)."""
  inputs, result = equation.split("->")
  x_axes, w_axes = inputs.split(",")
  summed = "".join(axis for axis in w_axes if axis not in result)
  return x_axes, summed, "".join(axis for axis in w_axes if axis in result), result


def product(equation: str, x: jax.Array, linear: Linear) -> jax.Array:
  """einsum(equation, x, w), such as "BTD,NDH->BTNH", plus the adapter's term."""
  y = dot(equation, x, linear.w)
  if linear.a is None:
    return y
  x_axes, summed, new, result = _axes(equation)
  rank = "".join(axis for axis in x_axes if axis not in summed) + "R"
  low = jnp.einsum(f"{x_axes},{summed}R->{rank}", dropped(x, linear), linear.a)
  return y + jnp.einsum(f"{rank},R{new}->{result}", low, linear.b)


def parts(equation: str, x: jax.Array, linear: Linear) -> list[jax.Array]:
  """The products with all parts of a `one_adapter`, the axis C of "BTD,CDF->BTCF", in one."""
  y, axis = product(equation, x, linear), equation.partition("->")[2].index("C")
  return [jax.lax.index_in_dim(y, i, axis, keepdims=False) for i in range(y.shape[axis])]


def one_adapter(linear: Linear) -> Linear:
  """A fused leaf whose parts share the factors a [summed, C R] and b [C R, C, new].

  b is 0 between a part and the factors of another: two small products instead of two a part.
  """
  if linear.a is None:
    return linear
  C, *summed, R = linear.a.shape
  a = jnp.moveaxis(linear.a, 0, -2).reshape(*summed, C * R)
  b = jnp.einsum("CR...,CE->CRE...", linear.b, jnp.eye(C, dtype=linear.b.dtype))
  return dataclasses.replace(linear, a=a, b=b.reshape(C * R, *b.shape[2:]))


def dropped(x: jax.Array, linear: Linear) -> jax.Array:
  """The adapter's input: x after dropout. Linear in x, and its own transpose."""
  # Without the barrier XLA fuses x w and x a, which changes x w's rounding and copies both weights.
  x = jax.lax.optimization_barrier(x)
  if linear.key is None:
    return x
  key = jax.random.wrap_key_data(linear.key)
  keep = jax.random.bernoulli(key, 1 - linear.dropout, x.shape)
  return jnp.where(keep, x / (1 - linear.dropout), 0).astype(x.dtype)


def factor_shapes(matrix: Any, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
  """Shapes of both factors of a leaf with these axes (a params.names.Matrix) and this shape."""
  size = dict(zip(matrix.axes, shape, strict=True)) | {"R": rank}
  axes = dict(a=f"{matrix.shared}{matrix.summed}R", b=f"{matrix.shared}R{matrix.new}")
  return {factor: tuple(size[axis] for axis in axes[factor]) for factor in "ab"}


def fresh_factors(
  matrix: Any, shape: tuple[int, ...], rank: int, key: jax.Array
) -> dict[str, jax.Array]:
  """Initial factors as in PEFT: a uniform up to 1/sqrt of the summed size, b zero."""
  shapes = factor_shapes(matrix, shape, rank)
  limit = math.prod(shapes["a"][len(matrix.shared) : -1]) ** -0.5
  a = jax.random.uniform(key, shapes["a"], jnp.float32, -limit, limit)
  return dict(a=a, b=jnp.zeros(shapes["b"], jnp.float32))


def norm_shape(matrix: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of one number for each new axis of a leaf: that of DoRA's magnitudes."""
  size = dict(zip(matrix.axes, shape, strict=True))
  return tuple(size[axis] for axis in matrix.shared + matrix.new)


def with_norms(matrix: Any, w: Any, norms: Any, xp: Any = jnp) -> Any:
  """w with these norms over its summed axes (DoRA, arXiv:2402.09353); NaN keeps the norm it has."""
  kept = matrix.shared + matrix.new
  have = xp.sqrt(xp.einsum(f"{matrix.axes},{matrix.axes}->{kept}", w, w))
  factors = xp.where(xp.isnan(norms), 1, norms / have)
  return xp.einsum(f"{matrix.axes},{kept}->{matrix.axes}", w, factors)


def added(matrix: Any, a: Any, b: Any, scale: float, xp: Any = jnp) -> Any:
  """scale a b in the axes of the leaf, for any number of layers; `xp` is numpy or jax.numpy."""
  equation = f"{matrix.shared}{matrix.summed}R,{matrix.shared}R{matrix.new}->{matrix.axes}"
  return scale * xp.einsum(equation, a, b)
