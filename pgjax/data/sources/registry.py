"""Opens the source that `input.data` or an evaluator names."""

import inspect
from collections.abc import Mapping

from pgjax.data.sources import coco, easy_vqa, jsonl, tfds
from pgjax.errors import UserError


def open(spec: Mapping, *, check_images: bool = True):
  """The source that a `data` entry of a config describes.

  A missing image file is told at once, unless the caller wants to find all of them by reading.
  """
  source = _opened(dict(spec))
  if check_images and isinstance(source, jsonl.Jsonl | coco.Coco):
    source.check_images()
  return source


def _opened(spec):
  name = spec.pop("name", None)
  if not isinstance(name, str):
    raise UserError(f"data={spec!r} has no name; it is 'jsonl', 'coco', 'easy_vqa' or a TFDS name.")
  if name in ("jsonl", "bv:jsonl"):
    return _call(jsonl.Jsonl, name, spec)
  if name == "coco":
    return _call(coco.Coco, name, spec)
  if name == "easy_vqa":
    return _call(easy_vqa.EasyVqa, name, spec)
  return _call(tfds.Tfds, name, {"name": name, **spec})


def _call(source, name, fields):
  try:
    inspect.signature(source).bind(**fields)
  except TypeError as error:
    known = ", ".join(key for key in inspect.signature(source).parameters if key != "name")
    raise UserError(f"data='{name}': {error}; its fields are {known}.") from None
  return source(**fields)
