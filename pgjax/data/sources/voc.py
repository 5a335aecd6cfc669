"""Which examples are in a folder of Pascal VOC's XML files?

dict(name="voc", fname="VOC2012", split="train") reads VOC's own layout, Annotations, JPEGImages and
ImageSets/Main/train.txt; a folder with XML files beside the images (LabelImg, Roboflow) needs no
split, or `split` is its subfolder. Boxes are xmin, ymin, xmax, ymax in pixels, as they are written;
`one_based=True` counts the first pixel as 1, as VOC's own files do. annotated.py lists the columns.
"""

import os
from xml.etree import ElementTree

from pgjax.data.sources import annotated, coco_file, files, image_folder
from pgjax.errors import UserError, cut, naming
from pgjax.formats import input_files, xml_file

_SIDES = ("xmin", "ymin", "xmax", "ymax")


class Voc(annotated.Annotated):
  """One example for each XML file; classes are in alphabetical order, of all XML files there.

  skip_difficult: leaves out objects that are marked as difficult; they are counted.
  """

  def __init__(
    self,
    fname,
    split=None,
    images=None,
    classes=None,
    classes_from=None,
    start=None,
    stop=None,
    one_based=False,
    skip_difficult=False,
  ):
    folder = _Folder(os.path.abspath(os.path.expanduser(fname)), split)
    names = folder.of_split()
    if not names:
      raise UserError(f"{folder.xml} has no XML files" + f" of split {split!r}." * bool(split))
    root = os.path.abspath(os.path.expanduser(images)) if images else folder.images
    omitted: dict[str, int] = {}
    available, entries = set(image_folder.walk(root)), []
    for name in names[start:stop]:
      path = os.path.join(folder.xml, name)
      content = xml_file.read(path)
      with naming(path):
        entry = _entry(content, name, one_based)
        if skip_difficult:
          rest = [o for o in entry.objects if not o.is_crowd]
          if len(rest) < len(entry.objects):
            why = "marked as difficult"
            omitted[why] = omitted.get(why, 0) + len(entry.objects) - len(rest)
          entry = entry._replace(objects=rest)
      objects = [o._replace(is_crowd=False) for o in entry.objects]
      file_name = image_folder.nearest(available, entry.file_name, name)
      entries.append(entry._replace(objects=objects, file_name=file_name, where=path))
    if folder.is_whole and start is None and stop is None:
      used = (entry.file_name for entry in entries)
      omitted |= image_folder.without("an XML file", available, used)
    super().__init__(
      coco_file.File(entries, folder.classes()),
      folder.xml,
      root,
      classes=classes,
      classes_from=classes_from,
      read_classes=lambda path: _Folder(os.path.abspath(path), None).classes(),
      field="images",
      omitted=omitted,
    )


class _Folder:
  """Where XML files and images are."""

  def __init__(self, folder: str, split: str | None):
    self._split, self._lists = split, ""
    annotations = os.path.join(folder, "Annotations")
    if input_files.is_folder(annotations):
      self.xml, self.images = annotations, os.path.join(folder, "JPEGImages")
      self._lists = os.path.join(folder, "ImageSets", "Main")
      if not input_files.is_folder(self.images):
        self.images = folder
    else:
      if split is not None:
        folder = input_files.inside(folder, split, f"split={split!r}", what="folder")
      self.xml = self.images = folder
    if not input_files.is_folder(self.xml):
      raise UserError(f"{self.xml} is no folder.")

  @property
  def is_whole(self) -> bool:
    """Whether all XML files are read, not those of a list."""
    return self._split is None or not self._lists

  def of_split(self) -> list[str]:
    """The XML files of the split, relative to the folder."""
    if self.is_whole:
      return image_folder.walk(self.xml, (".xml",))
    path = os.path.join(self._lists, f"{self._split}.txt")
    lines = files.text(path, "a list of images").splitlines()
    names = [f"{line.split()[0]}.xml" for line in lines if line.strip()]
    for number, name in enumerate(names, 1):
      input_files.inside(self.xml, name, f"{path}, line {number}", what="file")
    return names

  def classes(self) -> coco_file.Classes:
    """The labels in all XML files, sorted."""
    labels: set[str] = set()
    for name in image_folder.walk(self.xml, (".xml",)):
      path = os.path.join(self.xml, name)
      root = xml_file.read(path)
      labels |= {_label(one, path) for one in root.iter("object")}
    names = tuple(sorted(labels))
    return coco_file.Classes(names, names, ())


def _entry(root: ElementTree.Element, name: str, one_based: bool) -> coco_file.Image:
  """`is_crowd` of an object is its mark as difficult here."""
  if root.tag != "annotation":
    raise UserError(f"its first element is <{cut(root.tag)}>, not VOC's <annotation>")
  size = [_number(root.findtext(f"size/{side}"), side) for side in ("width", "height")]
  width, height = (round(side) if side else None for side in size)
  objects = []
  for one in root.iter("object"):
    box = one.find("bndbox")
    if box is None:
      raise UserError(f"the object {_label(one, name)!r} has no <bndbox>")
    left, top, right, bottom = (_number(box.findtext(side), side, needed=True) for side in _SIDES)
    left, top = left - one_based, top - one_based
    bbox = (left, top, right - left, bottom - top)
    difficult = (one.findtext("difficult") or "0").strip() == "1"
    objects.append(
      coco_file.Object(_label(one, name), bbox, bbox[2] * bbox[3], difficult, segmentation=None)
    )
  file_name = (root.findtext("filename") or "").strip()
  stem = os.path.splitext(name)[0]
  return coco_file.Image(stem, file_name or stem, width, height, objects)


def _label(one: ElementTree.Element, where: str) -> str:
  label = " ".join((one.findtext("name") or "").split())
  if not label:
    raise UserError(f"{where}: an object has no <name>.")
  return label


def _number(text: str | None, name: str, *, needed: bool = False) -> float:
  if text is None and not needed:
    return 0
  try:
    value = float(text or "")
  except ValueError:
    value = float("nan")
  if not abs(value) < 1e7:
    raise UserError(f"<{name}> is {text!r:.60}, not a number of pixels")
  return value
