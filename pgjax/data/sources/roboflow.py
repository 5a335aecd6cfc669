"""Which source reads a folder as Roboflow downloads it?

dict(name="roboflow", fname="MyProject-1", split="train"): COCO, PaliGemma, JSONL (also OpenAI's),
YOLO and Pascal VOC, recognised by their files. Splits are called train, valid and test; the classes
of boxes are always those of train, so that all splits have the same prompt.
"""

import os

from pgjax.data.sources import coco, jsonl, voc, yolo
from pgjax.data.sources.columns import check_fields
from pgjax.errors import UserError
from pgjax.formats import input_files

_SPLITS = {"val": "valid", "validation": "valid"}
_COCO = "_annotations.coco.json"


def open_folder(fname, split="train", **fields):
  """The source of a split; `fields` are those of the source, such as classes=."""
  root = os.path.abspath(os.path.expanduser(fname))
  split = _SPLITS.get(split, split)
  for reader in (_coco, _paligemma, _jsonl, _yolo, _voc):
    if (source := reader(root, split, fields)) is not None:
      return source
  present = [
    name for name in ("train", "valid", "test") if input_files.is_folder(os.path.join(root, name))
  ]
  raise UserError(
    f"{root} has no split {split!r} that Roboflow writes as COCO, PaliGemma, JSONL, YOLO or Pascal"
    f" VOC; its splits are {', '.join(present) or 'none'}."
  )


def _coco(root, split, fields):
  path, train = (os.path.join(root, name, _COCO) for name in (split, "train"))
  if not input_files.exists(path):
    return None
  if split != "train" and input_files.exists(train) and fields.get("classes") is None:
    fields = {"classes_from": train, **fields}
  return _opened(coco.Coco, path, fields)


def _paligemma(root, split, fields):
  for folder in ("dataset", ""):
    path = os.path.join(root, folder, f"_annotations.{split}.jsonl")
    if input_files.exists(path):
      return _opened(jsonl.Jsonl, path, fields)
  return None


def _jsonl(root, split, fields):
  for name in ("_annotations.jsonl", "annotations.jsonl"):
    if input_files.exists(path := os.path.join(root, split, name)):
      return _opened(jsonl.Jsonl, path, fields)
  return None


def _yolo(root, split, fields):
  path = os.path.join(root, "data.yaml")
  return _opened(yolo.Yolo, path, {"split": split, **fields}) if input_files.exists(path) else None


def _voc(root, split, fields):
  folder = os.path.join(root, split)
  if not any(n.endswith(".xml") for n in input_files.names(folder)):
    return None
  train = os.path.join(root, "train")
  if split != "train" and input_files.is_folder(train) and fields.get("classes") is None:
    fields = {"classes_from": train, **fields}
  return _opened(voc.Voc, folder, fields)


def _opened(make, path, fields):
  fields = {"fname": path, **fields}
  check_fields(make, "roboflow", fields)
  return make(**fields)
