"""Captions of sprites: 16 x 16 figures of old video games, drawn here, each with its one caption.

"a green slime with a crown on a purple background": what, its colour, what it wears, and where. The
smallest data set of captions: every word of an answer can be checked in the picture.
"""

import functools
import io
import itertools
import random

from pgjax.datasets import base

SIZE = 16
SCALE = 8  # Pixels of the picture for one of the sprite.
COLOURS = {
  "red": (214, 48, 49), "green": (46, 164, 79), "blue": (49, 104, 214), "yellow": (240, 200, 40),
  "white": (245, 245, 245), "pink": (238, 120, 176),
}  # fmt: skip
BACKGROUNDS = {"black": (16, 16, 20), "purple": (92, 52, 140), "brown": (110, 74, 44)}
# The left half of each figure, which is mirrored: "#" is its colour, "o" an eye.
FIGURES = """
slime    ghost    robot    spider   bird
....#### ...##### ..###### #....### ....####
..###### ..###### ..#oo### .##.#### ...#o###
.####### ..#oo### ..###### ...#o### ...#####
.##oo### ..#oo### .....### ######## #..#####
.##oo### ..###### ######## ...##### ########
######## ..###### ##.##### .###.### .#######
######## ..###### ...##... #..##... ....####
.###.### ..##.##. ..###... ..#..... ....#...
"""
HATS = """
crown    hat
...#..#. ....####
...####. ....####
...##### ..######
"""  # Above a figure; the colour is always the same.
_HAT, _EYE = (250, 170, 30), (10, 10, 10)
_TOP = 4  # The row of the hat.


def _columns(table: str) -> dict[str, list[str]]:
  """{name: rows} of FIGURES or HATS."""
  names, *rows = (line.split() for line in table.strip().splitlines())
  return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def caption(figure: str, colour: str, hat: str, background: str) -> str:
  """The one caption of a sprite."""
  return f"a {colour} {figure}{f' with a {hat}' if hat else ''} on a {background} background"


def _picture(figure: str, colour: str, hat: str, background: str) -> bytes:
  from PIL import Image

  picture = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[background])
  paint = {"#": COLOURS[colour], "o": _EYE}
  hats = _columns(HATS) | {"": []}
  parts = ((_columns(FIGURES)[figure], _TOP + 3, paint), (hats[hat], _TOP, {"#": _HAT}))
  for rows, top, colours in parts:
    for y, half in enumerate(rows):
      for x, mark in enumerate(half + half[::-1]):
        if mark in colours:
          picture.putpixel((x, top + y), colours[mark])
  file = io.BytesIO()
  picture.resize((SIZE * SCALE,) * 2, Image.Resampling.NEAREST).save(file, "png")
  return file.getvalue()


def _rows(raw: base.Raw, part: None, split: str):
  names = (_columns(FIGURES), COLOURS, ("", *_columns(HATS)), BACKGROUNDS)
  sprites = list(itertools.product(*names))
  random.Random(0).shuffle(sprites)
  first, count = (0, DATA.splits["train"]) if split == "train" else (-DATA.splits["test"], None)
  for i, sprite in enumerate(sprites[first:count]):
    row = {"image": functools.partial(_picture, *sprite), "image/id": i}
    yield i, {**row, "captions": [caption(*sprite)]}


DATA = base.DataSet(
  name="sprites",
  about="captions of figures of old video games, drawn here; needs no --raw",
  source="this program",
  features={"image": base.Image("png"), "image/id": "int64", "captions": [str]},
  splits={"train": 230, "test": 40},
  files=lambda part, split: [],
  rows=_rows,
  needs_raw=False,
)
