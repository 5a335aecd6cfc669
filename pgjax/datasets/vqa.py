"""VQAv2 (arXiv:1612.00837): questions about COCO images with ten answers each.

A row is a question, so that an image is stored about five times. The test splits have no answers.
"""

from typing import Literal

import msgspec

from pgjax.datasets import base

_NAMES = {
  "train": "train2014",
  "validation": "val2014",
  "test": "test2015",
  "test-dev": "test-dev2015",
}
_OTHER_YEAR = "a few test questions are about images that are not in test2015"


class _Question(msgspec.Struct):
  image_id: base.Int32
  question: str
  question_id: base.Int32


class _Questions(msgspec.Struct):
  questions: list[_Question]


class _Answer(msgspec.Struct):
  answer: str
  answer_confidence: Literal["no", "maybe", "yes"]


class _Annotation(msgspec.Struct):
  question_id: base.Int32
  question_type: str
  answer_type: str
  answers: list[_Answer]
  multiple_choice_answer: str


class _Annotations(msgspec.Struct):
  annotations: list[_Annotation]


_NONE = _Annotation(0, "", "", [], "")  # In the test splits.


def _files(part: None, split: str) -> list[str]:
  name = _NAMES[split]
  questions = f"v2_OpenEnded_mscoco_{name}_questions.json"
  if split.startswith("test"):
    return [questions, "test2015/"]
  return [questions, f"{name}/", f"v2_mscoco_{name}_annotations.json"]


def _rows(raw: base.Raw, part: None, split: str):
  questions, folder, *annotations = _files(part, split)
  folder = folder.rstrip("/")
  by_question = {
    row.question_id: row for name in annotations for row in raw.json(name, _Annotations).annotations
  }
  for i, asked in enumerate(raw.json(questions, _Questions).questions):
    where, key = f"{questions}, question {i}", asked.question_id
    row = by_question.get(key) if annotations else _NONE
    raw.check(row is not None, where, f"{'/'.join(annotations)} has no question_id {key}")
    file = f"COCO_{folder}_{asked.image_id:012d}.jpg"
    yield (
      key,
      {
        "image/id": asked.image_id,
        "image/filename": file,
        "image": raw.image(folder, file, f"{where}: image_id"),
        "question_id": key,
        "question_type": row.question_type,
        "question_text": asked.question,
        "answer_type": row.answer_type,
        "answers": [answer.answer for answer in row.answers],
        "answer_confidences": [answer.answer_confidence for answer in row.answers],
        "top_answer": row.multiple_choice_answer,
      },
    )


DATA = base.DataSet(
  name="vqa",
  about="VQAv2: questions about COCO images",
  source="visualqa.org/download and cocodataset.org (train2014, val2014, test2015)",
  version="3.0.0",
  features={
    "image/id": "int32",
    "image/filename": str,
    "image": base.Image("jpeg"),
    "question_id": "int32",
    "question_type": str,
    "question_text": str,
    "answer_type": str,
    "answers": [str],
    "answer_confidences": [base.Labels(("no", "maybe", "yes"))],
    "top_answer": str,
  },
  splits={"train": 443_757, "validation": 214_354, "test": 447_793, "test-dev": 107_394},
  files=_files,
  rows=_rows,
  lost_images={"test": _OTHER_YEAR, "test-dev": _OTHER_YEAR},
)
