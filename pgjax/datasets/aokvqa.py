"""A-OKVQA (arXiv:2206.01718): questions on COCO images that need outside knowledge.

Answers are given freely (ten of them) and as one of four choices. The test split has no answers.
"""

import msgspec

from pgjax.datasets import base


class _Row(msgspec.Struct):
  question_id: str
  image_id: base.Int64
  question: str
  choices: list[str]
  difficult_direct_answer: bool
  direct_answers: list[str] = []
  rationales: list[str] = []
  correct_choice_idx: base.Int32 = -1


def _rows(raw: base.Raw, part: None, split: str):
  name = f"aokvqa_v1p0_{split}.json"
  for i, row in enumerate(raw.json(name, list[_Row])):
    where = f"{name}, entry {i}"
    raw.check(len(row.choices) == 4, where, f"{len(row.choices)} choices, not 4")
    if split == "test":
      row.direct_answers, row.rationales, row.correct_choice_idx = [], [], -1
    else:
      sizes = len(row.direct_answers), len(row.rationales)
      raw.check(sizes == (10, 3), where, f"{sizes} direct_answers and rationales, not (10, 3)")
      raw.check(0 <= row.correct_choice_idx < 4, where, "correct_choice_idx is not in 0 to 3")
    yield (
      row.question_id,
      {
        "image": raw.image(f"{split}2017", f"{row.image_id:012d}.jpg", f"{where}: image_id"),
        "image_id": row.image_id,
        "direct_answers": row.direct_answers,
        "direct_answer_is_difficult": row.difficult_direct_answer,
        "multiple_choice_possible_answers": row.choices,
        "multiple_choice_correct_idx": row.correct_choice_idx,
        "answer_rationales": row.rationales,
        "question": row.question,
        "question_id": row.question_id,
      },
    )


DATA = base.DataSet(
  name="aokvqa",
  about="A-OKVQA: questions that need outside knowledge, free and multiple choice",
  source="allenai.org/project/a-okvqa (aokvqa_v1p0) and cocodataset.org (images of 2017)",
  features={
    "image": base.Image(),
    "image_id": "int64",
    "direct_answers": [str],
    "direct_answer_is_difficult": "bool",
    "multiple_choice_possible_answers": [str],
    "multiple_choice_correct_idx": "int32",
    "answer_rationales": [str],
    "question": str,
    "question_id": str,
  },
  splits={"train": 17_056, "val": 1_145, "test": 6_702},
  files=lambda part, split: [f"aokvqa_v1p0_{split}.json", f"{split}2017/"],
  rows=_rows,
)
