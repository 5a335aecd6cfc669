"""What does a report show of one evaluator? The distribution of scores, examples, all predictions.

The examples with pictures are chosen after scoring (worst, best, random), so pictures are loaded by
row number, at most 3 * EXAMPLES.
"""

import html
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pgjax.data import locations
from pgjax.evaluation.scorers import GROUP_COLUMNS
from pgjax.metrics import interval
from pgjax.visualization import images as draw_images

EXAMPLES = 16  # In each part of the gallery.
TABLE_ROWS = 5_000
MOST_GROUPS = 20
_TEXT_LENGTH = 2_000  # Characters of one text in the table.
_PICTURE_PIXELS, _MARKED_PIXELS = 320, 640
_BINS = 10
_DRAWN = ("prediction", "answer")
_LONG = 160  # Characters; a longer text in a card is folded.


class Split(NamedTuple):
  """One evaluator's result.

  rows: as in predictions.jsonl, with id, prompt, answer, prediction, logp and score, or nll;
    objects, if the scorer parsed them from the prediction: dicts of box, label and score.
  parts: each row's {score: (sum, count)}, or empty.
  picture: a row's image as the model receives it, float [H, W, 3] or [N, H, W, 3] in [-1, 1].
  """

  name: str
  rows: Sequence[Mapping[str, Any]]
  parts: Sequence[Mapping[str, tuple[float, float]]] = ()
  picture: Callable[[int], np.ndarray] | None = None
  mask_weights: str = "oi"  # As config.evals.*.mask_weights.


def section(split: Split, place: int) -> str:
  """The evaluator's section of the page; `place` makes its HTML ids unique."""
  name = html.escape(split.name)
  heading = f'<h2 id="split{place}">{name}: {len(split.rows):,} examples</h2>'
  inside = _distribution(split) + _gallery(split, place) + _table(split, place)
  return f'<section aria-labelledby="split{place}">{heading}{inside}</section>'


def number(value: float) -> str:
  """Four significant digits; whole numbers in full."""
  if not math.isfinite(value):
    return str(value)
  return f"{int(value):,}" if value == int(value) and abs(value) >= 2 else f"{value:.4g}"


def shown_interval(ends: tuple[float, float]) -> str:
  """In brackets; "" if all rows are equal, so that the bootstrap has no width."""
  return f" ({ends[0]:.3g} to {ends[1]:.3g})" if ends[0] < ends[1] else ""


def worth(row: Mapping[str, Any]) -> float | None:
  """What orders the rows, higher is better: the score or the likelihood; None without either."""
  if row.get("score") is not None:
    return float(row["score"])
  return -float(row["nll"]) if row.get("nll") is not None else None


# The distribution of scores


def _distribution(split: Split) -> str:
  scored = [(row, value) for row in split.rows if (value := worth(row)) is not None]
  if not scored:
    return ""
  what = "score" if split.rows[0].get("nll") is None else "log-likelihood"
  tables = [_bars(f"Distribution of {what}s", what, "examples", _histogram([v for _, v in scored]))]
  keyed = [(column, lambda row, c=column: row.get(c)) for column in GROUP_COLUMNS]
  answers = {_group(_one_answer(row)) for row, _ in scored}
  few = len(answers) <= MOST_GROUPS
  keyed.append(("answer", _one_answer) if few else ("length of the answer", _answer_size))
  for column, key in keyed:
    groups: dict[str, list[float]] = {}
    for row, value in scored:
      if (group := _group(key(row))) is not None:
        groups.setdefault(group, []).append(value)
    if len(groups) > 1:
      tables.append(_groups(f"Mean {what} by {column}", column, groups))
  return f'<div class="spread">{"".join(tables)}</div>'


