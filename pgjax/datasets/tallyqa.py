"""TallyQA (arXiv:1810.12440): simple and complex counting questions, on Visual Genome and COCO.

Only the test split says which questions are simple: `issimple` is -1 in train.
"""

import msgspec

from pgjax.datasets import base

_FOLDERS = ("VG_100K", "VG_100K_2", "train2014", "val2014")


class _Row(msgspec.Struct):
  image: base.Name
  image_id: base.Int32
  data_source: str
  question: str
  question_id: base.Int32
  answer: base.Int32 | str
  issimple: bool | base.Int32 | None = None


def _rows(raw: base.Raw, part: None, split: str):
  name = f"{split}.json"
  for i, row in enumerate(raw.json(name, list[_Row])):
    where = f"{name}, entry {i}"
    folder, _, file = row.image.partition("/")
    raw.check(folder in _FOLDERS, where, f"image {row.image!r} is not in one of {_FOLDERS}")
    number = isinstance(row.answer, int) or row.answer.isdecimal()
    raw.check(number, where, f"answer {row.answer!r} is not a whole number")
    raw.check(split == "train" or row.issimple is not None, where, "issimple is missing")
    yield (
      f"{row.image_id} / {row.question_id}",
      {
        "image": raw.image(folder, file, f"{where}: image"),
        "image_id": row.image_id,
        "image_source": row.data_source,
        "question": row.question,
        "question_id": row.question_id,
        "answer": int(row.answer),
        "issimple": -1 if split == "train" else int(row.issimple),
      },
    )


def _files(part: None, split: str) -> list[str]:
  folders = _FOLDERS if split == "train" else _FOLDERS[:2]
  return [f"{split}.json", *(f"{folder}/?" for folder in folders)]


DATA = base.DataSet(
  name="tallyqa",
  about="simple and complex counting questions",
  source=(
    "github.com/manoja328/TallyQA_dataset, Visual Genome (images.zip, images2.zip) and"
    " cocodataset.org (images of 2014)"
  ),
  features={
    "image": base.Image(),
    "image_id": "int32",
    "image_source": str,
    "question": str,
    "question_id": "int32",
    "answer": "int32",
    "issimple": "int32",
  },
  splits={"train": 249_318, "test": 38_589},
  files=_files,
  rows=_rows,
)
