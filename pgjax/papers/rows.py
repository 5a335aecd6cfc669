"""What did the papers publish for each transfer, and what have we measured of it?

configs/published.py has the figures. A result of ours belongs to a row if its config has the row's
evaluator, size and resolution.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pgjax.config import load as config_load
from pgjax.errors import UserError, cut, did_you_mean
from pgjax.papers.results import Result

SIZES = {
  "v1": "PaliGemma 1", "3b": "PaliGemma 2 3B", "10b": "PaliGemma 2 10B", "28b": "PaliGemma 2 28B",
  "mix": "PaliGemma 1 mix",
}  # fmt: skip

_HEADS = {"v1": "PaliGemma 1", "3b": "2: 3B", "10b": "2: 10B", "28b": "2: 28B", "mix": "1: mix"}


class Row(NamedTuple):
  """One published figure as printed: in percent, CIDEr times 100, but characters and sentences."""

  task: str  # configs/TASK.py.
  paper: str  # The paper's name of the score.
  evaluator: str  # Of the config, or a mean over several.
  metric: str
  size: str
  res: int
  mean: float
  deviation: float | None  # Over training runs.
  final_split: bool  # Trained with the argument final_split.
  on_a_server: bool  # Scored by the data set's server.


class Ours(NamedTuple):
  """A score of ours beside a row."""

  value: float  # In the row's unit.
  result: Result
  others: int  # Older results of the same row.

  def deviations(self, row: Row) -> float | None:
    """The difference in the paper's deviations."""
    return (self.value - row.mean) / row.deviation if row.deviation else None


def published_rows(task: str | None = None) -> list[Row]:
  """The rows of one task, or of all; raises for an unknown name."""
  table = config_load.shared("published")
  if task is not None and task not in table.RESULTS:
    raise UserError(
      f"--task={cut(task)} is no transfer of the papers.{did_you_mean(task, table.RESULTS)}"
    )
  return [
    Row(
      name, paper, evaluator, metric, size, res, mean, deviation,
      final_split=evaluator in table.FINAL_SPLIT, on_a_server=evaluator in table.ON_A_SERVER,
    )
    for name, scores in table.RESULTS.items() if task in (None, name)
    for (paper, evaluator, metric), by_size in scores.items()
    for res in sorted({res for by_res in by_size.values() for res in by_res})
    for size, by_res in by_size.items() if res in by_res
    for mean, deviation in [by_res[res]]
  ]  # fmt: skip


def matched(rows: Sequence[Row], results: Sequence[Result]) -> dict[Row, Ours]:
  """The newest result of each row that has any."""
  measured: dict[Row, Ours] = {}
  for result in sorted(results, key=lambda r: r.seconds):
    for row in rows:
      if (value := _value(row, result)) is not None:
        others = measured[row].others + 1 if row in measured else 0
        measured[row] = Ours(value, result, others)
  return measured


def _value(row: Row, result: Result) -> float | None:
  """A result's score in the row's unit; None if it is of another model, or lacks the score."""
  if (row.size, row.res) != (result.size, result.res):
    return None
  table = config_load.shared("published")
  names = table.AVERAGES.get(row.evaluator, [row.evaluator])
  values = [result.scores.get(f"{name}/{row.metric}") for name in names]
  unit = 1 if row.metric in table.ABSOLUTE else 100
  return None if None in values else unit * sum(values) / len(values)


def unmatched(rows: Sequence[Row], results: Sequence[Result]) -> Iterator[str]:
  """A sentence for each result that is beside no row."""
  for result in results:
    if not any(_value(row, result) is not None for row in rows):
      what = SIZES.get(result.size, f"a model of size {result.size}")
      yield f"{result.folder}: {what} at {result.res} px has no published score of its evaluators."


def as_json(rows: Sequence[Row], measured: Mapping[Row, Ours]) -> list[dict[str, Any]]:
  """The rows as data."""
  made = []
  for row in rows:
    ours = measured.get(row)
    fields = None if ours is None else dict(
      value=ours.value, difference=ours.value - row.mean, deviations=ours.deviations(row),
      folder=ours.result.folder, step=ours.result.step, others=ours.others,
    )  # fmt: skip
    made.append(row._asdict() | dict(ours=fields))
  return made


def shown(mean: float, deviation: float | None) -> str:
  """A figure as papers print it."""
  return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ±{deviation:.1f}"


def compared(row: Row, ours: Ours) -> str:
  """Our figure and its difference."""
  deviations = ours.deviations(row)
  more = f"{ours.value - row.mean:+.1f}" if deviations is None else f"{deviations:+.1f} sd"
  return f"{ours.value:.1f} ({more})"


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str, int], dict[str, Row]]:
  """{(task, the paper's name, resolution): {size: row}}: the lines of a table."""
  lines: dict[tuple[str, str, int], dict[str, Row]] = {}
  for row in rows:
    lines.setdefault((row.task, row.paper, row.res), {})[row.size] = row
  return lines


def text_table(rows: Sequence[Row], measured: Mapping[Row, Ours]) -> str:
  """A line for each score and resolution, a column for each size; ours below the published."""
  sizes = [size for size in SIZES if any(row.size == size for row in rows)]
  heads = [_HEADS[size] for size in sizes]
  lines = [f"{'config':<16}{'score':<27}{'px':>4}" + "".join(f"{head:>13}" for head in heads)]
  for (task, paper, res), by_size in grouped(rows).items():
    cells = [shown(r.mean, r.deviation) if (r := by_size.get(size)) else "" for size in sizes]
    lines.append(f"{task:<16}{paper:<27}{res:>4}" + "".join(f"{cell:>13}" for cell in cells))
    for row in by_size.values():
      if row in measured:
        ours = measured[row]
        more = f" and {ours.others} older" if ours.others else ""
        where = f"{ours.result.folder}, step {ours.result.step:,}{more}"
        lines.append(f"{'':<16}  ours, {row.size}: {compared(row, ours)}  {where}")
  return "\n".join(line.rstrip() for line in lines)