def _histogram(values: Sequence[float]) -> list[tuple[str, float, str]]:
  """(label, share of the longest bar, text); a bar for each value, or for bins of many values."""
  counts = Counter(values)
  if len(counts) <= _BINS + 1:
    bars = [(number(value), counts[value]) for value in sorted(counts)]
  else:
    heights, edges = np.histogram(values, _BINS)
    labels = [f"{number(a)} to {number(b)}" for a, b in itertools.pairwise(edges)]
    bars = list(zip(labels, heights.tolist(), strict=True))
  most = max(count for _, count in bars)
  return [(label, count / most, f"{count:,} ({count / len(values):.1%})") for label, count in bars]


def _groups(title: str, column: str, groups: Mapping[str, list[float]]) -> str:
  """A bar for each group, the largest first; those beyond MOST_GROUPS share one."""
  largest = sorted(groups, key=lambda group: -len(groups[group]))
  shown = {group: groups[group] for group in largest[:MOST_GROUPS]}
  if rest := largest[MOST_GROUPS:]:
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


def _one_answer(row: Mapping[str, Any]) -> str | None:
  """The true answer; the most common of several."""
  answer = row.get("answer")
  if isinstance(answer, list):
    return str(Counter(answer).most_common(1)[0][0]) if answer else None
  return answer


def _answer_size(row: Mapping[str, Any]) -> str | None:
  """The number of objects if the answer has boxes, else of words."""
  answer = _one_answer(row)
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


# Examples


