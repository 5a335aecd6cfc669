"""InfographicVQA (arXiv:2104.12756): questions about infographics; the test has no answers.

The items of an answer such as "cats, dogs" may be in any order: in the val split every order is an
answer, which ANLS depends on.
"""

import itertools
import logging

import msgspec

from pgjax.datasets import base

_FILES = {
  "train": "infographicsVQA_train_v1.0.json",
  "val": "infographicsVQA_val_v1.0_withQT.json",
  "test": "infographicsVQA_test_v1.0.json",
}
_MOST_ITEMS = 8  # 40,320 orders.
_log = logging.getLogger("pgjax.prepare")


class _Row(msgspec.Struct):
  questionId: base.Int32
  question: str
  image_local_name: base.Name
  answers: list[str] = []


class _File(msgspec.Struct):
  data: list[_Row]


def _files(part: None, split: str) -> list[str]:
  name = _FILES[split]
  return [f"{name}|infographicsvqa_qas/{name}", "images/|infographicsvqa_images/"]


def _rows(raw: base.Raw, part: None, split: str):
  name, images = map(raw.first, _files(part, split))
  for i, row in enumerate(raw.json(name, _File).data):
    where = f"{name}, data {i}"
    answers = row.answers
    if split == "val":
      answers = [order for answer in answers for order in _orders(answer, where)]
    yield (
      row.questionId,
      {
        "question_id": row.questionId,
        "filename": row.image_local_name,
        "image": raw.image(images, row.image_local_name, f"{where}: image_local_name"),
        "question": row.question,
        "answers": answers,
      },
    )


def _orders(answer: str, where: str) -> list[str]:
  items = answer.split(", ")
  if len(items) > _MOST_ITEMS:
    _log.warning("%s: an answer has %d items, and only their own order is kept", where, len(items))
    return [answer]
  return [", ".join(order) for order in itertools.permutations(items)]


DATA = base.DataSet(
  name="infovqa",
  about="questions about infographics",
  source="rrc.cvc.uab.es/?ch=17 (task 3, infographics; needs an account there)",
  version="1.1.0",
  features={
    "question_id": "int32",
    "filename": str,
    "image": base.Image("jpeg"),
    "question": str,
    "answers": [str],
  },
  splits={"train": 23_946, "val": 2_801, "test": 3_288},
  files=_files,
  rows=_rows,
)
