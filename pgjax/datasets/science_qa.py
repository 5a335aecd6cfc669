"""ScienceQA (arXiv:2209.09513): multiple-choice questions of school science, those with an image.

`indexed_choices` and `indexed_answer` have the choices in the order of the file, for evaluation;
training shuffles them.
"""

import string

import msgspec

from pgjax.datasets import base

_NAME = "problems.json"


class _Problem(msgspec.Struct):
  split: str
  question: str
  choices: list[str]
  answer: base.Int32
  hint: str
  task: str
  grade: str
  subject: str
  topic: str
  category: str
  skill: str
  lecture: str
  solution: str
  image: base.Name | None = None


_COPIED = ("task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")


def _rows(raw: base.Raw, part: None, split: str):
  for key, row in raw.json(_NAME, dict[str, _Problem]).items():
    if row.split != split or not row.image:
      continue
    where = f"{_NAME}, problem {key!r}"
    raw.check(key.isdecimal(), where, "this id is not a whole number")
    count = len(row.choices)
    raw.check(0 <= row.answer < count <= 26, where, f"answer {row.answer} of {count} choices")
    yield (
      int(key),
      {
        "question": row.question,
        "choices": row.choices,
        "answer": row.answer,
        "hint": row.hint or "N/A",
        **{name: getattr(row, name) for name in _COPIED},
        "image": raw.image(split, f"{key}/{row.image}", f"{where}: image"),
        "indexed_choices": ", ".join(
          f"({letter}) {choice}"
          for letter, choice in zip(string.ascii_uppercase, row.choices, strict=False)
        ),
        "indexed_answer": string.ascii_uppercase[row.answer],
      },
    )


DATA = base.DataSet(
  name="science_qa",
  about="ScienceQA: multiple-choice questions of school science with an image",
  source="scienceqa.github.io (problems.json; train, val and test of the images)",
  features={
    "question": str,
    "choices": [str],
    "answer": "int32",
    "hint": str,
    **dict.fromkeys(_COPIED, str),
    "image": base.Image("png"),
    "indexed_choices": str,
    "indexed_answer": str,
  },
  splits={"train": 6_218, "val": 2_097, "test": 2_017},
  files=lambda part, split: [_NAME, f"{split}/"],
  rows=_rows,
)
