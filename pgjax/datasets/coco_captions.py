"""COCO captions in Karpathy's splits, as TFDS's own coco_captions has them (arXiv:1412.2306).

  DIR/dataset_coco.json   DIR/train2014/*.jpg   DIR/val2014/*.jpg

No transfer uses `objects`, the boxes: without DIR/annotations/instances_{train,val}2014.json each
image has none.
"""

import logging

import numpy as np

from pgjax.datasets import base, coco_instances, karpathy

_log = logging.getLogger("pgjax.prepare")


def _instances(split: str) -> str:
  return f"annotations/instances_{'train' if split == 'train' else 'val'}2014.json"


def _rows(raw: base.Raw, part: None, split: str):
  images = [image for image in karpathy.images(raw) if image.split == split]
  boxes = _boxes(raw, split)
  for image in images:
    yield (
      image.filename,
      {
        "image": karpathy.file(raw, image),
        "image/filename": image.filename,
        "image/id": image.cocoid,
        "objects": boxes.get(image.cocoid, []),
        "captions": [{"text": s.raw, "id": s.sentid} for s in image.sentences],
      },
    )


def _boxes(raw: base.Raw, split: str) -> dict[int, list[dict]]:
  """The objects of each image; empty without the annotations, which are optional."""
  name = _instances(split)
  if not raw.path(name).exists():
    _log.info("coco_captions %s: no objects, which no transfer needs: no %s", split, name)
    return {}
  data = coco_instances.read(raw, name)
  objects: dict[int, list[dict]] = {}
  for image_id, instances in data.of_image.items():
    image = data.images[image_id]
    objects[image_id] = [
      {
        "id": one.id,
        "area": int(one.area),
        "bbox": np.array(coco_instances.relative(one.bbox, image)),
        "label": data.categories[one.category_id].name,
        "is_crowd": bool(one.iscrowd),
      }
      for one in instances
    ]
  return objects


DATA = base.DataSet(
  name="coco_captions",
  about="five captions an image (COCOcap)",
  source=karpathy.SOURCE,
  features={
    "image": base.Image("jpeg"),
    "image/filename": str,
    "image/id": "int64",
    "objects": [
      {
        "id": "int64",
        "area": "int64",
        "bbox": base.Box(),
        "label": base.Labels(coco_instances.CATEGORIES),
        "is_crowd": "bool",
      }
    ],
    "captions": [{"text": str, "id": "int64"}],
  },
  splits={"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000},
  files=lambda part, split: [karpathy.FILE, "train2014/" if split == "train" else "val2014/"],
  rows=_rows,
  version="1.1.0",
)
