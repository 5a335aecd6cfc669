"""ST-VQA (arXiv:1905.13648), task 3: questions whose answer is written in the image.

The data has no validation split; big_vision takes the questions of some training images, 23,446 to
train and 2,628 to validate, and its list of images is not public. --val_ids=FILE names such a list
(a `file_path` of train_task_3.json in each line); without it every image whose SHA-256 is in the
lowest 10.1% is in val, which gives about as many questions, but not the same ones.
"""

import hashlib
import logging
import pathlib

import msgspec

from pgjax.datasets import base
from pgjax.errors import UserError
from pgjax.formats import input_files, typed_json

_VAL_SHARE = 0.101
_log = logging.getLogger("pgjax.prepare")


class _Row(msgspec.Struct):
  question_id: base.Int32
  question: str
  file_path: base.Name
  answers: list[str] = []


class _File(msgspec.Struct):
  data: list[_Row]


def _file(split: str) -> str:
  return "test_task_3.json" if split == "test" else "train_task_3.json"


def _rows(raw: base.Raw, part: None, split: str):
  name = _file(split)
  rows = raw.json(name, _File).data
  val = None if split == "test" else _val_images(raw, {row.file_path for row in rows}, split)
  for i, row in enumerate(rows):
    if val is not None and (row.file_path in val) != (split == "val"):
      continue
    yield (
      row.question_id,
      {
        "question_id": row.question_id,
        "filename": row.file_path,
        "image": _image(raw, split, row.file_path, f"{name}, data {i}: file_path"),
        "question": row.question,
        "answers": row.answers,
      },
    )


def _image(raw: base.Raw, split: str, path: str, where: str) -> base.File:
  if path.startswith("coco-text/"):  # COCO's own files have a higher resolution.
    return raw.image("train2014", path.removeprefix("coco-text/"), where)
  return raw.image("test_task3_images" if split == "test" else "train_images", path, where)


def _val_images(raw: base.Raw, images: set[str], split: str) -> set[str]:
  if (listed := raw.options.get("val_ids")) is not None:
    return _listed(listed, images)
  if split == "val":
    _log.warning(
      "stvqa: big_vision's list of validation images is not public, so val has other images and "
      "its scores are not comparable; --val_ids=FILE takes a list."
    )
  return {image for image in images if _hash(image) < _VAL_SHARE}


def _hash(image: str) -> float:
  """A number in [0, 1) that depends on the name only."""
  return int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") / 2**64


def _listed(path: pathlib.Path, images: set[str]) -> set[str]:
  lines = typed_json.text(input_files.file_bytes(path), path).splitlines()
  listed = {line.strip() for line in lines if line.strip()}
  if strange := sorted(listed - images):
    raise UserError(
      f"--val_ids={path}: {len(strange)} of {len(listed)} lines are no file_path of "
      f"train_task_3.json, the first is {strange[0]!r}."
    )
  return listed


def _files(part: None, split: str) -> list[str]:
  images = "test_task3_images/" if split == "test" else "train_images/"
  return [_file(split), images, "train2014/?"]


DATA = base.DataSet(
  name="stvqa",
  about="ST-VQA: questions whose answer is written in the image",
  source="rrc.cvc.uab.es/?ch=11 (task 3) and cocodataset.org (train2014, for coco-text)",
  version="1.2.0",
  features={
    "question_id": "int32",
    "filename": str,
    "image": base.Image("jpeg"),
    "question": str,
    "answers": [str],
  },
  splits={"train": None, "val": None, "test": 4_070},
  files=_files,
  rows=_rows,
  options=("val_ids",),
)
