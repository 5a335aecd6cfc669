"""DocVQA (arXiv:2007.00398): questions about scanned documents; the test split has no answers.

The archives of 2020 have a folder of images for each split, later ones spdocvqa_images for all.
"""

import msgspec

from pgjax.datasets import base


class _Row(msgspec.Struct):
  questionId: base.Int32
  question: str
  image: base.Name
  answers: list[str] = []


class _File(msgspec.Struct):
  data: list[_Row]


def _files(part: None, split: str) -> list[str]:
  name = "test_v1.0.json" if split == "test" else f"{split}_v1.0_withQT.json"
  return [f"{name}|spdocvqa_qas/{name}", f"{split}/documents/|spdocvqa_images/"]


def _rows(raw: base.Raw, part: None, split: str):
  name, images = map(raw.first, _files(part, split))
  for i, row in enumerate(raw.json(name, _File).data):
    yield (
      row.questionId,
      {
        "question_id": row.questionId,
        "image/filename": row.image,
        "image": raw.image(
          images, row.image.removeprefix("documents/"), f"{name}, data {i}: image"
        ),
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
  files=_files,
  rows=_rows,
)
