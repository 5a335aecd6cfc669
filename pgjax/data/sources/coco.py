"""Which examples are in a COCO file of images with boxes, and possibly masks?

dict(name="coco", fname="data/train.json", images="data/train", classes=["cat", "dog"]) yields for
each image

  image          its bytes                     prefix    "detect cat ; dog", always all classes
  boxes          y0, x0, y1, x1 as shares      suffix    the answer, objects in the file's order
  labels         the class of each box         classes   "cat ; dog"
  areas          pixels, from the file         crowd_boxes, crowd_labels   regions marked iscrowd
  segmentations  from the file, or None        id, image_id, file_name, width, height

`images` is the folder of the images (default: the file's folder), `classes` the classes in the
prompt (default: all in the file), `start` and `stop` a range of images. Splits need the same
prompt, so set `classes` if a file may lack some. The answer for an image without objects is empty.
"""

import collections
import logging
import os
from typing import Annotated, Any

import msgspec

from pgjax.data import images, locations
from pgjax.data.sources import files
from pgjax.errors import UserError, naming
from pgjax.formats import typed_json
from pgjax.formats.typed_json import Number

log = logging.getLogger("pgjax")

_Side = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class _Image(msgspec.Struct):
  id: int | str
  file_name: typed_json.Text
  width: _Side
  height: _Side


class _Annotation(msgspec.Struct):
  image_id: int | str
  category_id: int | str
  bbox: tuple[Number, Number, Number, Number]  # x, y, width, height.
  area: Number | None = None
  iscrowd: int | bool | None = None
  segmentation: Any = None  # Checked by data/masks.py when masks are used.


class _Category(msgspec.Struct):
  id: int | str
  name: str
  supercategory: str | None = None


class _File(msgspec.Struct):
  images: list[_Image]
  annotations: list[_Annotation]
  categories: list[_Category]


class Coco:
  """One example for each image, in order; `dropped` counts boxes without area and other classes."""

  def __init__(self, fname, images=None, classes=None, split=None, start=None, stop=None):
    del split  # A file is its own split.
    self.fname = os.path.expanduser(fname)
    self.root = os.path.abspath(os.path.expanduser(images or os.path.dirname(self.fname)))
    content = typed_json.read(self.fname, _File)
    with naming(self.fname):
      names = {c.id: locations.checked_label(c.name) for c in content.categories}
    self.classes = self._prompted(classes, names, content)
    of_image = self._objects(content, names)
    self._rows = [self._row(entry, of_image) for entry in content.images][start:stop]
    if not self._rows:
      window = "" if start is None and stop is None else f" from {start or 0} to {stop}"
      raise UserError(f"{self.fname} has no images{window}.")
    named = ((row["file_name"], self.where(i)) for i, row in enumerate(self._rows))
    self._paths = files.locate(self.root, named, self.fname, field="images")
    self.dropped: dict[str, int] = collections.Counter()
    for row in self._rows:
      self.dropped.update(row.pop("dropped"))
    if self.dropped:
      counted = ", ".join(f"{count} {why}" for why, count in sorted(self.dropped.items()))
      boxes = sum(len(row["boxes"]) for row in self._rows)
      log.warning("%s: %d boxes; omitted: %s.", self.fname, boxes, counted)

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    return {**self.texts(i), "image": files.file_bytes(self._paths[i])}

  def texts(self, i):
    """The example without its image."""
    row = self._rows[i]
    classes = locations.SEPARATOR.join(self.classes)
    suffix = locations.detection_suffix(row["boxes"], row["labels"])
    return {**row, "classes": classes, "prefix": f"detect {classes}", "suffix": suffix}

  def where(self, i):
    """File, image id and image file."""
    return f"{self.fname}, image {self._rows[i]['image_id']} ({self._rows[i]['file_name']})"

  def check_images(self):
    """Raises for the first missing image."""
    files.check_present(self.root, ((path, self.where(i)) for i, path in enumerate(self._paths)))

  def _prompted(self, classes, names, content) -> tuple[str, ...]:
    """The classes of the prompt: by default all but groups, which have no annotations."""
    if classes is not None:
      classes = (classes,) if isinstance(classes, str) else tuple(classes)
      if unknown := [c for c in classes if c not in names.values()]:
        raise UserError(f"{self.fname} has no class {unknown}; it has {list(names.values())}.")
      return classes
    used = {names.get(a.category_id) for a in content.annotations}
    groups = {c.supercategory for c in content.categories}
    return tuple(dict.fromkeys(n for n in names.values() if n in used or n not in groups))

  def _objects(self, content, names) -> dict[int | str, list[tuple["_Annotation", str]]]:
    """The annotations of each image, with their class."""
    of_image = {entry.id: [] for entry in content.images}
    for i, a in enumerate(content.annotations):
      for field, known in (("category", names), ("image", of_image)):
        if (value := getattr(a, f"{field}_id")) not in known:
          raise UserError(f"{self.fname}, $.annotations[{i}]: there is no {field} {value!r}.")
      of_image[a.image_id].append((a, names[a.category_id]))
    return of_image

  def _row(self, entry, of_image) -> dict[str, Any]:
    width, height = entry.width, entry.height
    if width * height > images.MAX_PIXELS:
      raise UserError(
        f"{self.fname}, image {entry.id!r}: width and height are {width} x {height}; an image may"
        f" have up to {images.MAX_PIXELS:,} pixels."
      )
    columns = dict(id=str(entry.id), image_id=entry.id, file_name=entry.file_name)
    columns |= dict(width=width, height=height, boxes=[], labels=[], areas=[], segmentations=[])
    columns |= dict(crowd_boxes=[], crowd_labels=[])
    dropped = collections.Counter()
    for a, label in of_image[entry.id]:
      box = locations.to_normalised(a.bbox, "coco", width=width, height=height)
      if label not in self.classes:
        dropped["of other classes"] += 1
      elif not locations.has_area(box):
        dropped["without area"] += 1
      elif a.iscrowd:
        columns["crowd_boxes"].append(list(box))
        columns["crowd_labels"].append(label)
      else:
        columns["boxes"].append(list(box))
        columns["labels"].append(label)
        columns["areas"].append(a.bbox[2] * a.bbox[3] if a.area is None else a.area)
        columns["segmentations"].append(a.segmentation or None)
    return columns | dict(dropped=dropped)
