"""How does a person read the scores of a checkpoint? In report.html, one self-contained file.

It has the scores with their intervals, and a section for each evaluator (report_split.py). All text
from data is escaped.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pgjax.evaluation import report_split
from pgjax.evaluation.report_bars import number, shown_interval
from pgjax.evaluation.report_split import Split
from pgjax.metrics import interval
from pgjax.visualization import html_page

_SCRIPT = pathlib.Path(__file__).with_name("report.js").read_text()


def page(
  title: str,
  facts: Mapping[str, Any],
  scores: Mapping[str, float],
  splits: Sequence[Split],
  *,
  paper: Mapping[str, Any] | None = None,
) -> str:
  """The page. The keys of `scores` and `paper` are "evaluator/score".

  paper: published scores, each a mean or (mean, standard deviation over training runs).
  """
  intervals = {
    f"{split.name}/{name}": ends
    for split in splits
    for name, ends in interval.intervals(split.parts).items()
  }
  sections = "".join(report_split.section(split, place) for place, split in enumerate(splits))
  body = _scores(scores, intervals, paper or {}) + sections
  return html_page.page(title, facts, body, _SCRIPT)


def _scores(scores, intervals, paper) -> str:
  """A row for each score; columns without values are omitted."""
  text = html_page.text
  heads, rows, note = ["score", "value"], "", ""
  if intervals:
    heads.append(f"{interval.LEVEL:.0%} interval")
    note = (
      f'<p class="note">Intervals: bootstrap over examples, {interval.DRAWS:,} draws, fixed seed.'
      " Scores that are not means over examples have none.</p>"
    )
  heads += ["published"] if paper else []
  for name, value in scores.items():
    cells = [f'<th scope="row">{text(name)}</th>', f"<td>{number(value)}</td>"]
    if intervals:
      ends = shown_interval(intervals[name]) if name in intervals else ""
      cells.append(f"<td>{ends.strip(' ()')}</td>")
    if paper:
      cells.append(f"<td>{_published(value, paper[name]) if name in paper else ''}</td>")
    rows += f"<tr>{''.join(cells)}</tr>"
  head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
  table = f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
  return f'<section aria-labelledby="scores"><h2 id="scores">Scores</h2>{table}{note}</section>'


def _published(ours: float, paper: Any) -> str:
  """The published score, with its deviation and the difference of ours in deviations."""
  if not isinstance(paper, Sequence):
    return number(paper)
  mean, deviation = paper
  if not deviation:
    return f"{number(mean)} ± {number(deviation)}"
  return f"{number(mean)} ± {number(deviation)} (ours {(ours - mean) / deviation:+.1f} sd)"
