"""How often do two lines cross? Drawn here; each answer is 0, 1 or 2, equally often.

A blue and a red line go from left to right over three points with the same distances, as in the
line plots of BlindTest (arXiv:2407.06581), which large models often count wrong.
"""

import functools
import io
import itertools
import random

from pgjax.datasets import base

QUESTION = "how many times do the blue and red lines intersect?"
SIZE = 224  # Pixels.
_FINER = 2  # Drawn at this scale, so that edges are smooth.
_LEVELS = 12  # Heights of a point.
_MARGIN, _WIDTH = 16, 3  # Pixels.
_COLOURS = ("#1f4fd8", "#d82f1f")


def lines(rng: random.Random, crossings: int) -> tuple[list[int], list[int]]:
  """The heights of three points of each line, which cross as often and never touch at a point."""
  while True:
    blue, red = ([rng.randrange(_LEVELS) for _ in range(3)] for _ in range(2))
    above = [a - b for a, b in zip(blue, red, strict=True)]
    crossed = sum(a * b < 0 for a, b in itertools.pairwise(above))
    if 0 not in above and crossed == crossings:
      return blue, red


def _picture(blue: list[int], red: list[int]) -> bytes:
  from PIL import Image, ImageDraw

  side = SIZE * _FINER
  picture = Image.new("RGB", (side, side), "white")
  draw, room = ImageDraw.Draw(picture), SIZE - 2 * _MARGIN
  for heights, colour in zip((blue, red), _COLOURS, strict=True):
    points = [
      ((_MARGIN + room * i / 2) * _FINER, (_MARGIN + room * h / (_LEVELS - 1)) * _FINER)
      for i, h in enumerate(heights)
    ]
    draw.line(points, fill=colour, width=_WIDTH * _FINER, joint="curve")
  file = io.BytesIO()
  picture.reduce(_FINER).save(file, "png")
  return file.getvalue()


def _rows(raw: base.Raw, part: None, split: str):
  rng = random.Random(split)
  for i in range(DATA.splits[split]):
    blue, red = lines(rng, i % 3)
    image = functools.partial(_picture, blue, red)
    yield i, dict(image=image, question=QUESTION, answer=str(i % 3), question_id=i)


DATA = base.DataSet(
  name="intersections",
  about="how often two lines cross, drawn here; needs no --raw",
  source="this program",
  features=dict(image=base.Image("png"), question=str, answer=str, question_id="int64"),
  splits={"train": 6_000, "val": 300, "test": 1_500},
  files=lambda part, split: [],
  rows=_rows,
  needs_raw=False,
)
