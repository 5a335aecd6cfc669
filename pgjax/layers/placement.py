"""Where on a mesh is an activation? Each of its axes has a place, by the axis' letter.

The batch is split over the mesh's axes `replica` and `data`; tokens over `sequence`; heads, hidden
numbers of an MLP and the vocabulary over `tensor`. Keys and values are whole along `sequence`, so
that every token attends to all others. A dimension that its axis does not divide is whole on every
device. Axis letters are those of the models: B batch, T P L tokens, N K heads, F hidden, V
vocabulary, others whole.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

AnyMesh = Mesh | AbstractMesh
BATCH_AXES = ("replica", "data")
TENSOR, SEQUENCE = "tensor", "sequence"
_AXES = dict(B=BATCH_AXES)
_AXES |= dict.fromkeys("NKFV", (TENSOR,)) | dict.fromkeys("TPL", (SEQUENCE,))


class Placement(NamedTuple):
  """Constrains activations to their places on a mesh; without one it does nothing."""

  mesh: AnyMesh | None = None
  splits_tokens: bool = True  # False while decoding token by token.

  def __call__(self, x: jax.Array, axes: str) -> jax.Array:
    """x with its place, such as "BTD" for a residual stream."""
    if self.mesh is None:
      return x
    spec = [self._mesh_axes(letter, size) for letter, size in zip(axes, x.shape, strict=True)]
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*spec)))

  def inside(self, x: jax.Array, axes: str) -> jax.Array:
    """The same for arrays inside a layer, whose place follows from the batch on other meshes."""
    return self(x, axes) if self.tensor > 1 or self.sequence > 1 else x

  def gathered_keys(self, x: jax.Array, axes: str = "BTKH") -> jax.Array:
    """Keys or values of all tokens, from those of a device's own; x has one of the axes "TPL"."""
    return _gathered(self, axes, x) if self.tensor > 1 or self.sequence > 1 else x

  def weight(self, linear: Any, axes: str) -> Any:
    """A lora.Linear with its matrix, such as "DF", whole but for `tensor`.

    Left to itself XLA gathers it once more in the backward pass, and along several axes of a mesh
    with `tensor` too. The gradient is not constrained: it is reduced to where the parameter is.
    """
    on_one = self.mesh is None or self.mesh.size == 1
    if on_one or not isinstance(getattr(linear, "w", None), jax.Array):
      return linear
    return dataclasses.replace(linear, w=_placed(self, axes, linear.w))

  @property
  def tensor(self) -> int:
    """Devices along `tensor`."""
    return size_of(self.mesh, (TENSOR,))

  @property
  def sequence(self) -> int:
    """Devices along `sequence` that share the tokens of an example."""
    return size_of(self.mesh, (SEQUENCE,)) if self.splits_tokens else 1

  def copies_of_kv(self, heads: int, kv_heads: int) -> int:
    """How often key/value heads are repeated, so that every device has those of its own queries."""
    return copies_of_kv(self.tensor, heads, kv_heads)

  def _mesh_axes(self, letter, size):
    whole = letter in "TPL" and not self.splits_tokens
    return None if whole else split_axes(self.mesh, letter, size) or None


NO_MESH = Placement()


def copies_of_kv(tensor: int, heads: int, kv_heads: int) -> int:
  """The same for that many devices along `tensor`; 1 where they do not divide the heads."""
  return tensor // math.gcd(tensor, kv_heads) if heads % tensor == 0 else 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _placed(constrain, axes, w):
  return constrain(w, axes)


_placed.defvjp(
  lambda constrain, axes, w: (_placed(constrain, axes, w), None),
  lambda constrain, axes, _, dw: (dw,),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered(constrain, axes, x):
  """x after a gather; the gradient is summed over devices and scattered, never whole."""
  whole = axes.translate(str.maketrans("TPL", "SSS"))
  return constrain(constrain(x, axes), whole)


_gathered.defvjp(
  lambda constrain, axes, x: (_gathered(constrain, axes, x), None),
  lambda constrain, axes, _, dx: (constrain(dx, axes),),
)


def batch_axes(mesh: AnyMesh) -> tuple[str, ...]:
  """The mesh's axes that split the batch."""
  return tuple(axis for axis in mesh.shape if axis in BATCH_AXES)


def split_axes(mesh: AnyMesh, letter: str, size: int) -> tuple[str, ...]:
  """The mesh's axes that split a dimension with this letter; none where they do not divide it."""
  axes = tuple(axis for axis in mesh.shape if axis in _AXES.get(letter, ()))
  return axes if size % size_of(mesh, axes) == 0 else ()


def size_of(mesh: AnyMesh | None, axes: tuple[str, ...]) -> int:
  """Devices along these axes; an axis that the mesh lacks counts one."""
  shape: Mapping[str, int] = mesh.shape if mesh is not None else {}
  return math.prod(shape.get(axis, 1) for axis in axes)
