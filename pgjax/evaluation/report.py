"""How does a person read the scores of a checkpoint? In report.html, one self-contained file.

It has the scores with their intervals, and a section for each evaluator (report_split.py). All text
from data is escaped. The page loads nothing, and its policy allows only this package's script, by
its hash.
"""

import base64
import hashlib
import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pgjax.evaluation import report_split
from pgjax.evaluation.report_split import Split, number, shown_interval
from pgjax.metrics import interval

_STYLE = pathlib.Path(__file__).with_name("report.css").read_text()
_SCRIPT = pathlib.Path(__file__).with_name("report.js").read_text()


def page(
  title: str,
  facts: Mapping[str, Any],
  scores: Mapping[str, float],
  splits: Sequence[Split],
  *,
  paper: Mapping[str, float] | None = None,
) -> str:
  """The page. The keys of `scores` and `paper` (published scores) are "evaluator/score"."""
  intervals = {
    f"{split.name}/{name}": ends
    for split in splits
    for name, ends in interval.intervals(split.parts).items()
  }
  sections = "".join(report_split.section(split, place) for place, split in enumerate(splits))
  rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
  body = (
    f"<header><h1>{_text(title)}</h1><dl>{rows}</dl></header>"
    f"<main>{_scores(scores, intervals, paper or {})}{sections}</main><script>{_SCRIPT}</script>"
  )
  head = (
    '<meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f"<title>{_text(title)}</title><style>{_STYLE}</style>"
  )
  return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _policy() -> str:
  """Allows only embedded pictures, our style and our script."""
  style, script = (
    base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (_STYLE, _SCRIPT)
  )
  return (
    f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; "
    f"script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
  )


def _scores(scores, intervals, paper) -> str:
  """A row for each score; columns without values are omitted."""
  heads, rows, note = ["score", "value"], "", ""
  if intervals:
    heads.append(f"{interval.LEVEL:.0%} interval")
    note = (
      f'<p class="note">Intervals: bootstrap over examples, {interval.DRAWS:,} draws, fixed seed.'
      " Scores that are not means over examples have none.</p>"
    )
  heads += ["published"] if paper else []
  for name, value in scores.items():
    cells = [f'<th scope="row">{_text(name)}</th>', f"<td>{number(value)}</td>"]
    if intervals:
      ends = shown_interval(intervals[name]) if name in intervals else ""
      cells.append(f"<td>{ends.strip(' ()')}</td>")
    if paper:
      cells.append(f"<td>{number(paper[name]) if name in paper else ''}</td>")
    rows += f"<tr>{''.join(cells)}</tr>"
  head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
  table = f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
  return f'<section aria-labelledby="scores"><h2 id="scores">Scores</h2>{table}{note}</section>'


def _text(value: Any) -> str:
  return html.escape(str(value))
