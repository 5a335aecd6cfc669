"""ChartQA (arXiv:2203.10244): questions about charts, in two parts.

"chartqa/human" has questions written by people, "chartqa/augmented" ones generated from captions.
The download's layout, for the splits train, val and test:

  DIR/{split}/png/*.png   DIR/{split}/{split}_human.json   DIR/{split}/{split}_augmented.json
"""

import msgspec

from pgjax.datasets import base


class _Row(msgspec.Struct):
  imgname: base.Name
  query: str
  label: str | int | float


def _file(part: str, split: str) -> str:
  return f"{split}/{split}_{part}.json"


def _rows(raw: base.Raw, part: str, split: str):
  name = _file(part, split)
  for i, row in enumerate(raw.json(name, list[_Row])):
    yield (
      i,
      {
        "question_id": i,
        "image/filename": row.imgname,
        "image": raw.image(f"{split}/png", row.imgname, f"{name}, entry {i}: imgname"),
        "question": row.query,
        "answer": str(row.label),
      },
    )


DATA = base.DataSet(
  name="chartqa",
  about="questions about charts",
  source="github.com/vis-nlp/ChartQA, which links the archive",
  features={
    "question_id": "int32",
    "image/filename": str,
    "image": base.Image("png"),
    "question": str,
    "answer": str,
  },
  parts={
    "human": {"train": 7_398, "val": 960, "test": 1_250},
    "augmented": {"train": 20_901, "val": 960, "test": 1_250},
  },
  files=lambda part, split: [_file(part, split), f"{split}/png/"],
  rows=_rows,
)
