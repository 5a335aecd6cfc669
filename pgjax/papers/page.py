"""How does a person read the table? As a page, and the commands of a task as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from pgjax.papers.commands import Recipe
from pgjax.papers.rows import SIZES, Ours, Row, compared, grouped, shown
from pgjax.visualization import html_page


def recipe_text(recipe: Recipe) -> str:
  """The commands of a recipe, each below what it is for."""
  first = recipe.rows[0]
  names = ", ".join(dict.fromkeys(row.paper for row in recipe.rows))
  lines = [f"To reproduce {names}, {SIZES[first.size]} at {first.res} px:"]
  for step in recipe.steps:
    lines += [f"  # {step.purpose}", f"  {step.command}"]
  return "\n".join([*lines, *_notes(recipe)])


def _notes(recipe: Recipe) -> list[str]:
  notes = []
  if "RAW" in " ".join(step.command for step in recipe.steps):
    notes.append("RAW: the folder of a download; `python -m pgjax.prepare NAME` lists its files.")
  if "data_dir=VIDEOS" in recipe.spec:
    notes.append("VIDEOS: the folder of the videos (docs/data.md).")
  if servers := [row.paper for row in recipe.rows if row.on_a_server]:
    notes.append(f"{', '.join(servers)}: upload the predictions; the answers are not public.")
  return notes


def recipe_json(recipe: Recipe) -> dict[str, Any]:
  """The same as data."""
  steps = [step._asdict() for step in recipe.steps]
  return dict(config=recipe.spec, scores=[row.paper for row in recipe.rows], steps=steps)


def html(rows: Sequence[Row], measured: Mapping[Row, Ours]) -> str:
  """The page with all rows."""
  text = html_page.text
  sizes = [size for size in SIZES if any(row.size == size for row in rows)]
  heads = ["score", "px", *(SIZES[size] for size in sizes)]
  head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
  body, before = "", None
  for (task, paper, res), by_size in grouped(rows).items():
    if task != before:
      name = f'<th scope="rowgroup" colspan="{len(heads)}">{text(task)}</th>'
      body += f'<tr class="group">{name}</tr>'
    before = task
    cells = "".join(f"<td>{_cell(by_size.get(size), measured)}</td>" for size in sizes)
    body += f'<tr><th scope="row">{text(paper)}</th><td>{res}</td>{cells}</tr>'
  table = (
    f'<div class="wide"><table class="papers"><thead><tr>{head}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )
  note = (
    '<p class="note">In percent, CIDEr times 100, but #char and #sent; ± is the standard deviation'
    " (sd) over training runs. Ours are below, coloured where they differ by more than 2 sd.</p>"
  )
  facts = {
    "published": "PaliGemma 1, arXiv:2407.07726; PaliGemma 2, arXiv:2412.03555",
    "ours": f"{len(measured)} of {len(rows)} scores",
  }
  return html_page.page("Transfers of the papers", facts, note + table)


def _cell(row: Row | None, measured: Mapping[Row, Ours]) -> str:
  if row is None:
    return ""
  published = html_page.text(shown(row.mean, row.deviation))
  if row not in measured:
    return published
  deviations = measured[row].deviations(row) or 0.0
  kind = "right" if deviations > 2 else "wrong" if deviations < -2 else "near"
  return f'{published}<br><b class="{kind}">{html_page.text(compared(row, measured[row]))}</b>'
