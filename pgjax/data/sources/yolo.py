"""Which examples are in a YOLO data set: data.yaml, folders of images, and a .txt beside each?

dict(name="yolo", fname="data/data.yaml", split="train"): a line of a .txt is a class and either its
box (centre x, centre y, width, height) or its outline (x, y, x, y ...) as shares of the image. An
image without a .txt, or with an empty one, has no objects. Labels are in the folder labels/ that
is beside images/, or in the images' own. annotated.py lists the columns.
"""

import collections
import os
import re
from typing import Any

import yaml

from pgjax.data.sources import annotated, coco_file, files, image_folder
from pgjax.errors import UserError, cut, naming
from pgjax.formats import input_files

SPLITS = {"valid": "val", "validation": "val"}  # Other names of a split.
_MAX_BYTES = 16 << 20  # Of a label file.
_MAX_YAML_BYTES = 1 << 20
_SHARE_LIMIT = 2  # Numbers beyond are pixels.
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_LABELS = ("classes.txt", "obj.names.txt", "train.txt", "val.txt", "test.txt", "README.txt")
_ROUNDING = 1.5e-6  # Of a share with six decimals.


class Yolo(annotated.Annotated):
  """One example for each image of a split, in the order of the names of the files.

  root: the folder that all images are in (default: that of data.yaml). names: the classes, where
  data.yaml has none, or `fname` is a folder of images without it.
  """

  def __init__(
    self,
    fname,
    split="train",
    root=None,
    names=None,
    classes=None,
    classes_from=None,
    start=None,
    stop=None,
  ):
    fname = os.path.expanduser(fname)
    path = _yaml_path(fname)
    has_yaml = not input_files.is_folder(fname) or input_files.exists(path)
    root = os.path.abspath(os.path.expanduser(root or os.path.dirname(path)))
    self._labelled = 0
    with naming(path):
      content = _read_yaml(path) if has_yaml else {}
      classes_of = _names(content, names)
      found = _images_of(content, split, root)
      listed = found.names
    entries = self._entries_of(listed[start:stop], root, classes_of)
    if entries and not self._labelled:
      raise UserError(
        f"{path}: none of the {len(entries):,} images of split {split!r} has a label file, such as"
        f" {_label_path(os.path.join(root, entries[0].file_name))}."
      )
    unlabelled = len(entries) - self._labelled
    all_classes = coco_file.Classes(classes_of, classes_of, ())
    super().__init__(
      coco_file.File(entries, all_classes),
      path,
      root,
      classes=classes,
      classes_from=classes_from,
      read_classes=read_classes,
      field="root",
    )
    notes = [f"left out are images {found.left_out}"] if found.unread else []
    if unlabelled:
      notes.append(f"{unlabelled:,} of {len(entries):,} images have no label file, so no object")
    if orphans := _without_image(root, listed):
      notes.append(f"{len(orphans):,} label files have no image, such as {orphans[0]}")
    for note in notes:
      files.log.warning("%s: %s.", path, note)
    self.notes += notes

  def _entries_of(self, listed, root, names) -> list[coco_file.Image]:
    paths = [os.path.join(root, name) for name in listed]
    sizes = image_folder.sizes(paths, paths)
    entries = []
    present = files.present(map(_label_path, paths))
    image_folder.check_unique(map(_label_path, paths), listed)
    for name, path, (width, height) in zip(listed, paths, sizes, strict=True):
      label_path, objects = _label_path(path), []
      if label_path in present:
        self._labelled += 1
        objects = _objects(label_path, names, width, height)
      where = f"{label_path} (image {name})"
      entries.append(coco_file.Image(name, name, width, height, objects, where))
    return entries


def read_classes(fname: str) -> coco_file.Classes:
  """The classes of data.yaml."""
  path = _yaml_path(os.path.expanduser(fname))
  with naming(path):
    names = _names(_read_yaml(path), None)
  return coco_file.Classes(names, names, ())


