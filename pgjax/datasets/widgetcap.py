"""Widget Captioning (arXiv:2010.04295): what a button or icon of an app does.

  DIR/widget_captions.csv   DIR/{train,dev,test}.txt
  DIR/combined/*.jpg   DIR/combined/*.json        (RICO: screens and their view trees)

The box of a widget is in the view tree, in units of a screen of 2,560 pixels height.
"""

import contextlib
import functools
import io
from typing import Optional

import msgspec
import numpy as np
import PIL.Image

from pgjax.datasets import base, tables
from pgjax.datasets.dropped import Dropped
from pgjax.formats import input_files, typed_json

_CAPTIONS = "widget_captions.csv"
_HEIGHT = 2560  # Of the screens in the view trees.
_HEADER_BYTES = 1 << 16  # Mostly enough for a JPEG's size; not behind a large profile.


class _Node(msgspec.Struct):
  bounds: tuple[float, float, float, float] | None = None
  children: list[Optional["_Node"]] | None = None


class _Activity(msgspec.Struct):
  root: _Node | None = None


class _View(msgspec.Struct):
  activity: _Activity | None = None


def _rows(raw: base.Raw, part: None, split: str):
  screens = {text for _, text in tables.lines(raw, f"{split}.txt")}
  columns = ("screenId", "nodeId", "captions")
  with Dropped(DATA.name, part, split) as dropped:
    for line, row in tables.rows(raw, _CAPTIONS, columns):
      if row["screenId"] not in screens:
        continue
      key = f"{row['screenId']}_{row['nodeId']}"
      where = f"{_CAPTIONS}, line {line}"
      image = raw.image("combined", f"{row['screenId']}.jpg", where)
      size = _size(image.path)
      tree = raw.image("combined", f"{row['screenId']}.json", where).path
      node = _find(_tree(tree), row["nodeId"])
      if node is None or node.bounds is None:
        dropped.add("widgets that are not in the view tree of their screen", key)
        continue
      # What writes the rows reports an image that is missing or damaged, and never uses this size.
      box = _box(node.bounds, *(size or (1, 1)))
      if size and box is None:
        dropped.add("widgets whose box is not on the screen", key)
        continue
      yield key, _example(row, image, box, size or (0, 0))


def _example(row, image, box, size):
  width, height = size
  return {
    "image/id": f"{row['screenId']}_{row['nodeId']}",
    "image/filename": f"{row['screenId']}.jpg",
    "image": image,
    "texts": row["captions"].split("|"),
    "bbox": box,
    "screen_id": row["screenId"],
    "node_id": row["nodeId"],
    "height": height,
    "width": width,
  }


def _box(bounds, width, height) -> np.ndarray | None:
  """ymin, xmin, ymax, xmax in [0, 1]; None if it is not on the screen."""
  xmin, ymin, xmax, ymax = (edge * height / _HEIGHT for edge in bounds)
  box = ymin / height, xmin / width, ymax / height, xmax / width
  inside = min(box) >= 0 and max(box) <= 1 and box[0] <= box[2] and box[1] <= box[3]
  return np.array(box) if inside else None


def _find(view: _View, node_id: str) -> _Node | None:
  """The node of 0.1.3: child 3 of child 1 of the root; None without it."""
  node = view.activity.root if view.activity else None
  for index in node_id.split(".")[1:]:
    children = node.children if node else None
    if not children or not (index.isascii() and index.isdigit()) or int(index) >= len(children):
      return None
    node = children[int(index)]
  return node


@functools.lru_cache(maxsize=8)  # The rows of a screen follow each other.
def _tree(path: str) -> _View:
  return typed_json.read(path, _View)


@functools.lru_cache(maxsize=8)
def _size(path: str) -> tuple[int, int] | None:
  """(width, height) of an image; None if it cannot be read."""
  for read in (lambda: input_files.head(path, _HEADER_BYTES), lambda: input_files.read(path)):
    # PIL raises many types.
    with contextlib.suppress(Exception), PIL.Image.open(io.BytesIO(read())) as image:
      return image.size
  return None


DATA = base.DataSet(
  name="widgetcap",
  about="what the buttons and icons of apps do (Widget Captioning)",
  source=(
    "github.com/google-research-datasets/widget-caption (CSV, lists of split/)"
    " and RICO (unique_uis.tar.gz)"
  ),
  features={
    "image/id": str,
    "image/filename": str,
    "image": base.Image("jpeg"),
    "texts": [str],
    "bbox": base.Box(),
    "screen_id": str,
    "node_id": str,
    "height": "int32",
    "width": "int32",
  },
  splits={"train": 41_221, "dev": 3_483, "test": 3_621},
  files=lambda part, split: [_CAPTIONS, f"{split}.txt", "combined/"],
  rows=_rows,
)
