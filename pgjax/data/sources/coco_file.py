"""What does a COCO file contain? Its images, objects and classes, checked.

Many tools write COCO files. What has one meaning is accepted: sizes such as 64.0, or none (read
from the image file), numbers as names of classes, ids as numbers or text, an outline without a
bbox. What has two meanings is an error that names both, such as two categories with one id.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from pgjax.data import masks
from pgjax.errors import UserError, naming
from pgjax.formats import typed_json
from pgjax.formats.typed_json import Number

MAX_NAMED = 10  # Categories that a message lists.

_Id = int | float | str


class _Image(msgspec.Struct):
  id: _Id
  file_name: typed_json.Text
  width: Number | None = None
  height: Number | None = None


class _Annotation(msgspec.Struct):
  image_id: _Id
  category_id: _Id
  bbox: list[Number] | None = None
  area: Number | None = None
  iscrowd: int | bool | None = None
  segmentation: Any = None  # Checked by data/masks.py when masks are used.


class _Category(msgspec.Struct):
  id: _Id
  name: str | int | float
  supercategory: Any = None


class _Content(msgspec.Struct):
  images: list[_Image]
  annotations: list[_Annotation]
  categories: list[_Category] = []


class _Usage(msgspec.Struct):
  category_id: _Id


class _ContentForClasses(msgspec.Struct):
  """The part of a file that its classes depend on; it is read much faster than the whole."""

  annotations: list[_Usage]
  categories: list[_Category] = []


class Object(NamedTuple):
  """One annotation of an image."""

  label: str
  bbox: tuple[float, float, float, float]  # x, y, width, height in pixels.
  area: float
  is_crowd: bool
  segmentation: Any  # As in the file; None without one.


class Image(NamedTuple):
  """One image and its objects; sizes are None where the file has none."""

  id: int | str
  file_name: str
  width: int | None
  height: int | None
  objects: list[Object]
  where: str = ""  # The beginning of an error, if not the file and the id.


class Classes(NamedTuple):
  """The classes of a file, by default those of its prompts."""

  all: tuple[str, ...]
  prompted: tuple[str, ...]  # All but groups, which have no annotations.
  merged: tuple[str, ...]  # Names that several annotated ids share.


class File(NamedTuple):
  """The content of a COCO file."""

  images: list[Image]
  classes: Classes


def read(fname: str) -> File:
  """Reads the whole file; raises UserError with the path of a mistake in it."""
  content = typed_json.read(fname, _Content)
  with naming(fname):
    names = _names(content.categories)
    images: dict[str, Image] = {}
    for i, entry in enumerate(content.images):
      sides = (_side(entry, name, i) for name in ("width", "height"))
      image = Image(entry.id, entry.file_name, *sides, [])
      if (other := images.setdefault(_key(entry.id), image)) is not image:
        raise UserError(
          f"$.images[{i}] ({entry.file_name}) and an earlier image ({other.file_name}) have the"
          f" same id {entry.id!r}, so an annotation cannot tell them apart; give each image its"
          " own id."
        )
    for i, annotation in enumerate(content.annotations):
      _add(annotation, f"$.annotations[{i}]", names, images)
    used = {_key(a.category_id) for a in content.annotations}
    return File(list(images.values()), _classes(content.categories, names, used))


def classes(fname: str) -> Classes:
  """Reads only the classes of a file."""
  content = typed_json.read(fname, _ContentForClasses)
  with naming(fname):
    used = {_key(a.category_id) for a in content.annotations}
    return _classes(content.categories, _names(content.categories), used)


def _key(value: int | float | str) -> str:
  """1, 1.0 and "1" are the same id."""
  return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _name(value: Any) -> str:
  return " ".join(str(value).split())


def _names(categories: Iterable[_Category]) -> dict[str, str]:
  """{id: name}; raises if an id has two names."""
  names: dict[str, str] = {}
  for i, category in enumerate(categories):
    name = _name(category.name)
    known = names.setdefault(_key(category.id), name)
    if known != name:
      raise UserError(
        f"$.categories[{i}]: {known!r} and {name!r} have the same id {category.id!r}, so an"
        " annotation cannot tell them apart; give each class its own id (files of two exports are"
        " joined by renumbering one of them)."
      )
  return names


def _classes(categories, names: dict[str, str], used: set[str]) -> Classes:
  groups = {_name(c.supercategory) for c in categories if _name(c.supercategory) != _name(c.name)}
  annotated = [name for key, name in names.items() if key in used]
  every = tuple(dict.fromkeys(names.values()))
  prompted = tuple(name for name in every if name in annotated or name not in groups)
  merged = tuple(name for name in every if annotated.count(name) > 1)
  return Classes(every, prompted, merged)


def _side(entry: _Image, name: str, i: int) -> int | None:
  """The width or height of an image; None (null, 0 or missing): unknown."""
  value = getattr(entry, name)
  if not value:
    return None
  if value < 0 or value != int(value):
    raise UserError(f"$.images[{i}].{name} is {value}; it must be a whole number of pixels.")
  return int(value)


def _add(a: _Annotation, where: str, names: dict[str, str], images: dict[str, Image]) -> None:
  """Adds the annotation to its image."""
  if (image := images.get(_key(a.image_id))) is None:
    raise UserError(f"{where}: there is no image {a.image_id!r} among the {len(images)} images.")
  if (label := names.get(_key(a.category_id))) is None:
    known = ", ".join(f"{key} ({name})" for key, name in list(names.items())[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    raise UserError(
      f"{where}: there is no category {a.category_id!r}, which an object of {image.file_name} has;"
      f" the categories are: {known or 'none'}{more}."
    )
  outline = _outline(a.segmentation)
  if a.bbox and len(a.bbox) != 4:
    raise UserError(
      f"{where}.bbox is {a.bbox}; expected `array` of length 4 (x, y, width, height)."
    )
  if not a.bbox and outline is None:
    raise UserError(
      f"{where}: an object of {image.file_name} has no bbox and no segmentation to compute it from."
    )
  if a.bbox:
    bbox = tuple(a.bbox)
  else:
    with naming(where):
      bbox = masks.bounds(outline)
  area = bbox[2] * bbox[3] if a.area is None else a.area
  image.objects.append(Object(label, bbox, area, bool(a.iscrowd), outline))


def _outline(segmentation: Any) -> Any:
  """The segmentation; None if it is empty, also if it is a list of nothing, [[]]."""
  empty = isinstance(segmentation, list) and not any(part != [] for part in segmentation)
  return None if empty else segmentation or None
