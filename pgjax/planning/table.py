"""Which sizes, resolutions, methods and batch sizes fit a device?

The same config file with other arguments, each compiled at two batch sizes; memory is so nearly a
straight line in the batch that the others are read off it, and marked. What cannot fit by its
parameters, optimizer state and gradients alone is not compiled.
"""

import concurrent.futures
import itertools
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pgjax.config import load as config_load, validate as config_validate
from pgjax.planning import memory
from pgjax.planning.compiler import Compiler
from pgjax.planning.page import GB

FIRST, SECOND = 4, 16  # The batch sizes, on a device, that are compiled; 1 where FIRST is too much.


class Case(NamedTuple):
  """A row of the table."""

  size: str
  res: str
  method: str

  def spec(self, config_spec: str) -> str:
    """The config's file with these arguments in place of its own."""
    file, _, arg = config_spec.partition(".py:")
    given = dict(part.partition("=")[::2] for part in filter(None, arg.split(",")))
    given |= dict(size=self.size, res=self.res, tune=self.method)
    given.pop("batch_size", None)
    return f"{file.removesuffix('.py')}.py:" + ",".join(f"{k}={v}" for k, v in given.items())


class Cell(NamedTuple):
  """Bytes of one device at one batch size."""

  batch: int  # On a device.
  total: int
  how: str  # "compiled", "about" (on the line through two that are) or "at least".


class PlanRow(NamedTuple):
  """One case at all batch sizes."""

  case: Case
  cells: list[Cell]

  def largest(self, limit_bytes: float) -> int:
    """The largest of the batch sizes that fits; 0: none."""
    return max((c.batch for c in self.cells if fits(c, limit_bytes)), default=0)


def fits(cell: Cell, limit_bytes: float) -> bool:
  """Whether a device of that size is enough."""
  return cell.total <= limit_bytes


def rows(
  cases: Sequence[Case],
  make_config: Callable[[Case, int], Any],
  open_compiler: Callable[[], Compiler],
  *,
  batches: Sequence[int],
  num_devices: int,
  limit_bytes: float,
  processes: int,
) -> Iterator[PlanRow]:
  """A row for each case, in order, as they are done. make_config: (case, batch on all devices)."""
  compilers: queue.SimpleQueue[Compiler] = queue.SimpleQueue()

  def row(case):
    compiler = compilers.get()

    def need(batch, **how):
      config = make_config(case, batch * num_devices)
      return compiler.step(config, num_devices, **how).need

    try:
      return PlanRow(case, _cells(need, batches, limit_bytes))
    finally:
      compilers.put(compiler)

  with concurrent.futures.ThreadPoolExecutor(processes) as pool:
    opened = [open_compiler() for _ in range(processes)]
    try:
      for compiler in opened:
        compilers.put(compiler)
      yield from pool.map(row, cases)
    finally:
      for compiler in opened:
        compiler.close()


def _cells(
  need: Callable[..., memory.Need], batches: Sequence[int], limit_bytes: float
) -> list[Cell]:
  least = need(1, compiled=False)
  if least.total > limit_bytes:
    return [Cell(batch, least.total, "at least") for batch in batches]
  points = {FIRST: need(FIRST).total}
  second = SECOND if points[FIRST] <= limit_bytes else 1
  points[second] = need(second).total
  (b0, y0), (b1, y1) = sorted(points.items())
  slope = max(0.0, (y1 - y0) / (b1 - b0))
  return [
    Cell(b, points[b], "compiled")
    if b in points
    else Cell(b, round(y0 + slope * (b - b0)), "about")
    for b in batches
  ]


def cases(sizes: Sequence[str], resolutions: Sequence[str], methods: Sequence[str]) -> list[Case]:
  """All combinations."""
  return [Case(*c) for c in itertools.product(sizes, resolutions, methods)]


def config_of(config_spec: str, overrides: dict[str, Any], case: Case, batch_size: int) -> Any:
  """The checked config of a case."""
  fields = overrides | {"input.batch_size": batch_size, "microbatches": 1}
  return config_validate.validated(config_load.load(case.spec(config_spec), fields))


def head(name: str, limit_bytes: float, batches: Sequence[int], num_devices: int) -> str:
  """What the columns are."""
  devices = f"{num_devices} x {name}" if num_devices > 1 else name
  return (
    f"GB on each of {devices} ({limit_bytes / GB:.1f}) at so many examples a device and step, "
    f"all included;\n* fits, ~ not compiled but on the line through two that are, > at least\n"
    + f"{'size':<6}{'px':>4}  {'method':<15}"
    + "".join(f"{batch:>8}" for batch in batches)
  )


def line(row: PlanRow, limit_bytes: float) -> str:
  """One row of text."""
  marks = {"compiled": "", "about": "~", "at least": ">"}
  cells = (
    f"{marks[c.how]}{c.total / GB:.1f}{'*' if fits(c, limit_bytes) else ' '}" for c in row.cells
  )
  case = row.case
  return f"{case.size:<6}{case.res:>4}  {case.method:<15}" + "".join(f"{c:>8}" for c in cells)


def as_json(row: PlanRow, limit_bytes: float) -> dict[str, Any]:
  """A row as data."""
  cells = [c._asdict() | dict(fits=fits(c, limit_bytes)) for c in row.cells]
  return row.case._asdict() | dict(cells=cells, largest=row.largest(limit_bytes))