def _yaml_path(fname: str) -> str:
  """data.yaml itself, or that of a folder."""
  if not input_files.is_folder(fname):
    return fname
  listed = [n for n in sorted(input_files.names(fname)) if n.endswith((".yaml", ".yml"))]
  if len(listed) > 1 and "data.yaml" not in listed:
    raise UserError(f"{fname} has several YAML files, {cut(', '.join(listed))}; name one of them.")
  return os.path.join(fname, listed[0] if len(listed) == 1 else "data.yaml")


class _Loader(yaml.SafeLoader):
  """Refuses a key that is given twice, of which YAML would silently take the last."""

  def construct_mapping(self, node, deep=False):
    keys: set[Any] = set()
    for node_of_key, _ in node.value:
      key = self.construct_object(node_of_key, deep=True)
      if not isinstance(key, str | int | float):
        raise UserError(
          f"line {node.start_mark.line + 1}: a key is a {type(key).__name__}, no text"
        )
      if key in keys:
        raise UserError(f"line {node.start_mark.line + 1}: {key!r} is given twice")
      keys.add(key)
    return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> dict[str, Any]:
  text = files.text(path, "the description of a YOLO data set", most=_MAX_YAML_BYTES)
  try:
    content = yaml.load(text, _Loader)
  except UserError:
    raise
  except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
    raise UserError(f"this is not YAML ({cut(' '.join(str(error).split()))})") from None
  if not isinstance(content, dict):
    raise UserError("a YOLO data set is described by fields such as train:, val: and names:")
  if "kpt_shape" in content:
    raise UserError("the labels are key points (kpt_shape), which are not read")
  return content


def _names(content: dict[str, Any], given) -> tuple[str, ...]:
  names = given if given is not None else content.get("names")
  if isinstance(names, dict):
    if set(names) != set(range(len(names))):
      raise UserError(f"names: has the numbers {cut(repr(list(names)))}, not 0 to {len(names) - 1}")
    names = [names[i] for i in range(len(names))]
  if not isinstance(names, list | tuple) or not names:
    raise UserError("there are no names of classes (names:); give them with names=[...]")
  for i, name in enumerate(names):
    if isinstance(name, bool) or not isinstance(name, str | int | float):
      shown = name if isinstance(name, bool) else f"a {type(name).__name__}"
      raise UserError(f"names: class {i} is {shown}, no text; write it in quotes, such as 'yes'")
    if isinstance(name, str) and _SURROGATE.search(name):
      raise UserError(
        f"names: class {i}, {cut(ascii(name))}, has half of a surrogate pair; remove it"
      )
  texts = tuple(" ".join(str(name).split()) for name in names)
  if repeated := [name for name, count in collections.Counter(texts).items() if count > 1]:
    raise UserError(f"two classes have the same name, {repeated[0]!r}; rename one of them")
  return texts


def _images_of(content: dict[str, Any], split: str, root: str) -> image_folder.Listing:
  """The images of a split, relative to `root`."""
  splits = {SPLITS.get(key, key): value for key, value in content.items()}
  key = SPLITS.get(split, split)
  value = splits.get(key)
  if value is None and content:
    known = [name for name in ("train", "val", "test") if splits.get(name)]
    raise UserError(f"there is no split {split!r}; it has {', '.join(known) or 'none'}")
  base = _base(content.get("path"), root)
  listed, unread = {}, []
  for entry in value if isinstance(value, list) else [value or "."]:
    if not isinstance(entry, str):
      raise UserError(f"{split}: a {type(entry).__name__} is no path")
    found = _listed(entry, base, root)
    listed |= dict.fromkeys(found.names)
    unread += found.unread
  if not listed:
    raise UserError(f"split {split!r} has no images in its folders")
  return image_folder.Listing(list(listed), unread)


def _base(path: Any, root: str) -> str:
  """The folder that paths of data.yaml are relative to: `path:` if it is below root, else root."""
  base = input_files.below(root, path) if isinstance(path, str) else None
  return base if base is not None and input_files.is_folder(base) else root


