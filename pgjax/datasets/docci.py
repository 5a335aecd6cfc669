"""DOCCI (arXiv:2404.19753): long descriptions of photos, one each.

DIR/docci_descriptions.jsonlines ({"example_id", "split", "image_file", "description"} in each line)
DIR/images/*.jpg
"""

import msgspec

from pgjax.datasets import base

_FILE = "docci_descriptions.jsonlines"


class _Line(msgspec.Struct):
  example_id: str
  split: str
  image_file: base.Name
  description: str


def _rows(raw: base.Raw, part: None, split: str):
  for number, line in raw.json_lines(_FILE, _Line):
    if line.split == split:
      image = raw.image("images", line.image_file, f"{_FILE}, line {number}: image_file")
      texts = {"captions": [line.description], "image/id": line.example_id}
      yield line.example_id, {"image": image, **texts}


DATA = base.DataSet(
  name="docci",
  about="long descriptions of photos (DOCCI)",
  source="google.github.io/docci (docci_descriptions.jsonlines and docci_images.tar.gz)",
  features={"image": base.Image("jpeg"), "image/id": str, "captions": [str]},
  splits={"train": 9_647, "test": 5_000, "qual_dev": 100, "qual_test": 100},
  files=lambda part, split: [_FILE, "images/"],
  rows=_rows,
)
