"""OCR-VQA (ICDAR 2019): a million questions about 207,572 book covers.

The covers are downloaded one by one, from the addresses in dataset.json, to images/ID.EXT: some are
gone. big_vision's builder of "ocrvqa_id" is not public: the features are those that its config
reads, `int_id` counts the questions in the file's order, and the order of rows is ours.
"""

import os.path

import msgspec

from pgjax.datasets import base

_NAME = "dataset.json"
_SPLITS = {"train": 1, "val": 2, "test": 3}
_GONE = "covers that can no longer be downloaded"


class _Book(msgspec.Struct):
  imageURL: str
  questions: list[str]
  answers: list[str | int | float]
  split: int


def _rows(raw: base.Raw, part: None, split: str):
  number = 0
  for book_id, book in raw.json(_NAME, dict[base.Name, _Book]).items():
    where = f"{_NAME}, book {book_id!r}"
    counts = len(book.questions), len(book.answers)
    raw.check(counts[0] == counts[1], where, f"{counts[0]} questions and {counts[1]} answers")
    raw.check(book.split in _SPLITS.values(), where, f"split {book.split} is not 1, 2 or 3")
    first, number = number, number + counts[0]
    if book.split != _SPLITS[split]:
      continue
    name = book_id + (os.path.splitext(book.imageURL)[1] or ".jpg")
    image = raw.image("images", name, f"{where}: imageURL")
    for i, (question, answer) in enumerate(zip(book.questions, book.answers, strict=True)):
      yield (
        first + i,
        {
          "int_id": first + i,
          "image/id": book_id,
          "image": image,
          "question": question,
          "answer": str(answer),
        },
      )


DATA = base.DataSet(
  name="ocrvqa_id",
  about="OCR-VQA: questions about book covers",
  source="ocr-vqa.github.io (dataset.json, and its program that downloads the covers)",
  features={
    "int_id": "int32",
    "image/id": str,
    "image": base.Image("jpeg"),
    "question": str,
    "answer": str,
  },
  splits={"train": None, "val": None, "test": None},  # 1,002,146 in total, if no cover is gone.
  files=lambda part, split: [_NAME, "images/"],
  rows=_rows,
  lost_images=dict.fromkeys(_SPLITS, _GONE),
)
