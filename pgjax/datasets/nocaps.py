"""nocaps (arXiv:1812.08658): captions of objects that COCO's captions do not have.

  DIR/nocaps_val_4500_captions.json    DIR/Images/validation/*.jpg
  DIR/nocaps_test_image_info.json      DIR/Images/test/*.jpg

The captions of test are not public: each image has the caption N/A.
"""

import msgspec

from pgjax.datasets import base

_FILES = {
  "val": ("nocaps_val_4500_captions.json", "Images/validation"),
  "test": ("nocaps_test_image_info.json", "Images/test"),
}


class _Caption(msgspec.Struct):
  image_id: base.Int64
  caption: str


class _Image(msgspec.Struct):
  id: base.Int64
  file_name: base.Name
  coco_url: str = ""


class _File(msgspec.Struct):
  images: list[_Image]
  annotations: list[_Caption] = []


def _rows(raw: base.Raw, part: None, split: str):
  name, folder = _FILES[split]
  data = raw.json(name, _File)
  captions: dict[int, list[str]] = {}
  for caption in data.annotations:
    captions.setdefault(caption.image_id, []).append(caption.caption)
  for i, image in enumerate(data.images):
    yield (
      image.id,
      {
        "image/id": image.id,
        "image_filepath": f"{folder}/{image.file_name}",
        "url": image.coco_url,
        "image": raw.image(folder, image.file_name, f"{name}, images, entry {i}: file_name"),
        "texts": captions.get(image.id) or ["N/A"],
      },
    )


DATA = base.DataSet(
  name="nocaps",
  about="ten captions an image, of objects new to COCO",
  source="nocaps.org (the JSON files) and Open Images V4 (validation.tar.gz, test.tar.gz)",
  features={
    "image/id": "int64",
    "image_filepath": str,
    "url": str,
    "image": base.Image("jpeg"),
    "texts": [str],
  },
  splits={"val": 4_500},
  extra_splits={"test": 10_600},
  files=lambda part, split: [_FILES[split][0], f"{_FILES[split][1]}/"],
  rows=_rows,
  lost_images=dict.fromkeys(("val", "test"), "as big_vision leaves out what it cannot read"),
)
