"""GQA (arXiv:1902.09506): compositional questions about photographs.

Its balanced splits are what models are trained and scored on; the full ones (22 million rows) and
those of the challenge are prepared only if --splits names them.
"""

import msgspec

from pgjax.datasets import base


class _Question(msgspec.Struct):
  imageId: base.Name
  question: str
  isBalanced: bool
  answer: str = ""
  fullAnswer: str = ""


def _rows(raw: base.Raw, part: None, split: str):
  names = [f"{split}_questions.json"]
  if split == "train_all":
    names = [f"train_all_questions/{n}" for n in raw.names("train_all_questions", ".json")]
  for name in names:
    for key, row in raw.json(name, dict[str, _Question]).items():
      where = f"{name}, question {key!r}"
      raw.check(key.isdecimal() and int(key) < 2**63, where, "this id is not a whole number")
      yield (
        key,
        {
          "example_id": int(key),
          "image/id": row.imageId,
          "image": raw.image("images", f"{row.imageId}.jpg", f"{where}: imageId"),
          "question": row.question,
          "answer": row.answer,
          "full_answer": row.fullAnswer,
          "is_balanced": row.isBalanced,
        },
      )


def _files(part: None, split: str) -> list[str]:
  return ["images/", f"{split}_questions" + ("/" if split == "train_all" else ".json")]


DATA = base.DataSet(
  name="gqa",
  about="compositional questions about photographs",
  source="cs.stanford.edu/people/dorarad/gqa (questions1.2.zip, images.zip)",
  features={
    "example_id": "int64",
    "image/id": str,
    "image": base.Image("jpeg"),
    "question": str,
    "answer": str,
    "full_answer": str,
    "is_balanced": "bool",
  },
  splits={"train_balanced": 943_000, "val_balanced": 132_062, "testdev_balanced": 12_578},
  extra_splits={
    "train_all": 14_305_356,
    "val_all": 2_011_853,
    "testdev_all": 172_174,
    "challenge_all": None,
    "challenge_balanced": None,
  },
  files=_files,
  rows=_rows,
)
