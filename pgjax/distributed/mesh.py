"""Which mesh do the devices form, and how is a batch split over it?

The axes of a mesh have meanings: `replica` and `data` split the batch, and the strategy may shard
weights over them (distributed/sharding.py); `tensor` splits heads, hidden numbers and vocabulary,
and `sequence` the tokens of each example (layers/placement.py).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pgjax.config import mesh_spec
from pgjax.distributed import processes
from pgjax.errors import UserError
from pgjax.layers import placement


def start(spec: Sequence[tuple[str, int | str]]) -> Mesh:
  """Joins the processes in the environment, and builds the mesh before any device is used."""
  processes.join()
  return make_mesh(spec, jax.devices())


def make_mesh(spec: Sequence[tuple[str, int | str]], devices: Sequence[Any]) -> Mesh:
  """A mesh such as `[("replica", 2), ("data", -1)]`; -1 takes the remaining devices."""
  sizes = mesh_spec.sizes(spec, len(devices), devices_a_host(devices))
  shape = tuple(sizes.values())
  return Mesh(mesh_utils.create_device_mesh(shape, devices), tuple(sizes))


def abstract_mesh(spec: Sequence[tuple[str, int | str]], num_devices: int) -> AbstractMesh:
  """The mesh that devices of one host would form, without them."""
  sizes = mesh_spec.sizes(spec, num_devices, num_devices)
  return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def devices_a_host(devices: Sequence[Any]) -> int:
  """Devices of a host: on GPUs those linked with each other, whatever process has them."""
  linked = all(getattr(d, "slice_index", None) is not None and d.platform != "cpu" for d in devices)
  hosts = Counter(d.slice_index if linked else d.process_index for d in devices)
  return min(hosts.values())


def replicated(mesh: placement.AnyMesh) -> NamedSharding:
  """A full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: placement.AnyMesh) -> NamedSharding:
  """Axis 0 split over `replica` and `data`; whole examples on every device along the others."""
  return NamedSharding(mesh, PartitionSpec(placement.batch_axes(mesh) or None))


def batch_devices(mesh: placement.AnyMesh) -> int:
  """Into how many parts a batch is split."""
  return placement.size_of(mesh, placement.BATCH_AXES)


def check_batch_size(
  batch_size: int,
  mesh: placement.AnyMesh,
  where: str = "config.input.batch_size",
  microbatches: int = 1,
) -> None:
  """Raises unless each part of the mesh gets the same number of examples, of each microbatch."""
  devices = batch_devices(mesh)
  parts = devices * microbatches
  if batch_size < 1 or batch_size % parts:
    below = batch_size // parts * parts
    options = " or ".join(str(n) for n in (below, below + parts) if n)
    along = " along replica and data" if devices < mesh.size else ""
    times = f" x {microbatches} microbatches" if microbatches > 1 else ""
    raise UserError(
      f"{where}={batch_size} cannot be divided among {devices} devices{along}{times}; try"
      f" {options}{_or_fewer(batch_size, mesh, microbatches)}."
    )


def _or_fewer(batch_size: int, mesh: placement.AnyMesh, microbatches: int) -> str:
  """For a batch with fewer examples than devices: the mesh that takes it."""
  if not 1 <= batch_size < batch_devices(mesh) or mesh.size % batch_size or microbatches > 1:
    return ""
  rest = mesh.size // batch_size
  spec = [("data", batch_size), (placement.SEQUENCE, rest)]
  return f", or a mesh such as {spec}, which splits the tokens of each example"


def global_batch(host_batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays from each process's rows, in the order of the parts of `rows_of_process`."""
  rows, parts = len(next(iter(host_batch.values()))), rows_of_process(mesh).count
  check_batch_size(rows * parts, mesh, "batch_size")
  sharding = batch_sharding(mesh)

  def placed(value):
    shape = (parts * rows, *value.shape[1:])
    return jax.make_array_from_process_local_data(sharding, value, shape)

  return {key: placed(np.asarray(value)) for key, value in host_batch.items()}


class Rows(NamedTuple):
  """Which part of each batch a process reads. Processes whose devices share examples read one."""

  index: int
  count: int
  is_first: bool  # Of the processes that read this part: it reports their answers.


def rows_of_process(mesh: Mesh) -> Rows:
  """The part of this process."""
  if processes.process_count() == 1:
    return Rows(0, 1, True)
  return part_of(_rows_by_process(mesh), processes.process_index())


def gather_parts(mesh: Mesh, own: Any) -> list[Any]:
  """What the processes have, as JSON holds it, one value for each part of a batch, in order."""
  by_process = processes.gather_objects(own)
  if processes.process_count() == 1:
    return by_process
  needed = _rows_by_process(mesh)
  parts = [part_of(needed, process) for process in range(len(by_process))]
  first = {p.index: value for p, value in zip(parts, by_process, strict=True) if p.is_first}
  return [first[index] for index in sorted(first)]


def _rows_by_process(mesh: Mesh) -> dict[int, set[int]]:
  """Which rows each process needs of a batch with one for each part of the mesh."""
  by_process: dict[int, set[int]] = {}
  rows = batch_sharding(mesh).devices_indices_map((batch_devices(mesh),))
  for device, index in rows.items():
    by_process.setdefault(device.process_index, set()).add(index[0].start or 0)
  return by_process


def part_of(by_process: Mapping[int, set[int]], process: int) -> Rows:
  """The part of a process, given which of the rows, one for each part of the mesh, each needs."""
  devices = len(set().union(*by_process.values()))
  parts = sorted({tuple(sorted(rows)) for rows in by_process.values()})
  even = [tuple(range(i, i + len(parts[0]))) for i in range(0, devices, len(parts[0]))]
  if parts != even:
    raise UserError(
      "config.mesh gives a process examples of a batch that are not next to each other, or that"
      " others share in part; write its axes in the order replica, data, tensor, sequence."
    )
  mine = by_process[process]
  first = min(p for p, rows in by_process.items() if rows == mine)
  return Rows(parts.index(tuple(sorted(mine))), len(parts), first == process)


def gathered_dims(sharding: NamedSharding) -> list[bool]:
  """Of a leaf: which dimensions are split along other axes than `tensor`, and gathered for use."""
  axes = ((a,) if isinstance(a, str) else a or () for a in sharding.spec)
  return [bool(set(names) - {placement.TENSOR}) for names in axes]


def memory_limit(mesh: Mesh) -> int | None:
  """Memory of one device in bytes; None for CPUs and for compile-only devices."""
  return memory_limit_of(mesh.local_devices)


def memory_limit_of(devices: Sequence[Any]) -> int | None:
  """The same for the first of these devices that this process has."""
  own = [d for d in devices if d.process_index == processes.process_index()]
  try:
    return (own[0].memory_stats() or {}).get("bytes_limit")
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


def batch_constraint(mesh: Mesh) -> placement.Placement:
  """The model's `constrain`: splits batch, tokens, heads and hidden numbers over the mesh."""
  return placement.Placement(mesh)
