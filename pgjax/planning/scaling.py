"""How does a run scale? Its step on 1 to 1,024 GPUs, with the mesh that suits each number.

One number of GPUs is compiled. The others are modelled by the estimate of planning/mesh_cost.py, of
which memory, kernels and waiting for links are each scaled to those of the compiled step.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pgjax.config import load as config_load
from pgjax.planning import mesh_choice, mesh_cost

LARGEST = 1024


class Row(NamedTuple):
  """A number of GPUs; bytes are of one of them."""

  num_devices: int
  batch_size: int
  mesh: dict[str, int]
  bytes: float
  seconds: float
  how: str  # "compiled" or "modelled".

  @property
  def rate(self) -> float:
    """Examples a second."""
    return self.batch_size / self.seconds

  @property
  def mesh_words(self) -> list[str]:
    """ "data=8", ... of the axes that split anything."""
    return [f"{axis}={n}" for axis, n in self.mesh.items() if n > 1] or ["one device"]


class Series(NamedTuple):
  """Rows that share the batch, or the batch a GPU."""

  title: str
  rows: list[Row]
  left_out: dict[int, str]  # {GPUs: reason}.


class Measure(NamedTuple):
  """The compiled step, or what it has over its estimate."""

  bytes: float
  kernels: float  # Seconds in which kernels run.
  waited: float  # Seconds in which the GPU waits for links.

  @property
  def seconds(self) -> float:
    """Of a step."""
    return self.kernels + self.waited

  def seconds_of(self, run: mesh_cost.Run, mesh: Mapping[str, int], cluster: Any) -> float:
    """A step on a mesh by the estimate, scaled."""
    parts = mesh_cost.parts_of(run, mesh, cluster)
    return self.kernels * parts.kernels + self.waited * parts.waited


def series(
  config: Any, cluster: mesh_choice.Cluster, mesh: Mapping[str, int], compiled: Measure
) -> list[Series]:
  """For a fixed batch, and a fixed batch a GPU; the run itself was compiled on `cluster`."""
  over = _over_estimate(config, cluster, mesh, compiled)
  size, n = config.input.batch_size, cluster.num_devices
  own = Row(n, size, dict(mesh), compiled.bytes, compiled.seconds, "compiled")
  a_gpu = f"batch of {size / n:g} a GPU"
  return [
    _series(f"batch of {size}", config, cluster, own, over, lambda _: size),
    _series(a_gpu, config, cluster, own, over, lambda m: size * m / n),
  ]


def _over_estimate(config, cluster, mesh, compiled) -> Measure:
  parts = []

  def seconds_of(run, mesh, cluster):
    parts.append(mesh_cost.parts_of(run, mesh, cluster))
    return 0.0

  every_axis = dict.fromkeys(("replica", "data", "tensor", "sequence"), 1) | dict(mesh)
  size, _ = mesh_choice.estimate(config, cluster, seconds_of)(config, every_axis)
  waited = compiled.waited / parts[0].waited if parts[0].waited else 1.0
  return Measure(compiled.bytes / size, compiled.kernels / parts[0].kernels, waited)


def _series(title, config, cluster, own, over, batch_of) -> Series:
  rows, left_out = [], {}
  for num in sorted({2**i for i in range(int(math.log2(LARGEST)) + 1)} | {own.num_devices}):
    row = own
    if num != own.num_devices:
      row = _modelled(config, cluster, num, batch_of(num), over)
    if isinstance(row, str):
      left_out[num] = row
    else:
      rows.append(row)
  return Series(title, rows, left_out)


def _modelled(config, cluster, num, batch, over) -> Row | str:
  """A row, or why there is none."""
  if batch < 1 or batch != int(batch):
    return "no whole number of examples"
  host = min(num, cluster.devices_a_host)
  if num % host:
    return "no whole number of hosts"
  changed = config_load.overridden(config, {"input.batch_size": int(batch)})
  limit = cluster.limit_bytes / over.bytes
  here = cluster._replace(num_devices=num, devices_a_host=host, limit_bytes=limit)
  if not any(True for _ in mesh_choice.meshes(changed, here)):
    return "no mesh divides batch, heads and tokens"
  cost = mesh_choice.estimate(changed, here, over.seconds_of)
  choice = mesh_choice.choose(changed, here, cost)
  best = next(c for c in choice.candidates if _same(c.mesh, choice.mesh))
  if best.bytes > limit:
    return "not enough memory"
  return Row(num, int(batch), best.mesh, over.bytes * best.bytes, best.seconds, "modelled")


def _same(mesh, spec) -> bool:
  sizes = {axis: n for axis, n in mesh.items() if n > 1}
  return sizes == {axis: n for axis, n in spec if n > 1}


def page(all_: Sequence[Series], devices_a_host: int) -> str:
  """A table for each series."""
  lines = []
  for one in all_:
    lines += ["", f"{one.title}, hosts of {devices_a_host}"]
    lines.append(f"{'GPUs':>6}{'batch':>8}{'GB':>7}{'s a step':>10}{'examples/s':>12}"
                 f"{'of linear':>11}  {'':<10}mesh")  # fmt: skip
    for row in one.rows:
      first = one.rows[0]
      share = row.rate / first.rate * first.num_devices / row.num_devices
      lines.append(
        f"{row.num_devices:>6}{row.batch_size:>8}{row.bytes / 1e9:>7.1f}{row.seconds:>10.3g}"
        f"{row.rate:>12.4g}{share:>11.0%}  {row.how:<10}{', '.join(row.mesh_words)}"
      )
    reasons: dict[str, list[int]] = {}
    for num, why in one.left_out.items():
      reasons.setdefault(why, []).append(num)
    lines += [f"  not on {', '.join(map(str, nums))}: {why}." for why, nums in reasons.items()]
  return "\n".join(lines)


def as_json(one: Series) -> dict[str, Any]:
  """The same as data."""
  rows = [dict(row._asdict(), examples_per_second=row.rate) for row in one.rows]
  return dict(title=one.title, rows=rows, left_out=one.left_out)
