"""The data sets that pgjax.prepare draws: is the answer what the picture shows?"""

import io
import itertools
import random
from fractions import Fraction

import numpy as np
from PIL import Image

from pgjax.datasets import base, intersections, sprites


def rows(data, split, count):
  found = data.rows(base.Raw("."), None, split)
  for key, row in itertools.islice(found, count):
    yield key, row, np.asarray(Image.open(io.BytesIO(row["image"]())).convert("RGB"))


def crossings(blue, red):
  """Points on both lines, from the equations of their pieces."""
  points = set()
  for i in range(2):
    rise = (blue[i + 1] - blue[i]) - (red[i + 1] - red[i])
    if rise and 0 <= (x := Fraction(red[i] - blue[i], rise)) <= 1:
      points.add(i + x)
  return len(points)


def test_lines_cross_as_often_as_the_answer_says():
  rng = random.Random(0)
  for wanted in (0, 1, 2) * 20:
    assert crossings(*intersections.lines(rng, wanted)) == wanted
  for _, row, pixels in rows(intersections.DATA, "val", 6):
    red, blue = ((pixels[..., c] > 180) & (pixels[..., 2 - c] < 80) for c in (0, 2))
    visible = red.any(axis=0) & blue.any(axis=0)  # Where they cross, red covers blue.
    assert visible.mean() > 0.6
    above = (red.argmax(axis=0) - blue.argmax(axis=0))[visible]
    signs = np.sign(above[abs(above) > 4])
    assert str(np.count_nonzero(np.diff(signs))) == row["answer"]
  answers = [row["answer"] for _, row in intersections.DATA.rows(base.Raw("."), None, "test")]
  assert {a: answers.count(a) for a in "012"} == dict.fromkeys("012", len(answers) // 3)


def test_every_word_of_a_caption_is_in_the_sprite():
  seen = {}
  for split, count in sprites.DATA.splits.items():
    for _, row, pixels in rows(sprites.DATA, split, count):
      (caption,) = row["captions"]
      _, colour, _, *rest = caption.split()
      assert (pixels == sprites.COLOURS[colour]).all(axis=-1).mean() > 0.1
      assert tuple(pixels[0, 0]) == sprites.BACKGROUNDS[rest[-2]]
      assert caption not in seen
      assert pixels.tobytes() not in seen.values()
      seen[caption] = pixels.tobytes()
  assert len(seen) == sum(sprites.DATA.splits.values())
