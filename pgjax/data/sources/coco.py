"""What is in a COCO file: images with boxes, and perhaps masks?

dict(name="coco", fname="data/train.json", images="data/train", classes=["cat", "dog"]) gives for
each image

  image          its bytes                     prefix    "detect cat ; dog", all classes, always
  boxes          y0, x0, y1, x1 as shares      suffix    the answer, objects in the file's order
  labels         the class of each box         classes   "cat ; dog"
  areas          pixels, as the file says      crowd_boxes, crowd_labels   regions marked iscrowd
  segmentations  as the file has them, or None id, image_id, file_name, width, height

`images` is the folder of the images (else the file's own), `classes` which classes are asked for,
and in which order (else all of the file's); `start` and `stop` take only these images. Two splits
must be asked the same, so give `classes` where a file may lack some. Images without objects stay:
their answer is empty. `dropped` counts what is left out: boxes without area, other classes.
"""

import collections
import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pgjax.data import images, locations
from pgjax.data.sources import files
from pgjax.errors import UserError

log = logging.getLogger("pgjax")


class Coco:
  """One example for each image of the file, in its order."""

  def __init__(self, fname, images=None, classes=None, split=None, start=None, stop=None):
    """Reads the whole file."""
    del split  # A file is its own split.
    self.fname = os.path.expanduser(fname)
    self.root = os.path.abspath(os.path.expanduser(images or os.path.dirname(self.fname)))
    content = self._read()
    names = self._class_names(content)
    self.classes = self._asked_for(classes, names, content)
    of_image = self._objects(content, names)
    self._rows = [self._row(entry, of_image) for entry in content["images"]][start:stop]
    if not self._rows:
      raise UserError(f"{self.fname} has no images{self._window(start, stop)}.")
    self._paths = [files.inside(self.root, r["file_name"], self.where(i), "images")
                   for i, r in enumerate(self._rows)]  # fmt: skip
    self.dropped: dict[str, int] = collections.Counter()
    for row in self._rows:
      self.dropped.update(row.pop("dropped"))
    if self.dropped:
      counted = ", ".join(f"{count} {why}" for why, count in sorted(self.dropped.items()))
      kept = sum(len(row["boxes"]) for row in self._rows)
      log.warning("%s: %d boxes; left out: %s.", self.fname, kept, counted)

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
    """File, image id and image."""
    return f"{self.fname}, image {self._rows[i]['image_id']} ({self._rows[i]['file_name']})"

  def check_images(self):
    """Raises for the first image that is not there; looks once into each folder."""
    present = files.Present(self.root)
    for i, path in enumerate(self._paths):
      present.check(path, self.where(i))

  def _window(self, start, stop):
    return "" if start is None and stop is None else f" from {start or 0} to {stop}"

  def _read(self) -> Mapping[str, Any]:
    try:
      content = json.loads(pathlib.Path(self.fname).read_bytes())
    except OSError as error:
      raise UserError(f"{self.fname} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
      raise UserError(f"{self.fname} is not JSON ({error}).") from None
    parts = ("images", "annotations", "categories")
    lists = isinstance(content, dict) and all(
      isinstance(content.get(part), list) and all(isinstance(e, dict) for e in content[part])
      for part in parts
    )
    if not lists:
      raise UserError(
        f"{self.fname} is not a COCO file: it must be an object with lists of objects,"
        f" {', '.join(parts)}; for one example a line use name='jsonl'."
      )
    return content

  def _class_names(self, content) -> dict[Any, str]:
    """Class of each category id."""
    names = {}
    for category in content["categories"]:
      try:
        names[category["id"]] = locations.checked_label(category["name"])
      except KeyError as error:
        raise UserError(f"{self.fname}: a category has no {error}: {category}.") from None
      except UserError as error:
        raise UserError(f"{self.fname}: {error}.") from None
    return names

  def _asked_for(self, classes, names, content) -> tuple[str, ...]:
    """All classes but groups: no annotation has them, and other categories lie below them."""
    if classes is not None:
      asked = (classes,) if isinstance(classes, str) else tuple(classes)
      if unknown := [c for c in asked if c not in names.values()]:
        raise UserError(f"{self.fname} has no class {unknown}; it has {list(names.values())}.")
      return asked
    used = {names.get(a.get("category_id")) for a in content["annotations"]}
    above = {c.get("supercategory") for c in content["categories"]}
    return tuple(dict.fromkeys(n for n in names.values() if n in used or n not in above))

  def _objects(self, content, names) -> dict[Any, list[Mapping[str, Any]]]:
    """The annotations of each image, with their class."""
    of_image = {entry.get("id"): [] for entry in content["images"]}
    for a in content["annotations"]:
      where = f"{self.fname}, annotation {a.get('id')}"
      if a.get("category_id") not in names:
        raise UserError(f"{where}: there is no category {a.get('category_id')!r}.")
      if a.get("image_id") not in of_image:
        raise UserError(f"{where}: there is no image {a.get('image_id')!r}.")
      if not _is_box(a.get("bbox")):
        raise UserError(f"{where}: bbox is {a.get('bbox')!r}, not [x, y, width, height].")
      of_image[a["image_id"]].append(dict(a, label=names[a["category_id"]]))
    return of_image

  def _row(self, entry, of_image) -> dict[str, Any]:
    name, size = entry.get("file_name"), (entry.get("width"), entry.get("height"))
    where = f"{self.fname}, image {entry.get('id')!r}"
    if not isinstance(name, str) or not name:
      raise UserError(f"{where}: file_name is {name!r}, not the name of a file.")
    whole = all(isinstance(n, int) and n > 0 for n in size)
    if not whole or size[0] * size[1] > images.MAX_PIXELS:
      raise UserError(
        f"{where}: width and height are {size[0]} x {size[1]}; boxes need them, as whole numbers"
        f" with up to {images.MAX_PIXELS:,} pixels."
      )
    facts = dict(id=str(entry.get("id")), image_id=entry.get("id"), file_name=name)
    width, height = size
    return facts | dict(width=width, height=height) | self._columns(of_image[entry["id"]], size)

  def _columns(self, annotations: Sequence[Mapping[str, Any]], size) -> dict[str, Any]:
    """The objects as columns, and how many were dropped for what."""
    names = ("boxes", "labels", "areas", "segmentations", "crowd_boxes", "crowd_labels")
    columns: dict[str, Any] = {name: [] for name in names}
    dropped = collections.Counter()
    for a in annotations:
      box = locations.to_normalised(a["bbox"], "coco", width=size[0], height=size[1])
      if a["label"] not in self.classes:
        dropped["of other classes"] += 1
      elif not locations.has_area(box):
        dropped["without area"] += 1
      elif a.get("iscrowd"):
        columns["crowd_boxes"].append(list(box))
        columns["crowd_labels"].append(a["label"])
      else:
        columns["boxes"].append(list(box))
        columns["labels"].append(a["label"])
        columns["areas"].append(a.get("area", a["bbox"][2] * a["bbox"][3]))
        columns["segmentations"].append(a.get("segmentation") or None)
    return columns | dict(dropped=dropped)


def _is_box(box) -> bool:
  numbers = isinstance(box, list) and all(
    isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in box
  )
  return numbers and len(box) == 4
