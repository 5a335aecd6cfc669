"""Which device stores which part of each parameter?

The strategy is a list of (regex, tactic), first full match wins, over the names of the training
state ("params/llm/...", "opt/..."); a tactic is one or more of `replicate()`, `fsdp(axis)` and
`shard_dim(axis, dim)`, joined by "|". An axis `tensor` of the mesh splits what it stands for
(params/split_dims.py) before any tactic.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pgjax import call_syntax
from pgjax.call_syntax import Between, Given
from pgjax.config import mesh_spec
from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.layers import placement
from pgjax.params import names as param_names, split_dims

_Axis = str | Annotated[list[str], Between(1, 8)]


def shardings(strategy: Sequence[tuple[str, str]], tree: Any, mesh: Mesh) -> Any:
  """A NamedSharding for each leaf of `tree` (arrays or shapes); unmatched leaves are replicated.

  `tree` is a dict like {"params": ..., "opt": ...}, or a record with fields `params`, `opt_state`.
  """
  where = "config.sharding_strategy"
  tactics = [parse_tactic(tactic, mesh.shape) for _, tactic in strategy]
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  # The optimizer state is called `opt`, as in big_vision's checkpoints.
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
  names = [re.sub("^opt_state(?=/|$)", "opt", name) for name in names]
  matches = param_names.first_match([pattern for pattern, _ in strategy], names, where)
  result = []
  for name, (_, leaf) in zip(names, leaves, strict=True):
    spec, index = _over_tensor(name, leaf.shape, mesh), matches[name]
    for apply in tactics[index] if index is not None else ():
      spec = apply(spec, name, leaf)
    used = [axis for axes in spec for axis in axes or ()]
    if len(set(used)) < len(used):
      tactic = strategy[index][1]
      raise UserError(f"{where}: {tactic!r} splits two dimensions of {name} over one axis: {spec}.")
    result.append(NamedSharding(mesh, PartitionSpec(*spec)))
  return jax.tree.unflatten(treedef, result)


def _over_tensor(name, shape, mesh) -> list[tuple[str, ...] | None]:
  spec, dim = [None] * len(shape), split_dims.of_leaf(name, len(shape))
  devices = mesh.shape.get(placement.TENSOR, 1)
  if devices > 1 and dim is not None and shape[dim] % devices == 0:
    spec[dim] = (placement.TENSOR,)
  return spec


def for_products(name: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
  """Where a stored leaf is for a product: split over `tensor` only; quantized ones are whole."""
  whole = name.rpartition("/")[2] in split_dims.QUANTIZED_PARTS
  spec = [] if whole else _over_tensor(name, shape, mesh)
  return NamedSharding(mesh, PartitionSpec(*spec))


def parse_tactic(tactic: str, axis_sizes: Mapping[str, int]) -> list[Callable]:
  """The functions (spec, name, leaf) -> spec of a tactic such as `fsdp(axis="data")`."""
  where = "config.sharding_strategy"
  calls = call_syntax.parse(tactic, TACTICS, where)
  calls = calls or [call_syntax.parse_one(tactic, TACTICS, where)]  # Raises for an empty tactic.
  return [call(where=f"{where}: {tactic!r}", axis_sizes=axis_sizes) for call in calls]


def _axes(axis: str | Sequence[str], axis_sizes: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
  """The axes of the mesh, and the number of devices along them."""
  axes = (axis,) if isinstance(axis, str) else tuple(axis)
  known = [*axis_sizes, *mesh_spec.AXES]
  if unknown := [a for a in axes if a not in known]:
    raise UserError(f"the mesh has no axis {unknown[0]!r}, only {list(axis_sizes)}.")
  if len(set(axes)) < len(axes):
    raise UserError(f"axis={axis!r} names an axis of the mesh twice.")
  axes = tuple(a for a in axes if a in axis_sizes)  # An axis that a mesh lacks splits nothing.
  return axes, math.prod(axis_sizes[a] for a in axes)


def _replicate(*, where: Given) -> Callable:
  def apply(spec, name, leaf):
    if any(axis not in (None, (placement.TENSOR,)) for axis in spec):
      raise UserError(f"{where}: {name} is already sharded as {spec}, so it cannot be replicated.")
    return spec

  return apply


def _fsdp(
  axis: _Axis, min_size_to_shard_mb: Annotated[float, Between(0, 1e6)] = 4, *, axis_sizes: Given
) -> Callable:
  """Splits the largest free divisible dimension, the last of equal ones, as in big_vision.

  A dimension that `tensor` splits is free too: it is then split over both, and weights gathered
  for a layer are whole along the others.
  """
  axes, axis_size = _axes(axis, axis_sizes)

  def apply(spec, name, leaf):
    if math.prod(leaf.shape) * leaf.dtype.itemsize <= min_size_to_shard_mb * 2**20:
      return spec
    for dim in sorted(range(len(spec)), key=lambda d: (leaf.shape[d], d), reverse=True):
      before = spec[dim] or ()
      parts = axis_size * math.prod(axis_sizes[a] for a in before)
      if axes and leaf.shape[dim] % parts == 0 and set(before) <= {placement.TENSOR} - set(axes):
        return [*spec[:dim], before + axes, *spec[dim + 1 :]]
    return spec  # Replicated, which the table at the start of a run shows.

  return apply


def _shard_dim(
  axis: _Axis,
  dim: Annotated[int, Between(-32, 31)],
  ignore_ndim_error: bool = False,
  *,
  where: Given,
  axis_sizes: Given,
) -> Callable:
  axes, axis_size = _axes(axis, axis_sizes)

  def apply(spec, name, leaf):
    if not -len(spec) <= dim < len(spec):
      if ignore_ndim_error:
        return spec
      raise UserError(f"{where}: {name} has shape {leaf.shape}, so there is no dimension {dim}.")
    at = dim % len(spec)
    if not axes:
      return spec
    if spec[at] == (placement.TENSOR,):  # This tactic decides.
      spec = [*spec[:at], None, *spec[at + 1 :]]
    if placement.TENSOR in axes:
      spec = [None if axis == (placement.TENSOR,) else axis for axis in spec]
    if spec[at] is not None:
      raise UserError(f"{where}: dimension {dim} of {name} is already sharded over {spec[at]}.")
    if leaf.shape[at] % axis_size:
      raise UserError(
        f"{where}: dimension {dim} of {name}, shape {leaf.shape}, does not divide by {axis_size}."
      )
    return [*spec[:at], axes, *spec[at + 1 :]]

  return apply


TACTICS = {"replicate": _replicate, "fsdp": _fsdp, "shard_dim": _shard_dim}


def shardings_of(tree):
  """The shardings of arrays or abstract arrays."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def for_model(leaves, mesh):
  """A function from a flat dict of stored arrays to the modules' parameters on that mesh."""
  place = mesh_lib.replicated(mesh) if mesh.size > 1 else None
  return functools.partial(leaves.for_model, place=place)
