"""Which hosts and devices take part, and which device holds what?

The only file that starts hosts (jax.distributed), asks which process this is, or builds a mesh. The
strategy is a list of (regex, tactic), first full match wins, over the names of the training state
("params/llm/...", "opt/..."); a tactic is made of `replicate()`, `fsdp(axis)` and
`shard_dim(axis, dim)`, joined by "|". Batches are split over all devices.
"""

import ast
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pgjax.errors import UserError
from pgjax.params import names as param_names

_ENVIRONMENT = ("PGJAX_COORDINATOR", "PGJAX_NUM_PROCESSES", "PGJAX_PROCESS_ID")
_ARGUMENTS = {
  "replicate": {},
  "fsdp": {"axis": ..., "min_size_to_shard_mb": 4},
  "shard_dim": {"axis": ..., "dim": ..., "ignore_ndim_error": False},
}


def start(mesh_spec: Sequence[tuple[str, int]]) -> Mesh:
  """Joins the other processes, if the environment names them, and builds the mesh of all devices.

  Must come before anything else touches a device.
  """
  given = [name for name in _ENVIRONMENT if os.environ.get(name)]
  if given and len(given) < len(_ENVIRONMENT):
    missing = ", ".join(sorted(set(_ENVIRONMENT) - set(given)))
    raise UserError(f"{given[0]} is set, but not {missing}; set all three of them, or none.")
  if given and not jax.distributed.is_initialized():
    coordinator, count, index = (os.environ[name] for name in _ENVIRONMENT)
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
      raise UserError(
        f"PGJAX_NUM_PROCESSES={count} and PGJAX_PROCESS_ID={index} must be whole numbers, "
        "the second smaller than the first."
      )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, int(count), int(index))
  return make_mesh(mesh_spec, jax.devices())


def make_mesh(mesh_spec: Sequence[tuple[str, int]], devices: Sequence[Any]) -> Mesh:
  """A mesh like `[("replica", 2), ("data", -1)]`; -1 takes what is left."""
  names, sizes = [name for name, _ in mesh_spec], [size for _, size in mesh_spec]
  if not sizes or len(set(names)) < len(names) or sizes.count(-1) > 1:
    raise UserError(
      f"config.mesh={list(mesh_spec)} must name each axis once, with at most one size of -1."
    )
  if any(size < 1 and size != -1 for size in sizes):
    raise UserError(f"config.mesh={list(mesh_spec)}: a size must be positive, or -1 for the rest.")
  fixed = math.prod(size for size in sizes if size != -1)
  if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
    raise UserError(
      f"config.mesh={list(mesh_spec)} does not fit {len(devices)} devices; "
      "the sizes must multiply to that number, and one of them may be -1."
    )
  shape = [len(devices) // fixed if size == -1 else size for size in sizes]
  return Mesh(mesh_utils.create_device_mesh(shape, devices), names)


def process_index() -> int:
  """Which of the processes this is, from 0."""
  return jax.process_index()


def process_count() -> int:
  """How many processes take part."""
  return jax.process_count()


def is_main() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def replicated(mesh: Mesh) -> NamedSharding:
  """All of an array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Axis 0 split over all devices, whatever the mesh's axes are."""
  return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def check_batch_size(batch_size: int, mesh: Mesh, where: str = "config.input.batch_size") -> None:
  """A batch must give each device the same number of examples."""
  if batch_size < 1 or batch_size % mesh.size:
    below = batch_size // mesh.size * mesh.size
    options = " or ".join(str(n) for n in (below, below + mesh.size) if n)
    raise UserError(
      f"{where}={batch_size} cannot be divided among {mesh.size} devices; try {options}."
    )


def global_batch(host_batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays made of the rows that each process brings, in the order of the processes."""
  rows = len(next(iter(host_batch.values())))
  check_batch_size(rows * jax.process_count(), mesh, "batch_size")
  sharding = batch_sharding(mesh)
  return {
    key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
    for key, value in host_batch.items()
  }


def memory_limit(mesh: Mesh) -> int | None:
  """Bytes that a device of the mesh has; None for a CPU, and one that is only compiled for."""
  try:
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
  except jax.errors.JaxRuntimeError:
    return None


def local_rows(array: jax.Array) -> np.ndarray:
  """The rows of a batch-sharded array that this process brought, in their order."""
  shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def gather_objects(value: Any) -> list[Any]:
  """Each process's `value` (anything JSON can hold), on every process, in process order."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.array([len(data)]))).ravel()
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(data)] = data
  gathered = np.asarray(multihost_utils.process_allgather(padded))
  return [json.loads(row[:n].tobytes()) for row, n in zip(gathered, sizes, strict=True)]


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


def on_host(places: Any) -> Any:
  """The same shardings in the host's pinned memory, which the devices read over their bus."""
  return jax.tree.map(lambda place: place.with_memory_kind("pinned_host"), places)


def on_device(tree: Any, places: Any) -> Any:
  """Inside a jit: arrays that may lie on the host, fetched to where `places` has them."""
  fetched = jax.tree.map(lambda place: place.with_memory_kind("device"), places)
  return jax.device_put(tree, fetched)


def check_opt_state_memory(wanted: str, mesh: Mesh) -> None:
  """Raises where "host" is wanted and devices have no pinned memory there."""
  device = mesh.local_devices[0]
  kinds = sorted(memory.kind for memory in device.addressable_memories())
  if wanted == "host" and "pinned_host" not in kinds:
    raise UserError(
      f"config.opt_state_memory='host' needs pinned host memory, and {device.device_kind} has only "
      f"{', '.join(kinds)}; set it to 'device'."
    )


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


def batch_constraint(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """A function that keeps axis 0 of an activation split over all devices, inside a jit."""
  place = batch_sharding(mesh)
  return lambda x: jax.lax.with_sharding_constraint(x, place)
