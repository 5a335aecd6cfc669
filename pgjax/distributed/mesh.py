"""The mesh of devices, and how a batch is split over it."""

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
  """Joins the other processes, if the environment names them, and builds the mesh of all devices.

  Must come before anything else touches a device.
  """
  processes.join()
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
  check_batch_size(rows * processes.process_count(), mesh, "batch_size")
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


def batch_constraint(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """A function that keeps axis 0 of an activation split over all devices, inside a jit."""
  place = batch_sharding(mesh)
  return lambda x: jax.lax.with_sharding_constraint(x, place)
