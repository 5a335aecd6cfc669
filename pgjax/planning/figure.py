"""How does a plan look? One run as a stacked bar of bytes, or a table as a grid of what fits."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

from pgjax import disk
from pgjax.errors import UserError
from pgjax.planning import scaling as scaling_lib, table as plan_table
from pgjax.planning.memory import Need
from pgjax.planning.page import GB, ROWS

# One colour a row of page.ROWS: inputs in blues, temporaries in reds, the rest grey.
_COLOURS = (
  *("#1f4e79", "#7fa7d1", "#b7a1d6", "#3f7fb5", "#5b6b8c", "#c9dcef"),
  *("#b23a2e", "#e59a6b", "#dddddd", "#bbbbbb"),
)
_FITS, _ABOUT, _NOT = "#4c9f70", "#a9d3b8", "#f1d5cf"


def check(file: str) -> None:
  """Raises UserError, before anything is compiled, if the picture cannot be drawn."""
  if pathlib.Path(file).suffix != ".png":
    raise UserError(f"--picture={file} must end with .png.")
  _figure()


def _figure(**sizes: Any) -> Any:
  try:
    from matplotlib.figure import Figure  # Comes with requirements-plan.txt.
  except ModuleNotFoundError:
    raise UserError("--picture needs matplotlib: pip install matplotlib.") from None
  return Figure(layout="constrained", **sizes)


def _save(figure: Any, file: str) -> None:
  content = io.BytesIO()
  figure.savefig(content, format="png", dpi=150)
  disk.write(pathlib.Path(file), content.getvalue())


def bar(file: str, need: Need, limit_bytes: float, title: str) -> None:
  """Draws one device's bytes, and a line at its memory."""
  figure = _figure(figsize=(9, 2.9))
  axes = figure.add_subplot()
  left = 0.0
  for (label, field), colour in zip(ROWS, _COLOURS, strict=True):
    size = getattr(need, field) / GB
    if size >= 0.005:
      look = dict(color=colour, edgecolor="white", linewidth=0.5, label=f"{label}  {size:.2f}")
      axes.barh(0, size, left=left, **look)
      left += size
  limit = limit_bytes / GB
  axes.axvline(limit, color="black", linewidth=1.5)
  axes.text(limit, 0.46, f"{limit:.1f} GB ", ha="right", va="bottom", fontsize=9)
  axes.set(xlim=(0, 1.04 * max(limit, left)), ylim=(-0.5, 0.62), yticks=[], xlabel="GB of a device")
  axes.set_title(f"{title}: {left:.1f} GB", loc="left", fontsize=10)
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.28), frameon=False, fontsize=8)
  _save(figure, file)


def grid(file: str, rows: Sequence[plan_table.PlanRow], name: str, limit_bytes: float) -> None:
  """A panel per size, a column per resolution and batch size, a row per method."""
  sizes = list(dict.fromkeys(row.case.size for row in rows))
  figure = _figure(figsize=(10, 0.7 + 2.1 * len(sizes)))
  panels = figure.subplots(len(sizes), 1, squeeze=False)[:, 0]
  for axes, size in zip(panels, sizes, strict=True):
    _panel(axes, size, [row for row in rows if row.case.size == size], limit_bytes)
  figure.suptitle(
    f"{name}, {limit_bytes / GB:.1f} GB: GB needed at N examples a device and step (green: fits; "
    "~ interpolated)",
    fontsize=10,
  )
  _save(figure, file)


def scaling(file: str, series: Sequence[scaling_lib.Series], title: str) -> None:
  """Examples a second over the number of GPUs; a filled mark is compiled, a hollow one modelled."""
  figure = _figure(figsize=(11, 4.6))
  panels = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
  for axes, one in zip(panels, series, strict=True):
    _curve(axes, one.rows)
    axes.set_title(one.title, fontsize=10)
  panels[0].set_ylabel("examples/s")
  figure.suptitle(f"{title}. Filled: compiled; hollow: modelled; dotted: linear", fontsize=10)
  _save(figure, file)


def _curve(axes: Any, rows: Sequence[scaling_lib.Row]) -> None:
  """One series on logarithmic axes, with the mesh at each number of GPUs."""
  colour = _COLOURS[0]
  x, y = [row.num_devices for row in rows], [row.rate for row in rows]
  axes.plot(x, y, color=colour, linewidth=1.5)
  axes.plot(x, [y[0] * n / x[0] for n in x], color=colour, linewidth=0.8, linestyle=":")
  for row in rows:
    face = colour if row.how == "compiled" else "white"
    axes.plot(row.num_devices, row.rate, "o", markeredgecolor=colour, markerfacecolor=face)
    look = dict(textcoords="offset points", ha="center", va="top", fontsize=5.5)
    words = "\n".join(row.mesh_words).replace("=", " ")
    axes.annotate(words, (row.num_devices, row.rate), (0, -8), **look)
  axes.set_xscale("log", base=2)
  axes.set_yscale("log")
  axes.set_xticks(x, [str(n) for n in x], fontsize=8)
  axes.margins(x=0.09, y=0.17)
  axes.set_xlabel("GPUs")
  axes.spines[["top", "right"]].set_visible(False)


def _panel(axes: Any, size: str, rows: Sequence[plan_table.PlanRow], limit_bytes: float) -> None:
  resolutions = list(dict.fromkeys(row.case.res for row in rows))
  methods = list(dict.fromkeys(row.case.method for row in rows))
  batches = [cell.batch for cell in rows[0].cells]
  for row in rows:
    y = methods.index(row.case.method)
    for i, cell in enumerate(row.cells):
      x = resolutions.index(row.case.res) * (len(batches) + 0.3) + i
      fits = cell.total <= limit_bytes
      colour = _NOT if not fits else _FITS if cell.how == "compiled" else _ABOUT
      axes.barh(y + 0.5, 0.94, left=x + 0.03, height=0.9, color=colour)
      ink = "white" if colour == _FITS else "black" if fits else "#8a6a63"
      number = f"{plan_table.MARKS[cell.how]}{cell.total / GB:.0f}"
      axes.text(x + 0.5, y + 0.5, number, ha="center", va="center", fontsize=8, color=ink)
  columns = [(r * (len(batches) + 0.3) + i + 0.5, b) for r in range(len(resolutions))
             for i, b in enumerate(batches)]  # fmt: skip
  axes.set(xlim=(0, columns[-1][0] + 0.5), ylim=(len(methods), 0))
  axes.set_xticks([x for x, _ in columns], [str(b) for _, b in columns], fontsize=8)
  axes.set_yticks([y + 0.5 for y in range(len(methods))], methods, fontsize=9)
  for i, res in enumerate(resolutions):
    middle = i * (len(batches) + 0.3) + len(batches) / 2
    axes.text(middle, -0.15, f"{size}, {res} px", ha="center", va="bottom", fontsize=9)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
