"""Screen2Words (arXiv:2108.03353): five summaries of each screen of an app.

DIR/screen2words/split/{train,dev,test}_screens.txt   DIR/screen2words/screen_summaries.csv
DIR/combined/*.jpg                                    (RICO)
"""

from pgjax.datasets import base, tables
from pgjax.datasets.dropped import Dropped

_SUMMARIES = "screen2words/screen_summaries.csv"


def _screens(split: str) -> str:
  return f"screen2words/split/{split}_screens.txt"


def _rows(raw: base.Raw, part: None, split: str):
  summaries: dict[int, list[str]] = {}
  for line, row in tables.rows(raw, _SUMMARIES, ("screenId", "summary")):
    screen = tables.whole_number(raw, row["screenId"], f"{_SUMMARIES}, line {line}: screenId")
    summaries.setdefault(screen, []).append(row["summary"])
  name = _screens(split)
  with Dropped(DATA.name, part, split) as dropped:
    for number, text in tables.lines(raw, name):
      where = f"{name}, line {number}"
      screen = tables.whole_number(raw, text, where)
      if screen not in summaries:
        dropped.add(f"screens without a summary in {_SUMMARIES}", screen)
        continue
      yield (
        screen,
        {
          "image/id": screen,
          "image/filename": f"{screen}.jpg",
          "image": raw.image("combined", f"{screen}.jpg", where),
          "summary": summaries[screen],
        },
      )


DATA = base.DataSet(
  name="screen2_words",
  about="summaries of the screens of apps (Screen2Words)",
  source="github.com/google-research-datasets/screen2words and RICO (unique_uis.tar.gz)",
  features={
    "image/id": "int32",
    "image/filename": str,
    "image": base.Image("jpeg"),
    "summary": [str],
  },
  splits={"train": 15_743, "dev": 2_364, "test": 4_310},
  files=lambda part, split: [_screens(split), _SUMMARIES, "combined/"],
  rows=_rows,
)
