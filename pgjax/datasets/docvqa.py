"""DocVQA (arXiv:2007.00398): questions about scanned documents; the test split has no answers."""

import msgspec

from pgjax.datasets import base


class _Row(msgspec.Struct):
  questionId: base.Int32
  question: str
  image: base.Name
  answers: list[str] = []


class _File(msgspec.Struct):
  data: list[_Row]


def _file(split: str) -> str:
  return "test_v1.0.json" if split == "test" else f"{split}_v1.0_withQT.json"


def _rows(raw: base.Raw, part: None, split: str):
  name = _file(split)
  for i, row in enumerate(raw.json(name, _File).data):
    yield (
      row.questionId,
      {
        "question_id": row.questionId,
        "image/filename": row.image,
        "image": raw.image(split, row.image, f"{name}, data {i}: image"),
        "question": row.question,
        "answers": row.answers,
      },
    )


DATA = base.DataSet(
  name="docvqa",
  about="questions about scanned documents",
  source="rrc.cvc.uab.es/?ch=17 (task 1, single page; needs an account there)",
  features={
    "question_id": "int32",
    "image/filename": str,
    "image": base.Image("png"),
    "question": str,
    "answers": [str],
  },
  splits={"train": 39_463, "val": 5_349, "test": 5_188},
  files=lambda part, split: [_file(split), f"{split}/documents/"],
  rows=_rows,
)
