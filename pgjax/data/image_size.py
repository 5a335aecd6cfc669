"""Are the boxes of an example those of its image file?

Boxes in pixels are relative to the width and height that the data declares. A file of another size
but the same aspect ratio was resized after its boxes were drawn, and shares of the image stay
right. With another aspect ratio no reading is right, so that is an error. It mostly comes from EXIF
orientation: tools that draw boxes show the turned image, and pgjax, as TensorFlow, decodes the
stored pixels.
"""

import io
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image

from pgjax.data import images
from pgjax.errors import UserError

NOTES = {
  "scaled": "the image file is larger or smaller than the data declares, and its boxes are scaled",
  "turned": "EXIF orientation is not applied to the image, so its boxes must be those of the stored"
  " pixels, not of the image that labelling tools show",
}
_BOXES = ("boxes", "segmentations", "bbox")  # Columns whose numbers belong to the declared size.
_ORIENTATION = 0x0112
_SWAPS_SIDES = (5, 6, 7, 8)


def check(example: Mapping[str, Any]) -> Literal["", "scaled", "turned"]:
  """Which of NOTES is true of an image with boxes; raises UserError for another aspect ratio.

  Compares `width` and `height` with the header of an encoded `image`.
  """
  encoded, width, height = (example.get(name) for name in ("image", "width", "height"))
  numbers = all(isinstance(n, int | float) and n > 0 for n in (width, height))
  if not isinstance(encoded, bytes) or not numbers or not any(name in example for name in _BOXES):
    return ""
  size = images.size(encoded)
  if size == (width, height):
    return "turned" if orientation(encoded) != 1 and _has_boxes(example) else ""
  if _same_aspect(size, (width, height)):
    return "scaled"
  turned = orientation(encoded) in _SWAPS_SIDES and _same_aspect(size[::-1], (width, height))
  reason = (
    f": its EXIF orientation {orientation(encoded)} turns it to {size[1]} x {size[0]}, but pgjax"
    " reads the stored pixels, as TensorFlow does. Store the image turned (for example with"
    " PIL.ImageOps.exif_transpose or `mogrify -auto-orient`), and its boxes are right"
    if turned
    else ", which has another aspect ratio, so its boxes cannot be placed. Correct width and height"
    " and the boxes, or replace the file"
  )
  raise UserError(
    f"the data declares an image of {width} x {height} pixels, and its file is {size[0]} x"
    f" {size[1]}{reason}"
  )


def _has_boxes(example) -> bool:
  return any(len(example[name]) for name in _BOXES if hasattr(example.get(name), "__len__"))


def _same_aspect(size, declared) -> bool:
  """Whether one was resized to the other, each side rounded to whole pixels."""
  (w, h), (x, y) = size, declared
  return abs(x * h / w - y) <= 1 or abs(w * y / x - h) <= 1


def orientation(encoded: bytes) -> int:
  """The EXIF orientation, 1 for none or for EXIF that cannot be read."""
  try:
    with Image.open(io.BytesIO(encoded), formats=images.FORMATS) as image:
      if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode all pixels.
        return 1
      value = int(image.getexif().get(_ORIENTATION, 1))
      return value if 1 <= value <= 8 else 1
  except Exception:  # Pillow raises any error of its parsers.
    return 1
