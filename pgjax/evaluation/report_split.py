"""What does a report show of one evaluator? Its distribution of scores, examples, all predictions.

The examples with pictures are chosen after scoring (worst, best, random), so pictures are loaded by
row number, at most 3 * EXAMPLES.
"""

import html
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pgjax.data import locations
from pgjax.evaluation import report_bars
from pgjax.evaluation.report_bars import number, worth
from pgjax.metrics import structured
from pgjax.visualization import html_page, images as draw_images

EXAMPLES = 16  # In each part of the gallery.
TABLE_ROWS = 5_000
_TEXT_LENGTH = 2_000  # Characters of one text in the table.
_PICTURE_PIXELS, _MARKED_PIXELS = 320, 640
_MOST_WRONG = 12  # Fields of a JSON answer in a card.
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
  kind: str = ""  # As config.evals.*.type.
  facts: Mapping[str, Any] = {}  # What was scored: data, decoding.


def section(split: Split, place: int) -> str:
  """The evaluator's section of the page; `place` makes its HTML ids unique."""
  name = html.escape(split.name)
  heading = f'<h2 id="split{place}">{name}: {len(split.rows):,} examples</h2>'
  inside = html_page.facts_list(split.facts) + report_bars.distribution(split.rows, split.kind)
  inside += _gallery(split, place) + _table(split, place)
  return f'<section aria-labelledby="split{place}">{heading}{inside}</section>'


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
    cards = "".join(_card(i, split.rows[i], pictures[i], split.kind) for i in part)
    grids.append(
      f'<div class="grid {name}{" wide" if labels or split.kind == "json" else ""}">{cards}</div>'
    )
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


def _card(i: int, row: Mapping[str, Any], pictures: Iterable[tuple[str, str]], kind: str) -> str:
  shown = [f'<p class="id">{html.escape(str(row.get("id", i)))}</p>']
  for what, uri in pictures:
    shown.append(f'<figure><img src="{uri}" alt="{what} of example {i}" loading="lazy">')
    shown.append(f"<figcaption>{what}</figcaption></figure>" if what != "image" else "</figure>")
  texts = [name for name in ("prompt", "answer", "prediction") if row.get(name) is not None]
  by_field = _fields(row) if kind == "json" else ""
  shown += [_text(name, _one_line(row[name])) for name in (texts[:1] if by_field else texts)]
  shown.append(by_field)
  facts = [f"score {number(row['score'])}"] if row.get("score") is not None else []
  if row.get("logp") is not None:
    facts.append(f"probability {math.exp(row['logp']):.3g} (log {row['logp']:.3g})")
  if row.get("nll") is not None:
    facts.append(f"negative log-likelihood {number(row['nll'])}")
  return (
    f'<article class="card {_verdict(row)}">{"".join(shown)}<p>{", ".join(facts)}</p></article>'
  )


def _fields(row: Mapping[str, Any]) -> str:
  """The fields in which a JSON prediction differs; "" if it is no JSON."""
  texts = [str(row.get(name)) for name in ("answer", "prediction")]
  values = [structured.parsed(text) for text in texts]
  if structured.NOTHING in values:
    return ""
  expected, got = (structured.fields(value) for value in values)
  right = (expected & got).total()
  both = ((expected, got), (got, expected))
  wrong = [{path: value for path, value in a - b} for a, b in both]  # noqa: C416 (a Counter)
  paths = sorted({*wrong[0], *wrong[1]})
  rows = "".join(
    f'<tr><th scope="row"><bdi>{_path(path)}</bdi></th>'
    + "".join(f"<td><bdi>{html.escape(_cell(of.get(path, '')))}</bdi></td>" for of in wrong)
    + "</tr>"
    for path in paths[:_MOST_WRONG]
  )
  note = f"{right} of {expected.total()} fields right"
  if len(paths) > _MOST_WRONG:
    note += f"; {len(paths) - _MOST_WRONG} more differ"
  head = "".join(f'<th scope="col">{name}</th>' for name in ("field", "answer", "prediction"))
  table = f'<table class="fields"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
  return f"<p>{note}</p>{table * bool(paths)}"


def _path(path: str) -> str:
  return html.escape(report_bars.field_name(path, numbered=True))


def _text(name: str, text: str) -> str:
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
