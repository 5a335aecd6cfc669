"""RSVQA-HR (arXiv:2003.07333): questions about aerial images (15 cm a pixel, 512 x 512).

"rsvqa_hr/nonum" has no questions for a count or an area; in "rsvqa_hr/all" areas are ranges. Split
test_2 shows another city, Philadelphia.
"""

import re

from pgjax.datasets import base, rsvqa_lr

_FILES = {"train": "train", "val": "val", "test": "test", "test_2": "test_phili"}
_AREA = re.compile(r"(\d+)m2")


def _rows(raw: base.Raw, part: str, split: str):
  for where, asked, answer in rsvqa_lr.active(raw, "USGS", _FILES[split]):
    if part == "nonum" and asked.type in ("area", "count"):
      continue
    if asked.type == "area":
      fits = _AREA.fullmatch(answer.answer) is not None
      raw.check(fits, where, f"the answer {answer.answer!r} is not an area such as 25m2")
    name = f"{asked.img_id}.png"
    image = raw.image("Data", name, f"{where}: img_id")
    yield rsvqa_lr.row(asked, answer, image, name, _binned)


def _binned(answer: str, kind: str) -> str:
  if kind != "area":
    return answer
  area = int(_AREA.fullmatch(answer)[1])
  if area == 0:
    return "0 m2"
  for most, text in ((10, "1 m2 and 10"), (100, "11 m2 and 100"), (1000, "101 m2 and 1000")):
    if area <= most:
      return f"between {text} m2"
  return "more than 1000 m2"


DATA = base.DataSet(
  name="rsvqa_hr",
  about="RSVQA-HR: questions about aerial images",
  source="zenodo.org/records/6344367",
  version="1.0.2",
  features=rsvqa_lr.FEATURES,
  parts={
    "nonum": {"train": 371_834, "val": 60_405, "test": 131_468, "test_2": 62_554},
    "all": {"train": 625_340, "val": 102_843, "test": 222_684, "test_2": 105_647},
  },
  files=lambda part, split: [*rsvqa_lr.files("USGS", _FILES[split]), "Data/"],
  rows=_rows,
)
