"""POPE (arXiv:2305.10355): is an object in the image? Three tests of 3,000 questions, on COCO."""

import functools
import re

import msgspec

from pgjax.datasets import base

_IMAGES = "images/val2014"
_AROUND = re.compile(r"Is there an? | in the image\?")


class _Row(msgspec.Struct):
  image: base.Name
  text: str
  label: str


def _file(kind: str) -> str:
  return f"pope/coco_pope_{kind}.json"  # JSON lines, in spite of its name.


def _rows(kind: str, raw: base.Raw, part: None, split: str):
  for i, (line, row) in enumerate(raw.json_lines(_file(kind), _Row)):
    yield (
      i,
      {
        "question_id": i,
        "image/filename": row.image,
        "image": raw.image(_IMAGES, row.image, f"{_file(kind)}, line {line}: image"),
        "question": row.text,
        "answer": row.label,
        "thing": _AROUND.sub("", row.text),
      },
    )


def _data(kind: str, count: int | None) -> base.DataSet:
  return base.DataSet(
    name=f"pope_{kind}",
    about=f"POPE: is an object in the image? Its {kind} test",
    source="github.com/AoiDragon/POPE (output/coco as pope/) and cocodataset.org (val2014)",
    features={
      "question_id": "int32",
      "image/filename": str,
      "image": base.Image("png"),
      "question": str,
      "answer": str,
      "thing": str,
    },
    splits={"test": count},
    files=lambda part, split: [_file(kind), f"{_IMAGES}/"],
    rows=functools.partial(_rows, kind),
  )


# The random test has 2,910 questions in an early release of the files, and 3,000 later.
DATA = [_data("random", None), _data("popular", 3_000), _data("adversarial", 3_000)]
