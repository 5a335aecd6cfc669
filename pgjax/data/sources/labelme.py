"""Which examples are in a folder of LabelMe's JSON files?

dict(name="labelme", fname="data/train"): each JSON file has the objects of the image that its
imagePath names, rectangles and polygons; other shapes are left out and counted. annotated.py lists
the columns.
"""

import collections
import os
from typing import Any

import msgspec

from pgjax.data.sources import annotated, coco_file, image_folder
from pgjax.errors import UserError
from pgjax.formats import typed_json
from pgjax.formats.typed_json import Number

_POINTS = {"rectangle": 2, "polygon": 3}  # The least number of points.


class _Shape(msgspec.Struct):
  label: str
  points: list[tuple[Number, Number]]
  shape_type: str | None = "polygon"


class _Content(msgspec.Struct):
  shapes: list[_Shape]
  imagePath: typed_json.Text
  imageWidth: int | None = None
  imageHeight: int | None = None


class LabelMe(annotated.Annotated):
  """One example for each JSON file; classes are in alphabetical order."""

  def __init__(
    self, fname, split=None, images=None, classes=None, classes_from=None, start=None, stop=None
  ):
    del split  # A folder is its own split.
    folder = os.path.abspath(os.path.expanduser(fname))
    omitted: collections.Counter[str] = collections.Counter()
    root = os.path.abspath(os.path.expanduser(images)) if images else folder
    available = set(image_folder.walk(root))
    entries = [
      entry._replace(file_name=image_folder.nearest(available, entry.file_name, f"{entry.id}.json"))
      for entry in _entries(folder, omitted)
    ]
    if not entries:
      raise UserError(f"{folder} has no JSON files.")
    omitted.update(
      image_folder.without("a JSON file", available, (entry.file_name for entry in entries))
    )
    super().__init__(
      coco_file.File(entries, _classes(entries)),
      folder,
      root,
      classes=classes,
      classes_from=classes_from,
      read_classes=read_classes,
      start=start,
      stop=stop,
      omitted=omitted,
    )


def read_classes(fname: str) -> coco_file.Classes:
  """The classes of a folder."""
  folder = os.path.abspath(os.path.expanduser(fname))
  return _classes(_entries(folder, collections.Counter()))


def _classes(entries: list[coco_file.Image]) -> coco_file.Classes:
  names = tuple(sorted({o.label for entry in entries for o in entry.objects}))
  return coco_file.Classes(names, names, ())


def _entries(folder: str, omitted: collections.Counter) -> list[coco_file.Image]:
  entries = []
  for name in image_folder.walk(folder, (".json",)):
    path = os.path.join(folder, name)
    content = typed_json.read(path, _Content)
    objects = []
    for k, shape in enumerate(content.shapes):
      kind = shape.shape_type or "polygon"
      if kind not in _POINTS:
        omitted[f"of the shape {kind}"] += 1
      elif len(shape.points) < _POINTS[kind]:
        raise UserError(f"{path}: $.shapes[{k}] is a {kind} of {len(shape.points)} points.")
      else:
        objects.append(_object(shape, kind))
    stem = os.path.splitext(name)[0]
    entries.append(
      coco_file.Image(
        stem, content.imagePath, content.imageWidth, content.imageHeight, objects, path
      )
    )
  return entries


def _object(shape: _Shape, kind: str) -> coco_file.Object:
  xs, ys = zip(*shape.points, strict=True)
  box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
  outline: Any = [[n for point in shape.points for n in point]] if kind == "polygon" else None
  label = " ".join(shape.label.split())
  return coco_file.Object(label, box, box[2] * box[3], is_crowd=False, segmentation=outline)
