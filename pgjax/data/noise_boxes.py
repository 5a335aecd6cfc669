"""Which wrong boxes does a model learn to recognise?

As in Pix2Seq (arXiv:2109.10852, section 2.3) and PaliGemma 2 (arXiv:2412.03555, App. C): the answer
of every image is filled up to one number of objects with boxes that are labelled NOISE and whose
locations are not learned. When decoding, as many objects are generated and NOISE is forbidden, so
that the probability of an object's label says whether there is an object.
"""

import random
from collections.abc import Sequence

from pgjax.data import locations

NOISE = "<noise>"  # A label like others for the tokenizer.
_SHIFTED = 0.5  # Share of noise boxes that are real ones, moved and scaled.


def sample(boxes: Sequence[Sequence[float]], count: int, rng: random.Random) -> list[list[float]]:
  """`count` boxes y0, x0, y1, x1 as shares of the image: real ones altered, and random ones.

  Without real boxes all are random. Some may overlap with a real box, as repeated answers do.
  """
  result: list[list[float]] = []
  while len(result) < count:
    if boxes and rng.random() < _SHIFTED:
      y0, x0, y1, x1 = rng.choice(boxes)
      sides = [_altered(y0, y1, rng), _altered(x0, x1, rng)]
    else:
      sides = [_side(rng.random(), rng.random()) for _ in range(2)]
    (y0, y1), (x0, x1) = sides
    if locations.has_area((y0, x0, y1, x1)):
      result.append([y0, x0, y1, x1])
  return result


def _altered(start: float, end: float, rng: random.Random) -> tuple[float, float]:
  """A side moved by up to its length and scaled by up to a half."""
  length = end - start
  return _side((start + end) / 2 + rng.uniform(-1, 1) * length, rng.uniform(0.5, 1.5) * length)


def _side(centre: float, length: float) -> tuple[float, float]:
  """(start, end) inside the image."""
  return max(0.0, centre - length / 2), min(1.0, centre + length / 2)
