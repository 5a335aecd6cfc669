"""Which device stores which part of each parameter?

The strategy is a list of (regex, tactic), first full match wins, over the names of the training
state ("params/llm/...", "opt/..."); a tactic is made of `replicate()`, `fsdp(axis)` and
`shard_dim(axis, dim)`, joined by "|".
"""

import ast
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.params import names as param_names

_ARGUMENTS = {
  "replicate": {},
  "fsdp": {"axis": ..., "min_size_to_shard_mb": 4},
  "shard_dim": {"axis": ..., "dim": ..., "ignore_ndim_error": False},
}


def shardings(strategy: Sequence[tuple[str, str]], tree: Any, mesh: Mesh) -> Any:
  """A NamedSharding for each leaf of `tree` (arrays or shapes); unmatched leaves are replicated.

  `tree` is a dict like {"params": ..., "opt": ...}, or a record with fields `params`, `opt_state`.
  """
  where = "config.sharding_strategy"
  tactics = [parse_tactic(tactic, mesh.shape) for _, tactic in strategy]
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  names = [_name(path) for path, _ in leaves]
  matches = param_names.first_match([pattern for pattern, _ in strategy], names, where)
  result = []
  for name, (_, leaf) in zip(names, leaves, strict=True):
    spec = [None] * len(leaf.shape)
    index = matches[name]
    for apply in tactics[index] if index is not None else ():
      spec = apply(spec, name, leaf)
    result.append(NamedSharding(mesh, PartitionSpec(*spec)))
  return jax.tree.unflatten(treedef, result)


def parse_tactic(tactic: str, axis_sizes: Mapping[str, int]) -> list[Callable]:
  """The functions (spec, name, leaf) -> spec of a tactic such as `fsdp(axis="data")`."""
  where = f"config.sharding_strategy: {tactic!r}"
  try:
    node = ast.parse(tactic, mode="eval").body
    calls = [_call(part) for part in _alternatives(node)]
  except (SyntaxError, ValueError, AttributeError, TypeError):
    raise UserError(
      f"{where} cannot be read; write replicate, fsdp(axis=...) or shard_dim(axis, dim), "
      'joined by "|".'
    ) from None
  functions = []
  for op, args, kwargs in calls:
    if op not in _ARGUMENTS:
      raise UserError(f"{where}: no op {op!r}; there are {', '.join(_ARGUMENTS)}.")
    known = _ARGUMENTS[op]
    values = {**known, **dict(zip(known, args, strict=False)), **kwargs}
    if len(args) > len(known) or set(values) != set(known) or ... in values.values():
      raise UserError(f"{where}: {op} takes ({', '.join(known)}).")
    if "axis" in values:
      axis = values["axis"]
      values["axis"] = axis = (axis,) if isinstance(axis, str) else tuple(axis)
      if unknown := [a for a in axis if a not in axis_sizes]:
        raise UserError(f"{where}: the mesh has no axis {unknown[0]!r}, only {list(axis_sizes)}.")
      values["axis_size"] = math.prod(axis_sizes[a] for a in axis)
    functions.append(_OPS[op](where, **values))
  return functions


def _alternatives(node: ast.expr) -> list[ast.expr]:
  """`a | b | c` as [a, b, c]."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return [*_alternatives(node.left), *_alternatives(node.right)]
  return [node]


def _call(node: ast.expr) -> tuple[str, list[Any], dict[str, Any]]:
  if isinstance(node, ast.Name):
    return node.id, [], {}
  args = [ast.literal_eval(arg) for arg in node.args]
  return node.func.id, args, {k.arg: ast.literal_eval(k.value) for k in node.keywords}


def _replicate(where: str) -> Callable:
  def apply(spec, name, leaf):
    del leaf
    if any(axis is not None for axis in spec):
      raise UserError(f"{where}: {name} is already sharded as {spec}, so it cannot be replicated.")
    return spec

  return apply


def _fsdp(where: str, axis: tuple[str, ...], axis_size: int, min_size_to_shard_mb: float):
  """Splits the largest free dimension that divides; among equal ones the later (big_vision)."""
  del where

  def apply(spec, name, leaf):
    del name
    if math.prod(leaf.shape) * leaf.dtype.itemsize <= min_size_to_shard_mb * 2**20:
      return spec
    for dim in sorted(range(len(spec)), key=lambda d: (leaf.shape[d], d), reverse=True):
      if leaf.shape[dim] % axis_size == 0 and spec[dim] is None:
        return [*spec[:dim], axis, *spec[dim + 1 :]]
    return spec  # Nothing divides: the table at the start shows that it is replicated.

  return apply


def _shard_dim(
  where: str, axis: tuple[str, ...], axis_size: int, dim: int, ignore_ndim_error: bool
) -> Callable:
  def apply(spec, name, leaf):
    if not -len(spec) <= dim < len(spec):
      if ignore_ndim_error:
        return spec
      raise UserError(f"{where}: {name} has shape {leaf.shape}, so there is no dimension {dim}.")
    at = dim % len(spec)
    if spec[at] is not None:
      raise UserError(f"{where}: dimension {dim} of {name} is already sharded over {spec[at]}.")
    if leaf.shape[at] % axis_size:
      raise UserError(
        f"{where}: dimension {dim} of {name}, shape {leaf.shape}, does not divide by {axis_size}."
      )
    return [*spec[:at], axis, *spec[at + 1 :]]

  return apply


_OPS = {"replicate": _replicate, "fsdp": _fsdp, "shard_dim": _shard_dim}


def _name(path: Sequence[Any]) -> str:
  """A leaf's name; the optimizer's state is called `opt`, as in big_vision's checkpoints."""
  parts = []
  for key in path:
    part = next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a))
    parts.append(str(part))
  if parts and parts[0] == "opt_state":
    parts[0] = "opt"
  return "/".join(parts)


def shardings_of(tree):
  """The shardings of arrays or abstract arrays."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def for_model(leaves, mesh):
  """A function from a flat dict of what is kept to what the modules read on that mesh."""
  place = mesh_lib.replicated(mesh) if mesh.size > 1 else None
  return functools.partial(leaves.for_model, place=place)
