"""Which sizes, resolutions, methods and batch sizes fit a device?

Each combination is compiled at two batch sizes; memory is nearly linear in the batch size, so the
others are interpolated and marked. A case whose parameters, optimizer state and gradients do not
fit is not compiled.
"""

import concurrent.futures
import contextlib
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pgjax.config import load as config_load, validate as config_validate
from pgjax.planning import memory
from pgjax.planning.compiler import Compiler
from pgjax.planning.page import GB

FIRST, SECOND = 4, 16  # Compiled batch sizes per device; 1 instead of SECOND if FIRST is too much.
MARKS = {"compiled": "", "about": "~", "at least": ">"}


class Case(NamedTuple):
  """A row of the table."""

  size: str
  res: str
  method: str

  def spec(self, config_spec: str) -> str:
    """The config file with its arguments replaced by these."""
    file, _, arg = config_spec.partition(".py:")
    given = dict(part.partition("=")[::2] for part in filter(None, arg.split(",")))
    given |= dict(size=self.size, res=self.res, tune=self.method)
    given.pop("batch_size", None)
    return f"{file.removesuffix('.py')}.py:" + ",".join(f"{k}={v}" for k, v in given.items())


class Cell(NamedTuple):
  """Bytes of one device at one batch size."""

  batch: int  # On a device.
  total: int
  how: str  # A key of MARKS; "about" is interpolated.


class PlanRow(NamedTuple):
  """One case at all batch sizes."""

  case: Case
  cells: list[Cell]

  def largest(self, limit_bytes: float) -> int:
    """The largest of the batch sizes that fits; 0: none."""
    return max((c.batch for c in self.cells if c.total <= limit_bytes), default=0)


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
  """Yields the row of each case, in order. make_config: (case, global batch size) -> config."""
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

  with concurrent.futures.ThreadPoolExecutor(processes) as pool, contextlib.ExitStack() as stack:
    for _ in range(processes):
      compilers.put(stack.enter_context(contextlib.closing(open_compiler())))
    yield from pool.map(row, cases)


def _cells(need: Callable[..., memory.Need], batches: Sequence[int], limit_bytes: float):
  least = need(1, compiled=False)
  if least.total > limit_bytes:
    return [Cell(batch, least.total, "at least") for batch in batches]
  points = {FIRST: need(FIRST).total}
  second = SECOND if points[FIRST] <= limit_bytes else 1
  points[second] = need(second).total
  (b0, y0), (b1, y1) = sorted(points.items())
  slope = max(0.0, (y1 - y0) / (b1 - b0))
  about = {b: Cell(b, round(y0 + slope * (b - b0)), "about") for b in batches}
  compiled = {b: Cell(b, total, "compiled") for b, total in points.items()}
  return [compiled.get(b, about[b]) for b in batches]


def config_of(config_spec: str, overrides: dict[str, Any], case: Case, batch_size: int) -> Any:
  """The checked config of a case."""
  fields = overrides | {"input.batch_size": batch_size, "microbatches": 1}
  return config_validate.validated(config_load.load(case.spec(config_spec), fields))


def head(name: str, limit_bytes: float, batches: Sequence[int], num_devices: int) -> str:
  """The lines above the first row."""
  devices = f"{num_devices} x {name}" if num_devices > 1 else name
  return (
    f"GB on each of {devices} ({limit_bytes / GB:.1f}) at N examples a device and step, total;\n"
    "* fits, ~ interpolated between two compiled batch sizes, > at least\n"
    + f"{'size':<6}{'px':>4}  {'method':<15}"
    + "".join(f"{batch:>8}" for batch in batches)
  )


def line(row: PlanRow, limit_bytes: float) -> str:
  """One row of text."""
  text = f"{row.case.size:<6}{row.case.res:>4}  {row.case.method:<15}"
  for cell in row.cells:
    fits = "*" if cell.total <= limit_bytes else " "
    text += f"{f'{MARKS[cell.how]}{cell.total / GB:.1f}{fits}':>8}"
  return text


def as_json(row: PlanRow, limit_bytes: float) -> dict[str, Any]:
  """A row as data."""
  cells = [c._asdict() | dict(fits=c.total <= limit_bytes) for c in row.cells]
  return row.case._asdict() | dict(cells=cells, largest=row.largest(limit_bytes))
