"""What does a scored checkpoint look like to a person? report.html, in one file without links.

The scores with their intervals, and a section for each evaluator (report_split.py). All text comes
from data and is escaped. The page loads nothing, and its policy lets nothing run but the one script
of this package, named by its hash.
"""

import base64
import hashlib
import html
import json
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
  """The page. `scores` and `paper` (published numbers) are by "evaluator/score"."""
  found: dict[str, tuple[float, float]] = {}
  for split in splits:
    of_split = interval.intervals(split.parts)
    found |= {f"{split.name}/{name}": ends for name, ends in of_split.items()}
  parts = [
    f"<header><h1>{_text(title)}</h1>{_facts(facts)}</header><main>",
    _scores(scores, found, paper or {}),
    *(report_split.section(split, place) for place, split in enumerate(splits)),
    "</main>",
  ]
  head = [
    '<meta charset="utf-8">',
    f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<meta name="color-scheme" content="light dark">',
    f"<title>{_text(title)}</title><style>{_STYLE}</style>",
  ]
  body = "".join(parts) + f"<script>{_SCRIPT}</script>"
  return (
    f'<!doctype html>\n<html lang="en"><head>{"".join(head)}</head><body>{body}</body></html>\n'
  )


def _policy() -> str:
  """Nothing but pictures in the page, our style and our script."""
  hashes = [
    base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (_STYLE, _SCRIPT)
  ]
  return (
    f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
    f"script-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none'"
  )


def _facts(facts: Mapping[str, Any]) -> str:
  rows = "".join(
    f"<dt>{_text(name)}</dt><dd>{_text(_shown(value))}</dd>" for name, value in facts.items()
  )
  return f"<dl>{rows}</dl>"


def _shown(value: Any) -> str:
  if isinstance(value, Mapping | list | tuple):
    return json.dumps(value, ensure_ascii=False, default=str)
  return str(value)


def _scores(scores, found, paper) -> str:
  """A row for each score; columns that no score fills are left out."""
  heads = ["score", "value"]
  heads += [f"{interval.LEVEL:.0%} interval"] if found else []
  heads += ["published"] if paper else []
  rows = []
  for name, value in scores.items():
    cells = [f'<th scope="row">{_text(name)}</th>', f"<td>{number(value)}</td>"]
    if found:
      ends = shown_interval(found[name]) if name in found else ""
      cells.append(f"<td>{ends.strip(' ()')}</td>")
    if paper:
      cells.append(f"<td>{number(paper[name]) if name in paper else ''}</td>")
    rows.append(f"<tr>{''.join(cells)}</tr>")
  head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
  note = (
    f'<p class="note">Interval: {interval.DRAWS:,} bootstrap draws of the examples, seeded. Scores'
    " of a whole split, which are no mean over examples, have none.</p>"
    if found
    else ""
  )
  table = (
    f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
  )
  return f'<section aria-labelledby="scores"><h2 id="scores">Scores</h2>{table}{note}</section>'


def _text(value: Any) -> str:
  return html.escape(str(value))
