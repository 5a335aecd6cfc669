"""Examples of images with boxes, and possibly masks, whatever file they come from.

Each image is one example:

  image          its bytes                     prefix    "detect cat ; dog", always all classes
  boxes          y0, x0, y1, x1 as shares      suffix    the answer, objects in the file's order
  labels         the class of each box         classes   "cat ; dog"
  areas          pixels, from the file         crowd_boxes, crowd_labels   regions marked iscrowd
  segmentations  from the file, or None        id, image_id, file_name, width, height

The answer for an image without objects is empty. `_without_area` has the boxes that are omitted for
that.
"""

import collections
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from pgjax.data import images, locations
from pgjax.data.sources import coco_file, files
from pgjax.errors import UserError, naming

log = logging.getLogger("pgjax")

_MAX_NAMED = 5  # Classes that a message lists.


class Annotated:
  """One example for each image, in order; `dropped` counts boxes without area and other classes.

  file: the content; root: the folder of its images, which the config's `field` sets. classes: those
  of the prompt (default: all in the file). classes_from: the file or folder of the training data,
  read by `read_classes`, whose classes are asked for instead, in its order: splits need the same
  prompt.
  """

  own_columns = frozenset({"_without_area"})  # Allowed by loader.py, read by notes.py.

  def __init__(
    self,
    file: coco_file.File,
    fname: str,
    root: str,
    *,
    classes=None,
    classes_from=None,
    read_classes: Callable[[str], coco_file.Classes],
    start=None,
    stop=None,
    field="images",
    omitted: Mapping[str, int] | None = None,
  ):
    self.fname, self.root = fname, os.path.abspath(os.path.expanduser(root))
    self.classes = self._prompted(file, classes, classes_from, read_classes)
    self._entries = file.images[start:stop]
    if not self._entries:
      window = "" if start is None and stop is None else f" from {start or 0} to {stop}"
      raise UserError(f"{self.fname} has no images{window}.")
    named = ((entry.file_name, self.where(i)) for i, entry in enumerate(self._entries))
    self.read_as: list[str] = []
    self._paths = files.locate(self.root, named, self.fname, field=field, read_as=self.read_as)
    self._check_repeated()
    self.dropped: dict[str, int] = collections.Counter(omitted or {})
    self._rows = [self._row(i) for i in range(len(self._entries))]
    named = {o.label for entry in self._entries for o in entry.objects}
    self._other_classes = sorted(named - set(self.classes))
    self._entries = [entry._replace(objects=[]) for entry in self._entries]  # They are in the rows.
    self.notes = [
      f"{name!r} is the name of several categories, which are one class"
      for name in file.classes.merged
      if name in self.classes
    ]
    if not any(row["boxes"] for row in self._rows):
      self.notes.append("no image has an object, so every right answer is empty")
    self._log()

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
    entry = self._entries[i]
    return entry.where or f"{self.fname}, image {entry.id} ({entry.file_name})"

  @property
  def omitted(self) -> str:
    """What is dropped, such as "2 of other classes (dog), 1 without area"; empty if nothing is."""
    counted = [f"{count} {why}" for why, count in sorted(self.dropped.items())]
    others = self._other_classes
    named = ", ".join(others[:_MAX_NAMED]) + ", ..." * (len(others) > _MAX_NAMED)
    return ", ".join(f"{text} ({named})" if "classes" in text else text for text in counted)

  def check_images(self):
    """Raises for the first missing image."""
    files.check_present(self.root, ((path, self.where(i)) for i, path in enumerate(self._paths)))

  def _prompted(self, file, classes, classes_from, read_classes) -> tuple[str, ...]:
    """The classes of the prompt, whose names must be readable in an answer."""
    source, prompted, known = self.fname, file.classes.prompted, file.classes.all
    if classes is not None:
      prompted = (classes,) if isinstance(classes, str) else tuple(classes)
      if classes_from is None and (unknown := [name for name in prompted if name not in known]):
        raise UserError(f"{source} has no class {unknown}; it has {list(known)}.")
    elif classes_from is not None:
      source = os.path.expanduser(classes_from)
      try:
        prompted = read_classes(source).prompted
      except UserError as error:
        raise UserError(f"{error} It is classes_from; classes=[...] needs no file.") from None
    if not prompted:
      raise UserError(f"{source} has no classes, so a prompt has nothing to ask for: its list of"
                      " categories is empty.")  # fmt: skip
    with naming(source):
      try:
        return tuple(dict.fromkeys(map(locations.checked_label, prompted)))
      except UserError as error:
        raise UserError(f"the class: {error}; rename it, or leave it out with classes=.") from None

  def _check_repeated(self) -> None:
    """Raises if a file is listed twice with other objects: each would omit those of the other."""
    first: dict[str, int] = {}
    for i, path in enumerate(self._paths):
      k = first.setdefault(path, i)
      if k != i and self._objects(k) != self._objects(i):
        ids = " and ".join(repr(self._entries[n].id) for n in (k, i))
        raise UserError(
          f"{self.fname}: images {ids} are the same file {self._entries[i].file_name} with"
          " different objects, and each would teach a model to leave out those of the other; list"
          " the file once, with all its objects."
        )

  def _objects(self, i) -> collections.Counter:
    objects = self._entries[i].objects
    return collections.Counter((o.label, o.bbox) for o in objects if o.label in self.classes)

  def _row(self, i) -> dict[str, Any]:
    entry = self._entries[i]
    width, height = self._size(i)
    columns = dict(id=str(entry.id), image_id=entry.id, file_name=entry.file_name)
    columns |= dict(width=width, height=height, boxes=[], labels=[], areas=[], segmentations=[])
    columns |= dict(crowd_boxes=[], crowd_labels=[], _without_area=[])
    for o in entry.objects:
      box = locations.to_normalised(o.bbox, "coco", width=width, height=height)
      if o.label not in self.classes:
        self.dropped["of other classes"] += 1
      elif not locations.has_area(box):
        self.dropped["without area"] += 1
        columns["_without_area"].append(list(box))
      elif o.is_crowd:
        columns["crowd_boxes"].append(list(box))
        columns["crowd_labels"].append(o.label)
      else:
        columns["boxes"].append(list(box))
        columns["labels"].append(o.label)
        columns["areas"].append(o.area)
        columns["segmentations"].append(o.segmentation)
    return columns

  def _size(self, i) -> tuple[int, int]:
    """(width, height): the declared ones, else those of the image file."""
    entry = self._entries[i]
    width, height = entry.width, entry.height
    if width is None or height is None:
      with naming(f"{self.where(i)}: its width and height, which the file omits, are unknown"):
        width, height = images.size(files.file_bytes(self._paths[i]))
    if width * height > images.MAX_PIXELS:
      raise UserError(
        f"{self.fname}, image {entry.id!r}: width and height are {width} x {height}; an image may"
        f" have up to {images.MAX_PIXELS:,} pixels."
      )
    return width, height

  def _log(self) -> None:
    """Logs what is omitted or merged."""
    if self.dropped:
      boxes = sum(len(row["boxes"]) for row in self._rows)
      log.warning("%s: %d boxes; omitted: %s.", self.fname, boxes, self.omitted)
    for note in self.notes:
      log.warning("%s: %s.", self.fname, note)
