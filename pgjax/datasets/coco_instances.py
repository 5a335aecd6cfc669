"""What does COCO's instances_*.json hold, and what are its masks, as pycocotools draws them?"""

import functools
import io
import os
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import PIL.Image
from msgspec import Meta

from pgjax.datasets import base
from pgjax.errors import UserError
from pgjax.formats import typed_json

# In the order of the file's `categories`, as TFDS numbers them.
CATEGORIES = (
  *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
  *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog"),
  *("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella"),
  *("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
  *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
  *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
  *("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
  *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote"),
  *("keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
  *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
SUPERCATEGORIES = (
  *("accessory", "animal", "appliance", "electronic", "food", "furniture", "indoor", "kitchen"),
  *("outdoor", "person", "sports", "vehicle"),
)


_Coordinate = Annotated[float, Meta(ge=-(2**20), le=2**20)]  # Time and memory grow with it.


class Image(msgspec.Struct):
  """One image."""

  id: base.Int64
  file_name: base.Name
  height: typed_json.Size
  width: typed_json.Size
  license: int = 0
  flickr_url: str = ""
  coco_url: str = ""


class Instance(msgspec.Struct):
  """One object; `bbox` is x, y, width, height in pixels."""

  id: base.Int64
  image_id: base.Int64
  category_id: int
  area: float
  bbox: tuple[float, float, float, float]
  iscrowd: int
  segmentation: msgspec.Raw = msgspec.Raw(b"[]")  # Decoded when its mask is drawn.


class Category(msgspec.Struct):
  """One kind of object."""

  id: int
  name: str
  supercategory: str


class _File(msgspec.Struct):
  images: list[Image]
  annotations: list[Instance]
  categories: list[Category]


class _Runs(msgspec.Struct):
  size: tuple[typed_json.Size, typed_json.Size]
  counts: list[typed_json.Count] | str


class Instances(NamedTuple):
  """A file by id, in the order of the file; instances of unknown images are left out."""

  images: dict[int, Image]
  of_image: dict[int, list[Instance]]
  categories: dict[int, Category]


def read(raw: base.Raw, name: str) -> Instances:
  """The content of a file."""
  path = raw.path(name)
  info = path.stat()
  return _read(os.fspath(path), info.st_mtime_ns, info.st_size)


@functools.lru_cache(maxsize=1)  # A file of 450 MB, which every split needs.
def _read(path: str, time: int, size: int) -> Instances:
  data = typed_json.read(path, _File)
  images = {image.id: image for image in data.images}
  categories = {category.id: category for category in data.categories}
  of_image: dict[int, list[Instance]] = {}
  for instance in data.annotations:
    if instance.image_id not in images:
      continue
    if instance.category_id not in categories:
      raise UserError(
        f"{path}, annotation {instance.id}: its category {instance.category_id} is not in the file."
      )
    of_image.setdefault(instance.image_id, []).append(instance)
  return Instances(images, of_image, categories)


def relative(bbox: tuple[float, ...], image: Image) -> tuple[float, float, float, float]:
  """x, y, width, height in pixels -> ymin, xmin, ymax, xmax in [0, 1]."""
  x, y, w, h = bbox
  height, width = image.height, image.width
  return y / height, x / width, (y + h) / height, (x + w) / width


def pycocotools() -> Any:
  """pycocotools.mask; raises UserError without it."""
  try:
    from pycocotools import mask
  except ImportError:
    raise UserError(
      "COCO's masks are drawn by pycocotools, which is not installed: pip install pycocotools."
    ) from None
  return mask


def mask_png(segmentation: bytes, height: int, width: int, where: str) -> bytes:
  """A segmentation's JSON (polygons or run lengths) as a PNG of 1 bit a pixel."""
  value = typed_json.decode(segmentation, list[list[_Coordinate]] | _Runs, where)
  file = io.BytesIO()
  PIL.Image.fromarray(_drawn(value, height, width, where)).save(file, "png")
  return file.getvalue()


def _drawn(
  value: list[list[_Coordinate]] | _Runs, height: int, width: int, where: str
) -> np.ndarray:
  """bool [height, width]."""
  masks = pycocotools()
  try:
    if isinstance(value, list):
      runs = masks.merge(masks.frPyObjects(value, height, width))
    else:
      runs = {"size": list(value.size), "counts": value.counts}
      if isinstance(value.counts, list):
        if sum(value.counts) != value.size[0] * value.size[1]:
          raise ValueError("its runs do not add up to its size")
        runs = masks.frPyObjects(runs, *value.size)
    pixels = masks.decode(runs)
  except Exception as error:  # The library raises many types.
    reason = " ".join(str(error).split())[:100].rstrip(".") or type(error).__name__
    raise UserError(f"{where}: pycocotools cannot draw this segmentation: {reason}.") from error
  if pixels.shape != (height, width):
    raise UserError(f"{where}: the mask is {pixels.shape}, the image {(height, width)}.")
  return pixels.astype(bool)


def lazy_mask(instance: Instance, image: Image, where: str) -> functools.partial:
  """mask_png of an instance, drawn when it is written; its value is the same each time."""
  return functools.partial(mask_png, bytes(instance.segmentation), image.height, image.width, where)
