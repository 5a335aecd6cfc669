"""RSVQA-LR (arXiv:2003.07333): questions about satellite images (Sentinel-2, 256 x 256).

"rsvqa_lr/nonum" has no questions for a count; in "rsvqa_lr/all" the counts are ranges.
"""

import functools
import io
from collections.abc import Callable, Iterator

import msgspec

from pgjax.datasets import base
from pgjax.errors import UserError

_IMAGES = "Images_LR"


class _Question(msgspec.Struct):  # Only the active ones have all fields.
  id: base.Int32
  active: bool
  type: str | None = None
  question: str | None = None
  img_id: int | None = None
  answers_ids: list[int] | None = None


class _Answer(msgspec.Struct):
  id: int
  active: bool
  question_id: int | None = None
  answer: str | None = None


class _Questions(msgspec.Struct):
  questions: list[_Question]


class _Answers(msgspec.Struct):
  answers: list[_Answer]


def files(prefix: str, split: str) -> tuple[str, str]:
  """Questions and answers."""
  return f"{prefix}_split_{split}_questions.json", f"{prefix}_split_{split}_answers.json"


def active(raw: base.Raw, prefix: str, split: str) -> Iterator[tuple[str, _Question, _Answer]]:
  """(where, question, answer) of the rows that are in use, of RSVQA-LR and -HR."""
  names = files(prefix, split)
  questions = raw.json(names[0], _Questions).questions
  answers = raw.json(names[1], _Answers).answers
  counts = len(questions), len(answers)
  raw.check(counts[0] == counts[1], names[0], f"{counts[0]} questions and {counts[1]} answers")
  for i, (asked, answer) in enumerate(zip(questions, answers, strict=True)):
    where = f"{names[0]}, question {i}"
    raw.check(asked.active == answer.active, where, f"{names[1]} has another value of active")
    if not asked.active:
      continue
    fields = asked.type, asked.question, asked.img_id, asked.answers_ids, answer.answer
    raw.check(None not in fields, where, "a field of this question or its answer is missing")
    fit = asked.answers_ids[:1] == [answer.id] and asked.id == answer.question_id
    raw.check(fit, where, f"answer {i} of {names[1]} is to another question")
    yield where, asked, answer


def row(asked: _Question, answer: _Answer, image: base.File, name: str, binned: Callable):
  """(key, example)."""
  return asked.id, {
    "question_id": asked.id,
    "filename": name,
    "image": image,
    "question": asked.question,
    "question_type": asked.type,
    "answers": [binned(answer.answer, asked.type)],
    "raw_answers": [answer.answer],
  }


FEATURES = {
  "question_id": "int32",
  "filename": str,
  "image": base.Image(),
  "question": str,
  "question_type": str,
  "answers": [str],
  "raw_answers": [str],
}


def _rows(raw: base.Raw, part: str, split: str):
  for where, asked, answer in active(raw, "LR", split):
    if part == "nonum" and asked.type == "count":
      continue
    name = f"{asked.img_id}.tif"
    image = raw.image(_IMAGES, name, f"{where}: img_id", functools.partial(_to_png, name))
    if asked.type == "count":
      raw.check(answer.answer.isdecimal(), where, f"the answer {answer.answer!r} is not a count")
    yield row(asked, answer, image, name, _binned)


def _binned(answer: str, kind: str) -> str:
  if kind != "count":
    return answer
  count = int(answer)
  if count == 0:
    return "0"
  for most, text in ((10, "1 and 10"), (100, "11 and 100"), (1000, "101 and 1000")):
    if count <= most:
      return f"between {text}"
  return "more than 1000"


def _to_png(name: str, data: bytes) -> bytes:
  """An 8-bit TIFF as PNG, pixel for pixel."""
  import PIL.Image

  with PIL.Image.open(io.BytesIO(data)) as image:
    if image.mode not in ("RGB", "L"):
      raise UserError(f"{name} is a TIFF of mode {image.mode}, not 8-bit RGB.")
    out = io.BytesIO()
    image.save(out, format="PNG")
  return out.getvalue()


DATA = base.DataSet(
  name="rsvqa_lr",
  about="RSVQA-LR: questions about satellite images",
  source="zenodo.org/records/6344334",
  version="1.0.2",
  features=FEATURES,
  parts={
    "nonum": {"train": 39_441, "val": 6_782, "test": 6_782},
    "all": {"train": 57_223, "val": 10_005, "test": 10_004},
  },
  files=lambda part, split: [*files("LR", split), f"{_IMAGES}/"],
  rows=_rows,
)