def _listed(entry: str, base: str, root: str) -> image_folder.Listing:
  """The images of an entry: a folder, or a text file of names."""
  entry = entry.replace("\\", "/")
  here = input_files.below(root, os.path.join(base, entry))
  if (here is None or not input_files.exists(here)) and entry.startswith(
    "../"
  ):  # As Roboflow writes.
    here = input_files.below(root, os.path.join(base, entry.removeprefix("../")))
  if here is None:
    raise UserError(
      f"{cut(repr(entry))} is outside of {root}; set root= to a folder that has all images"
    )
  if not here.endswith(".txt"):
    if not input_files.is_folder(here):
      raise UserError(f"{cut(repr(entry))} is no folder in {root}")
    found = image_folder.listing(here)
    return image_folder.Listing(
      *([os.path.relpath(os.path.join(here, name), root) for name in names] for names in found)
    )
  lines = files.text(here, "a list of images").splitlines()
  named = [
    (os.path.join(os.path.dirname(here), line.strip()), f"{here}, line {n}")
    for n, line in enumerate(lines, 1)
    if line.strip()
  ]
  located = files.locate(root, named, here, field="root")
  files.check_present(root, zip(located, (where for _, where in named), strict=True))
  return image_folder.Listing([os.path.relpath(one, root) for one in located], [])


def _without_image(root: str, listed: list[str]) -> list[str]:
  """The label files beside those of these images that are of no image there."""
  orphans = []
  for folder in sorted({os.path.dirname(os.path.join(root, name)) for name in listed}):
    labels = os.path.dirname(_label_path(os.path.join(folder, "a")))
    stems = {os.path.splitext(n)[0] for n in input_files.names(folder) if image_folder.is_image(n)}
    for name in sorted(input_files.names(labels)):
      stem, ending = os.path.splitext(name)
      if ending == ".txt" and stem not in stems and name not in _NO_LABELS:
        orphans.append(os.path.join(labels, name))
  return orphans


def _label_path(image: str) -> str:
  before, _, after = image.rpartition(f"{os.sep}images{os.sep}")
  stem = os.path.splitext(after)[0] + ".txt"
  return os.path.join(before, "labels", stem) if before else os.path.splitext(image)[0] + ".txt"


def _objects(path: str, names: tuple[str, ...], width: int, height: int) -> list[coco_file.Object]:
  text, objects = files.text(path, "a file of labels", most=_MAX_BYTES), []
  for number, line in enumerate(text.splitlines(), 1):
    if line.strip():
      with naming(f"{path}, line {number}"):
        objects.append(_object(line.split(), names, width, height))
  return objects


def _object(words: list[str], names, width: int, height: int) -> coco_file.Object:
  try:
    kind, *shares = (float(word) for word in words)
  except ValueError:
    raise UserError(f"{cut(' '.join(words))!r} are not numbers") from None
  if not 0 <= kind < len(names) or kind != int(kind):
    raise UserError(f"there is no class {words[0]}; data.yaml names 0 to {len(names) - 1}")
  outline = len(shares) >= 6 and len(shares) % 2 == 0
  if len(shares) != 4 and not outline:
    raise UserError(
      f"it has {len(words)} numbers; a box is a class and 4 numbers, an outline a class and x, y"
      " of at least three points"
    )
  if not all(-_SHARE_LIMIT <= share <= _SHARE_LIMIT for share in shares):
    raise UserError(
      f"{cut(' '.join(words))!r} are no shares of the image, from 0 to 1, but pixels or something"
      " else"
    )
  sides = (width, height) * (len(shares) // 2)
  if outline:
    points = [_pixel(share * side, side) for share, side in zip(shares, sides, strict=True)]
    xs, ys = points[::2], points[1::2]
    box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    return coco_file.Object(names[int(kind)], box, box[2] * box[3], is_crowd=False,
                            segmentation=[points])  # fmt: skip
  x, y, w, h = shares
  left, right = (_pixel((x + sign * w / 2) * width, width) for sign in (-1, 1))
  top, bottom = (_pixel((y + sign * h / 2) * height, height) for sign in (-1, 1))
  box = (left, top, right - left, bottom - top)
  return coco_file.Object(names[int(kind)], box, box[2] * box[3], is_crowd=False, segmentation=None)


def _pixel(value: float, side: int) -> float:
  """The whole pixel that a share with six decimals was written for, if there is one."""
  nearest = float(round(value))
  return nearest if abs(value - nearest) <= _ROUNDING * side else value
