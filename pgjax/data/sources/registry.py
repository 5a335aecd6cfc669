"""Which source does `input.data` or an evaluator name?"""

import inspect
from collections.abc import Mapping

from pgjax.data.sources import coco, csv, easy_vqa, jsonl, tfds, video
from pgjax.errors import UserError

# A source has len, [i] (an example), texts(i) (without its image) and where(i) (for messages), and
# may have check_images(). Any other name is that of a TFDS data set.
SOURCES = {
  "jsonl": jsonl.Jsonl,
  "bv:jsonl": jsonl.Jsonl,  # big_vision's name for it.
  "json": jsonl.Jsonl,
  "csv": csv.Csv,
  "coco": coco.Coco,
  "easy_vqa": easy_vqa.EasyVqa,
  "video": video.Video,
  "<add_your_data_loader_here>": video.Video,  # In big_vision's configs.
}


def open(spec: Mapping, *, check_images: bool = True):
  """The source of a `data` entry of a config; by default checks that all its images exist."""
  fields = dict(spec)
  name = fields.pop("name", None)
  if not isinstance(name, str):
    names = ", ".join(map(repr, SOURCES))
    raise UserError(f"data={fields!r} has no name; it is {names} or a TFDS name.")
  fields = fields if name in SOURCES else {"name": name, **fields}
  make = SOURCES.get(name, tfds.Tfds)
  try:
    inspect.signature(make).bind(**fields)
  except TypeError as error:
    known = ", ".join(key for key in inspect.signature(make).parameters if key != "name")
    raise UserError(f"data='{name}': {error}; its fields are {known}.") from None
  source = make(**fields)
  if check_images and hasattr(source, "check_images"):
    source.check_images()
  return source
