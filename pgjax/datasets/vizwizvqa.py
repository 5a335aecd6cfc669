"""VizWiz-VQA (arXiv:1802.08218): questions that blind people asked about photographs they took.

Answers that are empty are left out, so that some rows have fewer than ten; `answerable` is -1 in
the test split, which has no answers.
"""

import re

import msgspec

from pgjax.datasets import base

_NUMBER = re.compile(r".*_0*(\d{1,9})\.\w{3}")


class _Answer(msgspec.Struct):
  answer: str
  answer_confidence: str


class _Row(msgspec.Struct):
  image: base.Name
  question: str
  answers: list[_Answer] = []
  answerable: base.Int32 = -1


def _rows(raw: base.Raw, part: None, split: str):
  name = f"annotations/{split}.json"
  for i, row in enumerate(raw.json(name, list[_Row])):
    where = f"{name}, entry {i}: image"
    number = _NUMBER.fullmatch(row.image)
    raw.check(number is not None, where, f"{row.image!r} is not a name such as VizWiz_val_1.jpg")
    given = [answer for answer in row.answers if answer.answer] if split != "test" else []
    yield (
      row.image,
      {
        "question": row.question,
        "image/filename": row.image,
        "image": raw.image(split, row.image, where),
        "answers": [answer.answer for answer in given],
        "answer_confidences": [answer.answer_confidence for answer in given],
        "answerable": row.answerable if split != "test" else -1,
        "question_id": int(number[1]),
      },
    )


DATA = base.DataSet(
  name="vizwizvqa",
  about="VizWiz-VQA: questions of blind people about their photographs",
  source="vizwiz.org/tasks-and-datasets/vqa",
  features={
    "question": str,
    "image/filename": str,
    "image": base.Image("jpeg"),
    "answers": [str],
    "answer_confidences": [str],
    "answerable": "int32",
    "question_id": "int32",
  },
  splits={"train": 20_523, "val": 4_319, "test": 8_000},
  files=lambda part, split: [f"annotations/{split}.json", f"{split}/"],
  rows=_rows,
)