def chosen(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
  """{part of the gallery: row numbers}; the random ones have a fixed seed.

  Equal scores are ordered by confidence: a confident wrong answer is the most informative.
  """
  scored = [i for i, row in enumerate(rows) if worth(row) is not None]
  logp = lambda i: rows[i].get("logp") or 0.0  # noqa: E731
  parts = {
    "worst": sorted(scored, key=lambda i: (worth(rows[i]), -logp(i)))[:EXAMPLES],
    "best": sorted(scored, key=lambda i: (-worth(rows[i]), -logp(i)))[:EXAMPLES],
    "random": sorted(random.Random(0).sample(range(len(rows)), min(EXAMPLES, len(rows)))),
  }
  return {name: numbers for name, numbers in parts.items() if numbers}


def _gallery(split: Split, place: int) -> str:
  """Tabs without a script: radio buttons, which arrow keys change."""
  parts = chosen(split.rows)
  numbers = sorted({i for part in parts.values() for i in part})
  objects = {i: {name: _objects(split.rows[i], name) for name in _DRAWN} for i in numbers}
  labels = sorted({o.label for of_row in objects.values() for os in of_row.values() for o in os})
  notes: dict[str, None] = {}  # An ordered set of warnings.
  pictures = {i: _pictures(split, i, objects[i], labels, notes.setdefault) for i in numbers}
  buttons, grids = [], []
  for name, part in parts.items():
    tab, checked = f"tab{place}-{name}", "" if buttons else " checked"
    buttons.append(
      f'<input type="radio" class="tab {name}" name="tabs{place}" id="{tab}"{checked}>'
      f'<label for="{tab}">{name.capitalize()} {len(part)}</label>'
    )
    cards = "".join(_card(i, split.rows[i], pictures[i]) for i in part)
    grids.append(f'<div class="grid {name}{" wide" if labels else ""}">{cards}</div>')
  note = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
  legend = "<legend>Examples (equal scores: the most confident first)</legend>"
  return f'<fieldset class="gallery">{legend}{"".join(buttons)}{note}{"".join(grids)}</fieldset>'


def _pictures(split: Split, i: int, objects, labels, warn) -> list[tuple[str, str]]:
  """(caption, data URI) of a row: its predicted and true objects, or its image if it has none."""
  if split.picture is None:
    return []
  pixels = draw_images.to_grid(split.picture(i))
  if not any(objects.values()):
    return [("image", draw_images.data_uri(pixels, _PICTURE_PIXELS))]
  settings = dict(classes=labels, mask_weights=split.mask_weights, warn=warn)
  drawn = {
    name: draw_images.with_objects(pixels, each, **settings) for name, each in objects.items()
  }
  return [(name, draw_images.data_uri(image, _MARKED_PIXELS)) for name, image in drawn.items()]


def _objects(row: Mapping[str, Any], name: str) -> Sequence[locations.Object]:
  """The objects in a text, with their scores if the scorer stored them."""
  text = row.get(name)
  if not isinstance(text, str) or "<loc" not in text:
    return ()
  if name == "prediction" and row.get("objects"):
    return [
      locations.Object(tuple(o["box"]), o["label"], o.get("codes"), (0, 0), o.get("score"), 1.0)
      for o in row["objects"]
    ]
  # A box without a label, as that of a true mask, is not an object, but it can be drawn.
  return locations.parse(text).objects or locations.parse(f"{text} {name}").objects


def _card(i: int, row: Mapping[str, Any], pictures: Iterable[tuple[str, str]]) -> str:
  shown = [f'<p class="id">{html.escape(str(row.get("id", i)))}</p>']
  for what, uri in pictures:
    shown.append(f'<figure><img src="{uri}" alt="{what} of example {i}" loading="lazy">')
    shown.append(f"<figcaption>{what}</figcaption></figure>" if what != "image" else "</figure>")
  texts = [name for name in ("prompt", "answer", "prediction") if row.get(name) is not None]
  shown += [_field(name, _one_line(row[name])) for name in texts]
  facts = [f"score {number(row['score'])}"] if row.get("score") is not None else []
  if row.get("logp") is not None:
    facts.append(f"probability {math.exp(row['logp']):.3g} (log {row['logp']:.3g})")
  if row.get("nll") is not None:
    facts.append(f"negative log-likelihood {number(row['nll'])}")
  return (
    f'<article class="card {_verdict(row)}">{"".join(shown)}<p>{", ".join(facts)}</p></article>'
  )


def _field(name: str, text: str) -> str:
  value = f"<bdi>{html.escape(text)}</bdi>"
  if len(text) <= _LONG:
    return f"<p><b>{name}</b> {value}</p>"
  start = html.escape(text[: _LONG // 2])
  summary = f"<summary><b>{name}</b> <bdi>{start}</bdi> ...</summary>"
  return f"<details>{summary}<p>{value}</p></details>"


def _verdict(row: Mapping[str, Any]) -> str:
  score = row.get("score")
  return "none" if score is None else "right" if score >= 1 else "wrong" if score <= 0 else "partly"


def _one_line(value: Any) -> str:
  """The text; for several answers, each distinct one with its count."""
  if not isinstance(value, list):
    return str(value)
  counts = Counter(str(v) for v in value)
  return " | ".join(text if n == 1 else f"{text} ({n} times)" for text, n in counts.most_common())


# All predictions


def _table(split: Split, place: int) -> str:
  """The table's data as JSON that cannot end its <script>; report.js builds the table."""
  shown = split.rows[:TABLE_ROWS]
  last = "nll" if shown and shown[0].get("nll") is not None else "logp"
  names = ("id", "prompt", "answer", "prediction", "score", last)
  columns = [name for name in names if any(row.get(name) is not None for row in shown)]
  rows = [[_cell(row.get(name)) for name in columns] for row in shown]
  data = dict(columns=columns, rows=rows, verdicts=[_verdict(row) for row in shown])
  text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c").replace("&", "\\u0026")
  total = len(split.rows)
  more = f" (the first {len(shown):,} of {total:,})" if len(shown) < total else ""
  return (
    f'<div class="predictions" data-name="{html.escape(split.name)}"><h3>Predictions{more}</h3>'
    f'<script type="application/json">{text}</script>'
    "<noscript><p>Enable JavaScript to see this table.</p></noscript></div>"
  )


def _cell(value: Any) -> Any:
  if value is None or isinstance(value, int | float):
    return None if isinstance(value, float) and not math.isfinite(value) else value
  text = _one_line(value)
  return text if len(text) <= _TEXT_LENGTH else text[:_TEXT_LENGTH] + " ..."
