"""What does a scored checkpoint look like to a person? report.html, in one file without links.

A table of the scores, then the first examples of each evaluator with their picture. All text comes
from data and is escaped; the page loads nothing and runs no script.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

PICTURE_PIXELS = 160
EXAMPLES = 50  # Of each evaluator.

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1c1c1c; background: #fff; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
.card { border: 1px solid #ddd; border-left: 5px solid #999; border-radius: 4px; padding: .7rem;
  overflow-wrap: anywhere; white-space: pre-wrap; }
.right { border-left-color: #2a8f4f; } .wrong { border-left-color: #c0392b; }
.card img { width: 160px; display: block; margin-bottom: .4rem; }
.label { color: #666; font-size: .85em; }
"""


def picture(image: np.ndarray) -> str:
  """float [H, W, 3] or [N, H, W, 3] in [-1, 1] (the first of N) to a small data URI."""
  first = image[0] if image.ndim == 4 else image
  pixels = np.clip(np.round((first + 1) * 127.5), 0, 255).astype(np.uint8)
  small = Image.fromarray(pixels)
  small.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
  file = io.BytesIO()
  small.save(file, "PNG")
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def page(
  title: str,
  facts: Mapping[str, Any],
  scores: Mapping[str, float],
  rows: Mapping[str, Sequence[Mapping[str, Any]]],
  pictures: Mapping[str, Mapping[int, str]],
) -> str:
  """The page; `rows` and `pictures` (by position in the split) are those of each evaluator."""
  facts_html = "".join(f"<tr><td>{_text(k)}</td><td>{_text(v)}</td></tr>" for k, v in facts.items())
  scores_html = "".join(
    f'<tr><td>{_text(name)}</td><td class="number">{value:.6g}</td></tr>'
    for name, value in scores.items()
  )
  parts = [f"<h1>{_text(title)}</h1>", f"<table>{facts_html}</table>"]
  parts.append(f"<h2>Scores</h2><table>{scores_html}</table>")
  for name, examples in rows.items():
    shown = examples[:EXAMPLES]
    cards = "".join(_card(row, pictures[name].get(i)) for i, row in enumerate(shown))
    heading = f"{_text(name)}: the first {len(shown)} of {len(examples):,} examples"
    parts.append(f'<h2>{heading}</h2><div class="grid">{cards}</div>')
  head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
  return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _card(row: Mapping[str, Any], data_uri: str | None) -> str:
  score = row.get("score")
  kind = "" if score is None else " right" if score >= 1 else " wrong" if score <= 0 else ""
  image = f'<img src="{data_uri}" alt="">' if data_uri else ""
  lines = "".join(
    f'<div><span class="label">{name}</span> {_text(row[name])}</div>'
    for name in ("prompt", "answer", "prediction", "score", "nll")
    if row.get(name) is not None
  )
  return f'<div class="card{kind}">{image}{lines}</div>'


def _text(value: Any) -> str:
  if isinstance(value, float):
    value = f"{value:.4g}"
  return html.escape(" | ".join(value) if isinstance(value, list) else str(value))
