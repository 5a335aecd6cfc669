"""Which examples are in a folder of KITTI's text files?

dict(name="kitti", fname="data/training") reads label_2/*.txt and image_2/*.png (or labels/ and
images/). A line is a class, three numbers, and the box: left, top, right, bottom in pixels; the
rest, which is in three dimensions, is not read. Regions called DontCare are left out and counted.
annotated.py lists the columns.
"""

import os

from pgjax.data.sources import annotated, coco_file, files, image_folder
from pgjax.errors import UserError, cut, naming
from pgjax.formats import input_files

_FOLDERS = (("label_2", "image_2"), ("labels", "images"))
_IGNORED = "DontCare"
_BOX = slice(4, 8)


class Kitti(annotated.Annotated):
  """One example for each text file; classes are in alphabetical order."""

  def __init__(self, fname, split=None, classes=None, classes_from=None, start=None, stop=None):
    del split  # A folder is its own split.
    folder = os.path.abspath(os.path.expanduser(fname))
    labels, images = _folders(folder)
    names = image_folder.walk(images)
    stems = [os.path.splitext(name)[0] for name in names]
    image_folder.check_unique(stems, names)
    listed = dict(zip(stems, names, strict=True))
    entries, ignored = [], 0
    for name in image_folder.walk(labels, (".txt",)):
      path = os.path.join(labels, name)
      every = _objects(path)
      objects = [o for o in every if o.label != _IGNORED]
      ignored += len(every) - len(objects)
      stem = os.path.splitext(name)[0]
      file_name = listed.get(stem, f"{stem}.png")
      entries.append(coco_file.Image(stem, file_name, None, None, objects, path))
    omitted = image_folder.without("labels", names, (entry.file_name for entry in entries))
    super().__init__(
      coco_file.File(entries, _classes(entries)),
      folder,
      images,
      classes=classes,
      classes_from=classes_from,
      read_classes=read_classes,
      start=start,
      stop=stop,
      field="fname",
      omitted=omitted | ({f"called {_IGNORED}": ignored} if ignored else {}),
    )


def read_classes(fname: str) -> coco_file.Classes:
  """The classes of a folder."""
  labels, _ = _folders(os.path.abspath(os.path.expanduser(fname)))
  paths = (os.path.join(labels, name) for name in image_folder.walk(labels, (".txt",)))
  entries = [coco_file.Image("", "", None, None, _objects(path)) for path in paths]
  return _classes(entries)


def _folders(folder: str) -> tuple[str, str]:
  for pair in _FOLDERS:
    labels, images = (os.path.join(folder, name) for name in pair)
    if input_files.is_folder(labels) and input_files.is_folder(images):
      return labels, images
  wanted = " or ".join(" and ".join(pair) for pair in _FOLDERS)
  raise UserError(f"{folder} has no folders {wanted}, as a KITTI data set has.")


def _classes(entries) -> coco_file.Classes:
  labels = {o.label for entry in entries for o in entry.objects} - {_IGNORED}
  names = tuple(sorted(labels))
  return coco_file.Classes(names, names, ())


def _objects(path: str) -> list[coco_file.Object]:
  lines, objects = files.text(path, "a file of labels").splitlines(), []
  for number, line in enumerate(lines, 1):
    if words := line.split():
      with naming(f"{path}, line {number}"):
        objects.append(_object(words))
  return objects


def _object(words: list[str]) -> coco_file.Object:
  try:
    left, top, right, bottom = (float(word) for word in words[_BOX])
  except ValueError:
    raise UserError(
      f"{cut(' '.join(words))!r} is no class, three numbers, and left, top, right, bottom in pixels"
    ) from None
  if not all(abs(n) < 1e7 for n in (left, top, right, bottom)):
    raise UserError(f"{cut(' '.join(words))!r} has no numbers of pixels")
  box = (left, top, right - left, bottom - top)
  return coco_file.Object(words[0], box, box[2] * box[3], is_crowd=False, segmentation=None)
