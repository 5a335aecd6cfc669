"""Which mesh do the devices form, and how is a batch split over it?"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pgjax.distributed import processes
from pgjax.errors import UserError


def start(mesh_spec: Sequence[tuple[str, int]]) -> Mesh:
  """Joins the processes in the environment, and builds the mesh before any device is used."""
  processes.join()
  return make_mesh(mesh_spec, jax.devices())


def make_mesh(mesh_spec: Sequence[tuple[str, int]], devices: Sequence[Any]) -> Mesh:
  """A mesh such as `[("replica", 2), ("data", -1)]`; -1 takes the remaining devices."""
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


def replicated(mesh: Mesh) -> NamedSharding:
  """A full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Axis 0 split over all devices."""
  return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def check_batch_size(batch_size: int, mesh: Mesh, where: str = "config.input.batch_size") -> None:
  """Raises unless each device gets the same number of examples."""
  if batch_size < 1 or batch_size % mesh.size:
    below = batch_size // mesh.size * mesh.size
    options = " or ".join(str(n) for n in (below, below + mesh.size) if n)
    raise UserError(
      f"{where}={batch_size} cannot be divided among {mesh.size} devices; try {options}."
    )


def global_batch(host_batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays from each process's rows, in the order of the processes."""
  rows = len(next(iter(host_batch.values())))
  check_batch_size(rows * processes.process_count(), mesh, "batch_size")
  sharding = batch_sharding(mesh)
  return {
    key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
    for key, value in host_batch.items()
  }


def memory_limit(mesh: Mesh) -> int | None:
  """Memory of one device in bytes; None for CPUs and for compile-only devices."""
  try:
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
  except jax.errors.JaxRuntimeError:
    return None


def local_rows(array: jax.Array) -> np.ndarray:
  """This process's rows of a batch-sharded array, in order."""
  shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def on_host(shardings: Any) -> Any:
  """The same shardings in pinned host memory, which the devices read over their bus."""
  return jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), shardings)


def on_device(tree: Any, shardings: Any) -> Any:
  """Moves arrays from the host to these shardings in device memory, inside a jit."""
  return jax.device_put(tree, jax.tree.map(lambda s: s.with_memory_kind("device"), shardings))


def check_opt_state_memory(wanted: str, mesh: Mesh) -> None:
  """Raises for "host" on devices without pinned host memory."""
  device = mesh.local_devices[0]
  kinds = sorted(memory.kind for memory in device.addressable_memories())
  if wanted == "host" and "pinned_host" not in kinds:
    raise UserError(
      f"config.opt_state_memory='host' needs pinned host memory, and {device.device_kind} has only "
      f"{', '.join(kinds)}; set it to 'device'."
    )


def batch_constraint(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """A function that constrains axis 0 of an activation to be split over all devices."""
  place = batch_sharding(mesh)
  return lambda x: jax.lax.with_sharding_constraint(x, place)
