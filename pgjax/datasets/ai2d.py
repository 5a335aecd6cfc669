"""AI2D (arXiv:1603.07396): multiple-choice questions about diagrams from science books.

Questions whose choices are letters need them in the picture: the texts of the diagram are covered
by white boxes with the letters, in a font that is shrunk to fit (DM Sans, as in big_vision).
"""

import functools
import io
import threading

import msgspec

from pgjax.datasets import base

_FONT = "DMSans-Regular.ttf"
_LARGEST = 100  # Points.
_drawing = threading.Lock()  # A FreeType font is not made for several threads.


class _Question(msgspec.Struct):
  questionId: str
  correctAnswer: base.Int32
  answerTexts: list[str]
  abcLabel: bool


class _Questions(msgspec.Struct):
  imageName: base.Name
  questions: dict[str, _Question]


class _Label(msgspec.Struct):
  rectangle: tuple[tuple[float, float], tuple[float, float]]
  replacementText: str


class _Labels(msgspec.Struct):
  text: dict[str, _Label]


def _rows(raw: base.Raw, part: None, split: str):
  test = {line.strip() for line in raw.text("ai2d_test_ids.csv").splitlines()}
  for file in raw.names("ai2d/questions", ".json"):
    if (file.split(".")[0] in test) != (split == "test"):
      continue
    name = f"ai2d/questions/{file}"
    diagram = raw.json(name, _Questions)
    for question, row in diagram.questions.items():
      where = f"{name}, question {row.questionId}"
      count = len(row.answerTexts)
      raw.check(0 <= row.correctAnswer < count, where, f"correctAnswer is not one of {count}")
      yield (
        row.questionId,
        {
          "id": row.questionId,
          "question": question,
          "label": row.correctAnswer,
          "answer": row.answerTexts[row.correctAnswer],
          "possible_answers": row.answerTexts,
          "abc_label": row.abcLabel,
          "image_name": diagram.imageName,
          "image": _image(raw, file, diagram.imageName, where, labelled=row.abcLabel),
        },
      )


def _image(raw: base.Raw, file: str, name: str, where: str, *, labelled: bool) -> base.File:
  if not labelled:
    return raw.image("ai2d/images", name, where)
  labels = raw.json(f"ai2d/annotations/{file}", _Labels)
  edit = functools.partial(_with_letters, list(labels.text.values()), str(raw.path(_FONT)))
  return raw.image("ai2d/images", name, where, edit)


def _with_letters(labels: list[_Label], font: str, data: bytes) -> bytes:
  """The image as PNG, with a white box and its letter over each text."""
  import PIL.Image
  import PIL.ImageDraw

  with _drawing, PIL.Image.open(io.BytesIO(data)) as image:
    draw = PIL.ImageDraw.Draw(image)
    for label in labels:
      (left, top), (right, bottom) = label.rectangle
      draw.rectangle([(left, top), (right, bottom)], fill="white")
      size, width = _fitting(font, label.replacementText, right - left, bottom - top)
      place = (left + (right - left - width) // 2, top)
      draw.text(place, label.replacementText, fill="black", font=_font(font, size))
    out = io.BytesIO()
    image.save(out, format="PNG")
  return out.getvalue()


def _fitting(font: str, text: str, width: float, height: float) -> tuple[int, float]:
  """(the largest size at which a text fits, its width); size 1 where none does."""
  for size in range(_LARGEST, 0, -1):
    right, bottom = _extent(font, text, size)
    if right <= width and bottom <= height:
      break
  return size, right


@functools.lru_cache(maxsize=10_000)
def _extent(font: str, text: str, size: int) -> tuple[float, float]:
  return _font(font, size).getbbox(text)[2:]


@functools.lru_cache(maxsize=2 * _LARGEST)
def _font(path: str, size: int):
  import PIL.ImageFont

  return PIL.ImageFont.truetype(path, size=size)


DATA = base.DataSet(
  name="ai2d",
  about="multiple-choice questions about diagrams",
  source="allenai.org/data/diagrams (ai2d-all.zip, ai2d_test_ids.csv) and the DM Sans font",
  version="1.1.0",
  features={
    "id": str,
    "question": str,
    "label": "int32",
    "answer": str,
    "possible_answers": [str],
    "abc_label": "bool",
    "image_name": str,
    "image": base.Image("png"),
  },
  splits={"train": 12_413, "test": 3_088},
  files=lambda part, split: [
    "ai2d_test_ids.csv",
    "ai2d/questions/",
    "ai2d/annotations/",
    "ai2d/images/",
    _FONT,
  ],
  rows=_rows,
)
