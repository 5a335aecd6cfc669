"""OK-VQA (arXiv:1906.00067): questions on COCO images that need outside knowledge."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pgjax.datasets import base

_TYPES = {
  "one": "Vehicles and Transportation",
  "two": "Brands, Companies and Products",
  "three": "Objects, Material and Clothing",
  "four": "Sports and Recreation",
  "five": "Cooking and Food",
  "six": "Geography, History, Language and Culture",
  "seven": "People and Everyday life",
  "eight": "Plants and Animals",
  "nine": "Science and Technology",
  "ten": "Weather and Climate",
  "other": "Other",
}


class _Answer(msgspec.Struct):
  answer: str
  raw_answer: str
  answer_confidence: Literal["yes", "no"]


class _Annotation(msgspec.Struct):
  question_id: base.Int64
  image_id: base.Int64
  answer_type: str
  question_type: Literal[tuple(_TYPES)]
  answers: Annotated[list[_Answer], Meta(min_length=10, max_length=10)]


class _Annotations(msgspec.Struct):
  annotations: list[_Annotation]


class _Question(msgspec.Struct):
  question_id: base.Int64
  image_id: base.Int64
  question: str


class _Questions(msgspec.Struct):
  questions: list[_Question]


def _files(split: str) -> tuple[str, str, str]:
  """Questions, annotations, images."""
  year = f"{split}2014"
  return f"OpenEnded_mscoco_{year}_questions.json", f"mscoco_{year}_annotations.json", year


def _rows(raw: base.Raw, part: None, split: str):
  questions, annotations, images = _files(split)
  by_question = {row.question_id: row for row in raw.json(annotations, _Annotations).annotations}
  for i, asked in enumerate(raw.json(questions, _Questions).questions):
    where = f"{questions}, question {i}"
    row = by_question.get(asked.question_id)
    raw.check(row is not None, where, f"{annotations} has no question_id {asked.question_id}")
    same = asked.image_id == row.image_id
    raw.check(same, where, f"{annotations} has image {row.image_id}, not {asked.image_id}")
    file = f"COCO_{images}_{row.image_id:012d}.jpg"
    yield (
      row.question_id,
      {
        "image": raw.image(images, file, f"{where}: image_id"),
        "image_id": row.image_id,
        "answer_type": row.answer_type,
        "answers": [answer.answer for answer in row.answers],
        "answers_confidence": [answer.answer_confidence == "yes" for answer in row.answers],
        "answers_raw": [answer.raw_answer for answer in row.answers],
        "question_id": row.question_id,
        "question_type": row.question_type,
        "question_type_readable": _TYPES[row.question_type],
        "question": asked.question,
      },
    )


DATA = base.DataSet(
  name="okvqa",
  about="OK-VQA: questions that need outside knowledge",
  source="okvqa.allenai.org and cocodataset.org (images of 2014)",
  features={
    "image": base.Image(),
    "image_id": "int64",
    "answer_type": str,
    "answers": [str],
    "answers_confidence": base.Array((10,), "bool"),
    "answers_raw": [str],
    "question_id": "int64",
    "question_type": str,
    "question_type_readable": str,
    "question": str,
  },
  splits={"train": 9_009, "val": 5_046},
  files=lambda part, split: [*_files(split)[:2], f"{_files(split)[2]}/"],
  rows=_rows,
)
