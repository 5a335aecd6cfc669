"""Which source does `input.data` or an evaluator name?"""

from collections.abc import Mapping

from pgjax.data.sources import (
  class_folders,
  coco,
  coco_captions,
  csv,
  easy_vqa,
  huggingface,
  jsonl,
  kitti,
  labelme,
  parquet,
  remote,
  roboflow,
  tfds,
  video,
  voc,
  webdataset,
  yolo,
)
from pgjax.data.sources.columns import check_fields, unused_split
from pgjax.errors import UserError

# A source has len, [i] (an example), texts(i) (without its image) and where(i) (for messages), and
# may have check_images(), sample(i, seed) for what it draws at random, and sentences on the data:
# `notes` (doubts), `omitted` (what is left out), `read_as` (names and columns that are read as
# others). Any other name is that of a TFDS data set.
SOURCES = {
  "jsonl": jsonl.Jsonl,
  "bv:jsonl": jsonl.Jsonl,  # big_vision's name for it.
  "json": jsonl.Jsonl,
  "llava": jsonl.Jsonl,
  "chat": jsonl.Jsonl,
  "csv": csv.Csv,
  "parquet": parquet.Parquet,
  "hf": huggingface.HuggingFace,
  "webdataset": webdataset.WebDataset,
  "folder": class_folders.ClassFolders,
  "coco": coco.Coco,
  "coco_captions": coco_captions.CocoCaptions,
  "yolo": yolo.Yolo,
  "voc": voc.Voc,
  "kitti": kitti.Kitti,
  "labelme": labelme.LabelMe,
  "roboflow": roboflow.open_folder,
  "easy_vqa": easy_vqa.EasyVqa,
  "video": video.Video,
  "<add_your_data_loader_here>": video.Video,  # In big_vision's configs.
}
_ALSO_TFDS = ("coco_captions", "voc", "kitti")  # Without fname they are TFDS data sets.
_OWN_ORDER = ("coco", "easy_vqa", "bv:jsonl")
# Their file or folder is its own split; big_vision's configs have a `split` there all the same.
_ONE_SPLIT = {"jsonl", "json", "llava", "chat", "csv", "webdataset", "coco", "coco_captions",
              "kitti", "labelme"}  # fmt: skip
_HUB = "hf:"  # Before the name of a data set on the Hugging Face hub.


def open(spec: Mapping, *, check_images: bool = True):
  """The source of a `data` entry of a config; by default checks that all its images exist."""
  fields = dict(spec)
  name = fields.pop("name", None)
  if not isinstance(name, str):
    names = ", ".join(map(repr, SOURCES))
    raise UserError(f"data={fields!r} has no name; it is {names} or a TFDS name.")
  if name.startswith(_HUB):
    name, fields = "hf", {"fname": name.removeprefix(_HUB), **fields}
  is_tfds = _is_tfds(name, fields)
  make, fields = (tfds.Tfds, {"name": name, **fields}) if is_tfds else (SOURCES[name], fields)
  check_fields(make, name, fields)
  source = make(**(fields if is_tfds else remote.downloaded(fields)))
  one_split = name in _ONE_SPLIT and not is_tfds
  if one_split and (unused := unused_split(name, fields.get("split"), fields["fname"])):
    source.notes = [*getattr(source, "notes", ()), *unused]
  if check_images and hasattr(source, "check_images"):
    source.check_images()
  return source


def _is_tfds(name: str, fields: Mapping) -> bool:
  return name not in SOURCES or (name in _ALSO_TFDS and "fname" not in fields)


def order_name(name: str, fields: Mapping | None = None) -> str:
  """The name whose hash seeds the order of a data set: one for all formats of rows.

  So the same rows in another format are the same batches. Without `fields`, those of its entry in
  a config, a name of both a format and a TFDS data set is the format's.
  """
  is_file = name in SOURCES or name.startswith(_HUB)
  if fields is not None and _is_tfds(name, fields):
    is_file = name.startswith(_HUB)
  return "jsonl" if is_file and name not in _OWN_ORDER else name
