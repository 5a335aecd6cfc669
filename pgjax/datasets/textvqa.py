"""TextVQA (arXiv:1904.08920): questions that need the text in a photograph of Open Images.

Open Images lists photographs that are rotated: they are turned back, and encoded again with quality
100. `rotation.csv` in train_images/ and test_images/ is that list (its columns ImageID, Rotation).
The images of val are in train_images/.
"""

import csv
import functools
import io

import msgspec

from pgjax.datasets import base

_FOLDERS = {"train": "train_images", "val": "train_images", "test": "test_images"}


class _Row(msgspec.Struct):
  question_id: base.Int32
  question: str
  image_id: str
  answers: list[str] = []


class _File(msgspec.Struct):
  data: list[_Row]


def _rows(raw: base.Raw, part: None, split: str):
  name, folder = f"TextVQA_0.5.1_{split}.json", _FOLDERS[split]
  rows = raw.json(name, _File).data
  rotations = _rotations(raw, f"{folder}/rotation.csv", {row.image_id for row in rows})
  for i, row in enumerate(rows):
    where = f"{name}, data {i}: image_id"
    degrees = rotations.get(row.image_id)
    raw.check(degrees is not None, where, f"{folder}/rotation.csv has no image {row.image_id!r}")
    edit = functools.partial(_turned, degrees // 90) if degrees else None
    yield (
      row.question_id,
      {
        "image/id": row.question_id,
        "image_filepath": f"{folder}/{row.image_id}.jpg",
        "image": raw.image(folder, f"{row.image_id}.jpg", where, edit),
        "question_id": row.question_id,
        "question": row.question,
        "answers": row.answers,
      },
    )


def _rotations(raw: base.Raw, name: str, images: set[str]) -> dict[str, int]:
  """{image: degrees to turn it counter-clockwise}, of those of the file that are asked for."""
  reader = csv.DictReader(io.StringIO(raw.text(name)))
  turns = {}
  missing = {"ImageID", "Rotation"} - set(reader.fieldnames or ())
  raw.check(not missing, name, f"the columns {sorted(missing)} are missing")
  for row in reader:
    if row["ImageID"] not in images:
      continue
    value = row["Rotation"] or "0"
    whole = value.removesuffix(".0")
    where = f"{name}, line {reader.line_num}"
    known = whole in ("0", "90", "180", "270")
    raw.check(known, where, f"Rotation {value!r} is not 0, 90, 180 or 270")
    turns[row["ImageID"]] = int(whole)
  return turns


def _turned(quarters: int, data: bytes) -> bytes:
  """The JPEG turned counter-clockwise, with the pixels that TensorFlow's ops give."""
  import numpy as np
  import PIL.Image

  with PIL.Image.open(io.BytesIO(data)) as image:
    pixels = np.ascontiguousarray(np.rot90(_pixels(data, image), quarters))
  out = io.BytesIO()
  PIL.Image.fromarray(pixels).save(out, format="JPEG", quality=100)
  return out.getvalue()


def _pixels(data: bytes, image):
  """uint8 [H, W, 3], or [H, W] of a grey image, decoded with the fast DCT of TensorFlow."""
  import numpy as np
  import simplejpeg

  if image.mode == "RGB":
    return simplejpeg.decode_jpeg(data, "RGB", fastdct=True)
  if image.mode == "L":
    return simplejpeg.decode_jpeg(data, "GRAY", fastdct=True)[:, :, 0]
  return np.asarray(image.convert("RGB"))


DATA = base.DataSet(
  name="textvqa",
  about="questions that need the text in a photograph",
  source=(
    "textvqa.org/dataset (0.5.1), and the image lists with rotations of Open Images (2018_04) on"
    " storage.googleapis.com/openimages/web, each as rotation.csv in its folder"
  ),
  version="1.0.1",
  features={
    "image/id": "int32",
    "image_filepath": str,
    "image": base.Image("jpeg"),
    "question_id": "int32",
    "question": str,
    "answers": [str],
  },
  splits={"train": 34_602, "val": 5_000, "test": 5_734},
  files=lambda part, split: [
    f"TextVQA_0.5.1_{split}.json",
    f"{_FOLDERS[split]}/",
    f"{_FOLDERS[split]}/rotation.csv",
  ],
  rows=_rows,
)
