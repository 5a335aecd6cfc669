"""What does storing the matrices in int8 or nf4 cost? A checkpoint scored in each way, in a table.

Intervals are the bootstrap's of metrics/interval.py; those of the differences are paired: all ways
answer the same examples, so a difference is far more certain than the scores themselves.
"""

import json
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pgjax import disk
from pgjax.distributed import processes
from pgjax.errors import UserError
from pgjax.evaluation import score_checkpoint
from pgjax.metrics import interval
from pgjax.params.rules import QUANTIZED

NONE = "none"


class Line(NamedTuple):
  """One score, stored in one way; intervals are None for scores that are no means."""

  score: str  # "evaluator/score".
  how: str
  value: float
  interval: tuple[float, float] | None
  difference: float  # To the first way.
  difference_interval: tuple[float, float] | None


def ways(text: str | None) -> list[str]:
  """The ways of --quantize=none,int8,nf4; [] if it does not list several."""
  listed = [part.strip() for part in (text or "").split(",")]
  known = (NONE, *QUANTIZED)
  if unknown := [way for way in listed if way not in known and (way or len(listed) > 1)]:
    raise UserError(f"--quantize={unknown[0]} must be one of {', '.join(known)}, or several.")
  if len(set(listed)) < len(listed):
    raise UserError(f"--quantize={text} names one of them twice.")
  return listed if len(listed) > 1 else []


def compare(args: Any, source: Any, out: pathlib.Path, listed: Sequence[str]) -> str:
  """Scores the source in each way, into OUT/WAY; writes quantization.json and returns the table."""
  parts: dict[str, dict[str, list]] = {}
  scores: dict[str, Mapping[str, float]] = {}
  for way in listed:
    one = types.SimpleNamespace(**vars(args) | dict(quantize=None if way == NONE else way))
    scoring = score_checkpoint.Scoring(one, source)
    scores[way] = scoring.score(source, out / way)
    parts[way] = {name: result.parts for name, result in scoring.results.items()}
  compared = lines(scores, parts)
  if processes.is_main():
    disk.write(
      out / "quantization.json", json.dumps([line._asdict() for line in compared], indent=2)
    )
  return table(compared)


def lines(scores: Mapping[str, Mapping[str, float]], parts: Mapping[str, Mapping]) -> list[Line]:
  """A line for each score and way; differences are to the first way."""
  first, *_ = scores
  compared = []
  for name in scores[first]:
    evaluator = max((e for e in parts[first] if name.startswith(f"{e}/")), key=len)
    metric = name.removeprefix(f"{evaluator}/")
    if metric in ("num", "no_answer"):
      continue
    for way in scores:
      rows, before = parts[way][evaluator], parts[first][evaluator]
      value, reference = scores[way][name], scores[first][name]
      pairs = zip(rows, before, strict=True)
      compared.append(
        Line(
          name, way, value, interval.intervals(rows).get(metric), value - reference,
          None if way == first else interval.intervals(
            [_paired(row, other, metric) for row, other in pairs]
          ).get(metric),
        )
      )  # fmt: skip
  return compared


def _paired(row: Mapping, other: Mapping, metric: str) -> dict[str, tuple[float, float]]:
  """The difference of a row's contributions, if both count alike."""
  if metric not in row or metric not in other or row[metric][1] != other[metric][1]:
    return {}
  return {metric: (row[metric][0] - other[metric][0], row[metric][1])}


def table(compared: Sequence[Line]) -> str:
  """A line for each, in columns."""
  width = max(len(line.score) for line in compared) + 2
  head = f"{'score':<{width}}{'stored':<8}{'value':>8}  {'95% interval':<18}"
  rows = [head + "difference, 95% interval (paired)"]
  for line in compared:
    text = f"{line.score:<{width}}{line.how:<8}{line.value:>8.4f}  {_ends(line.interval):<18}"
    if line.how != compared[0].how:
      text += f"{line.difference:+.4f}  {_ends(line.difference_interval, '+')}"
    rows.append(text.rstrip())
  return "\n".join(rows)


def _ends(ends: tuple[float, float] | None, sign: str = "") -> str:
  return "" if ends is None else f"{ends[0]:{sign}.4f} to {ends[1]:{sign}.4f}"
