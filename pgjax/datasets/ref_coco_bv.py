"""RefCOCO, RefCOCO+ and RefCOCOg: masks and boxes of objects that sentences refer to.

(arXiv:1608.00272, arXiv:1511.02283) The download of the authors, with images of COCO 2017:

  DIR/annotations/instances_train2017.json   DIR/train2017/*.jpg
  DIR/refcoco/refs(unc).p   DIR/refcoco+/refs(unc).p   DIR/refcocog/refs(umd).p

A split has one row an image, with all objects; split_flat has one row a sentence.
refcocox_combined joins the three; its train has no image of a val or test split.
"""

import functools
import os

import msgspec
import numpy as np

from pgjax.datasets import base, coco_instances
from pgjax.datasets.dropped import Dropped
from pgjax.formats import plain_pickle, typed_json

_COCO = "annotations/instances_train2017.json"
_LICENSES = (
  "Attribution-NonCommercial-ShareAlike License",
  "Attribution-NonCommercial License",
  "Attribution-NonCommercial-NoDerivs License",
  "Attribution License",
  "Attribution-ShareAlike License",
  "Attribution-NoDerivs License",
  "No known copyright restrictions",
  "United States Government Work",
)
_REFCOCOG, _REFCOCO, _PLUS = "refcocog/refs(umd).p", "refcoco/refs(unc).p", "refcoco+/refs(unc).p"
_FILES = {
  "refcocox_combined": (_REFCOCOG, _REFCOCO, _PLUS),
  "refcoco_unc": (_REFCOCO,),
  "refcocoplus_unc": (_PLUS,),
  "refcocog_umd": (_REFCOCOG,),
}
_TESTS = ("test", "testA", "testB")  # Of the combined test split.


class _Sentence(msgspec.Struct):
  sent_id: base.Int64
  sent: str


class _Ref(msgspec.Struct):
  image_id: base.Int64
  ann_id: base.Int64
  split: str
  sentences: list[_Sentence]


def _rows(raw: base.Raw, part: str, split: str):
  coco_instances.pycocotools()  # Fails here, not after an hour.
  data = coco_instances.read(raw, _COCO)
  flat, split = split.endswith("_flat"), split.removesuffix("_flat")
  refs = _chosen([ref for name in _FILES[part] for ref in _refs(raw, name)], part, split)
  images = {ref.image_id for ref in refs}
  sentences: dict[int, list[dict]] = {}
  for ref in refs:
    said = sentences.setdefault(ref.ann_id, [])
    said += [{"id": sentence.sent_id, "sentence": sentence.sent} for sentence in ref.sentences]
  with Dropped(DATA.name, part, f"{split}_flat" if flat else split) as dropped:
    for image_id in (known for known in data.images if known in images):
      objects = list(_objects(data, image_id, sentences))
      if flat:
        yield from _flat(raw, data, image_id, objects)
      elif objects:
        yield image_id, _example(raw, data, image_id, objects)
    for ann_id in sentences:  # What remains was not found.
      dropped.add(f"objects of sentences that {_COCO} does not have", f"ann_id {ann_id}")


def _chosen(refs: list[_Ref], part: str, split: str) -> list[_Ref]:
  """Those of a split."""
  if part != "refcocox_combined":
    return [ref for ref in refs if ref.split == {"validation": "val"}.get(split, split)]
  names = {"validation": ("val",), "test": _TESTS}.get(split, (split,))
  held_out = {ref.image_id for ref in refs if ref.split != "train"} if split == "train" else ()
  return [ref for ref in refs if ref.split in names and ref.image_id not in held_out]


def _objects(data, image_id, sentences):
  """The referred objects of an image; takes their sentences out of `sentences`."""
  image = data.images[image_id]
  for one in data.of_image.get(image_id, ()):
    refs = sentences.pop(one.id, None)
    if not refs:
      continue
    category = data.categories[one.category_id]
    where = f"{_COCO}, annotation {one.id}"
    yield {
      "id": one.id,
      "mask": coco_instances.lazy_mask(one, image, where),
      "category": category.name,
      "supercategory": category.supercategory,
      "iscrowd": bool(one.iscrowd),
      "area": one.area,
      "bbox": np.array(coco_instances.relative(one.bbox, image)),
      "refs": refs,
    }


def _flat(raw, data, image_id, objects):
  for one in objects:
    for i, ref in enumerate(one["refs"]):
      key = f"{image_id}_{one['id']}_{i}"
      yield key, _example(raw, data, image_id, [{**one, "refs": [ref]}])


def _example(raw, data, image_id, objects):
  image, where = data.images[image_id], f"{_COCO}, image {image_id}"
  raw.check(1 <= image.license <= len(_LICENSES), where, f"its license is {image.license}")
  return {
    "id": image.id,
    "image": raw.image("train2017", image.file_name, where),
    "height": image.height,
    "width": image.width,
    "license": _LICENSES[image.license - 1],
    "file_name": image.file_name,
    "flickr_url": image.flickr_url,
    "coco_url": image.coco_url,
    "objects": objects,
  }


def _refs(raw: base.Raw, name: str) -> list[_Ref]:
  path = raw.path(name)
  info = path.stat()
  return _read_refs(os.fspath(path), info.st_mtime_ns, info.st_size)


@functools.lru_cache(maxsize=3)  # A pickle takes seconds, and every split needs it.
def _read_refs(path: str, time: int, size: int) -> list[_Ref]:
  return typed_json.check(plain_pickle.read(path), list[_Ref], path)


def _splits(**counts: tuple[int | None, int | None]) -> dict[str, int | None]:
  """{split: rows}, from images and sentences."""
  flat = {f"{split}_flat": sentences for split, (_, sentences) in counts.items()}
  return {split: images for split, (images, _) in counts.items()} | flat


DATA = base.DataSet(
  name="ref_coco_bv",
  about="segments of objects that sentences refer to (RefCOCO, RefCOCO+, RefCOCOg)",
  source="github.com/lichengunc/refer (refcoco.zip, refcoco+.zip, refcocog.zip) and COCO 2017",
  features={
    "id": "int32",
    "image": base.Image("jpeg"),
    "height": "int32",
    "width": "int32",
    "license": base.Labels(_LICENSES),
    "file_name": str,
    "flickr_url": str,
    "coco_url": str,
    "objects": [
      {
        "id": "int64",
        "area": "float32",
        "bbox": base.Box(),
        "mask": base.Image("png"),
        "category": base.Labels(coco_instances.CATEGORIES),
        "supercategory": base.Labels(coco_instances.SUPERCATEGORIES),
        "iscrowd": "bool",
        "refs": [{"id": "int32", "sentence": str}],
      }
    ],
  },
  parts={
    "refcocox_combined": _splits(train=(None, None), validation=(None, None), test=(None, None)),
    "refcoco_unc": _splits(
      train=(16_994, 120_624), validation=(1_500, 10_834), testA=(750, 5_657), testB=(750, 5_095)
    ),
    "refcocoplus_unc": _splits(
      train=(16_992, 120_191), validation=(1_500, 10_758), testA=(750, 5_726), testB=(750, 4_889)
    ),
    "refcocog_umd": _splits(train=(21_899, 80_512), validation=(1_300, 4_896), test=(2_600, 9_602)),
  },
  files=lambda part, split: [*_FILES[part], _COCO, "train2017/"],
  rows=_rows,
  version="1.4.0",
)
