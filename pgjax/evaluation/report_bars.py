"""How are the scores of one evaluator distributed? As bars: over values, over groups, over fields.

Bars are absolute: a full bar is all examples, or a score of 1 (or the largest score, if above 1).
Groups and fields are in order of their score, the worst first.
"""

import html
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pgjax.data import locations
from pgjax.evaluation.scorers import GROUP_COLUMNS
from pgjax.metrics import interval, structured

MOST_GROUPS = 20
_BINS = 10
_MOST_FIELDS = 40


class Field(NamedTuple):
  """A field of JSON answers: values in common, in the true answers, in the predictions."""

  right: int
  true: int
  predicted: int

  @property
  def f1(self) -> float:
    """Twice the common values, divided by all."""
    return 2 * self.right / (self.true + self.predicted)


def distribution(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
  """Tables of bars; "" if no row has a score. `kind` is evals.*.type."""
  scored = [(row, value) for row in rows if (value := worth(row)) is not None]
  if not scored:
    return ""
  what = "score" if rows[0].get("nll") is None else "log-likelihood"
  tables = [_bars(f"Distribution of {what}s", what, "examples", _histogram([v for _, v in scored]))]
  if kind == "json":
    tables += _fields_table(fields([row for row, _ in scored]))
  keyed = [(column, lambda row, c=column: row.get(c)) for column in GROUP_COLUMNS]
  if kind != "json":  # Whose answers are compared field by field.
    few = len({_group(one_answer(row)) for row, _ in scored}) <= MOST_GROUPS
    keyed.append(("answer", one_answer) if few else ("length of the answer", _answer_size))
  for column, key in keyed:
    groups: dict[str, list[float]] = {}
    for row, value in scored:
      if (group := _group(key(row))) is not None:
        groups.setdefault(group, []).append(value)
    if len(groups) > 1:
      tables.append(_groups(f"Mean {what} by {column}", column, groups))
  return f'<div class="spread">{"".join(tables)}</div>'


def worth(row: Mapping[str, Any]) -> float | None:
  """What orders the rows, higher is better: the score or the likelihood; None without either."""
  if row.get("score") is not None:
    return float(row["score"])
  return -float(row["nll"]) if row.get("nll") is not None else None


def one_answer(row: Mapping[str, Any]) -> str | None:
  """The true answer; the most common of several."""
  answer = row.get("answer")
  if isinstance(answer, list):
    return str(Counter(answer).most_common(1)[0][0]) if answer else None
  return answer


def number(value: float) -> str:
  """Four significant digits; whole numbers in full."""
  if not math.isfinite(value):
    return str(value)
  return f"{int(value):,}" if value == int(value) and abs(value) >= 2 else f"{value:.4g}"


def shown_interval(ends: tuple[float, float]) -> str:
  """In brackets; "" if all rows are equal, so that the bootstrap has no width."""
  return f" ({ends[0]:.3g} to {ends[1]:.3g})" if ends[0] < ends[1] else ""


def _histogram(values: Sequence[float]) -> list[tuple[str, float, str]]:
  """(label, share of the examples, text); a bar for each value, or for bins of many values."""
  counts = Counter(values)
  if len(counts) <= _BINS + 1:
    bars = [(number(value), counts[value]) for value in sorted(counts)]
  else:
    heights, edges = np.histogram(values, _BINS)
    labels = [f"{number(a)} to {number(b)}" for a, b in itertools.pairwise(edges)]
    bars = list(zip(labels, heights.tolist(), strict=True))
  shares = [(label, count / len(values), count) for label, count in bars]
  return [(label, share, f"{count:,} ({share:.1%})") for label, share, count in shares]


def _groups(title: str, column: str, groups: Mapping[str, list[float]]) -> str:
  """A bar for each group, the worst first; the best of more than MOST_GROUPS share one."""
  means = {group: sum(values) / len(values) for group, values in groups.items()}
  order = sorted(groups, key=lambda group: (means[group], -len(groups[group])))
  shown = {group: groups[group] for group in order[:MOST_GROUPS]}
  if rest := order[MOST_GROUPS:]:
    shown[f"{len(rest)} other groups"] = [value for group in rest for value in groups[group]]
  low = min(0.0, *(min(values) for values in shown.values()))
  span = max(1.0 if low == 0 else 0.0, *(max(values) for values in shown.values())) - low
  bars = []
  for group, values in shown.items():
    mean = sum(values) / len(values)
    ends = interval.intervals([dict(score=(value, 1)) for value in values])["score"]
    text = f"{number(mean)}{shown_interval(ends)}, {len(values):,} examples"
    bars.append((group, (mean - low) / span if span else 1.0, text))
  return _bars(title, column, "mean and interval", bars)


def fields(rows: Iterable[Mapping[str, Any]]) -> dict[str, Field]:
  """{"items[].price": Field} of JSON answers, the worst first; items of a list share a field."""
  right, true, predicted = Counter(), Counter(), Counter()
  for row in rows:
    expected, got = (
      structured.fields(structured.parsed(str(row.get(name)))) for name in ("answer", "prediction")
    )
    for (path, _), count in (expected & got).items():
      right[field_name(path)] += count
    for counter, leaves in ((true, expected), (predicted, got)):
      for (path, _), count in leaves.items():
        counter[field_name(path)] += count
  found = {name: Field(right[name], true[name], predicted[name]) for name in true | predicted}
  return dict(sorted(found.items(), key=lambda item: (item[1].f1, -item[1].true, item[0])))


def field_name(path: str, *, numbered: bool = False) -> str:
  """'["items", 0, "price"]' as "items[].price", or numbered as "items[0].price"."""
  name = ""
  for part in json.loads(path):
    if isinstance(part, int):
      name += f"[{part}]" if numbered else "[]"
    else:
      name += f".{part}" if name else part
  return name or "the whole answer"


def _fields_table(of: Mapping[str, Field]) -> list[str]:
  if not of:
    return []
  bars = [
    (name, f.f1, f"{number(f.f1)}: {f.right:,} right of {f.true:,}, {f.predicted:,} predicted")
    for name, f in itertools.islice(of.items(), _MOST_FIELDS)
  ]
  more = f" (the worst {_MOST_FIELDS} of {len(of):,})" if len(of) > _MOST_FIELDS else ""
  return [_bars(f"F1 by field{more}", "field", "F1 and values", bars)]


def _bars(title: str, left: str, right: str, bars: Iterable[tuple[str, float, str]]) -> str:
  rows = "".join(
    f'<tr><th scope="row"><bdi>{html.escape(label)}</bdi></th><td>'
    '<svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
    '<rect class="empty" width="100" height="6"/>'
    f'<rect width="{100 * share:.2f}" height="6"/></svg>{text}</td></tr>'
    for label, share, text in bars
  )
  head = f'<tr><th scope="col">{html.escape(left)}</th><th scope="col">{right}</th></tr>'
  caption = f"<caption>{html.escape(title)}</caption>"
  return f'<table class="bars">{caption}<thead>{head}</thead><tbody>{rows}</tbody></table>'


def _group(value: Any) -> str | None:
  return None if value is None or value == "" else str(value)[:80]


def _answer_size(row: Mapping[str, Any]) -> str | None:
  """The number of objects if the answer has boxes, else of words."""
  answer = one_answer(row)
  if answer is None:
    return None
  if "<loc" in answer:
    count, unit = len(locations.parse(answer).objects), "object"
  else:
    count, unit = len(answer.split()), "word"
  steps = (0, 1, 2, 3, 6, 11, 21, 51)
  low = max(step for step in steps if step <= count)
  high = min((step for step in steps if step > count), default=0) - 1
  if high < 0:
    return f"{low} {unit}s or more"
  return f"{low} {unit}{'s' * (low != 1)}" if high == low else f"{low} to {high} {unit}s"
