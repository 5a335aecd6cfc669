"""How is a mask of the whole image cropped to 64 x 64 for encoding, and pasted back?

As in big_vision: a mask is cropped to its box, with rounded edges, and resized with antialiasing; a
decoded mask is resized into its box, with edges rounded down, and is inside where it is above 0.
"""

import numpy as np
from PIL import Image, ImageDraw

from pgjax.data import images, resizing
from pgjax.errors import UserError

SIZE = 64
_FINER = 4  # Polygons are drawn at this scale and own the pixels that they cover by half.


def crop(mask_HW: np.ndarray, box) -> np.ndarray:
  """A mask (bool, or bytes 0 and 255) and its box y0, x0, y1, x1 -> float32 [64, 64] in [0, 1]."""
  height, width = mask_HW.shape
  y0, x0, y1, x1 = (
    int(np.round(size * np.float32(c)))
    for size, c in zip((height, width, height, width), box, strict=True)
  )
  cut = mask_HW[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
  if cut.size == 0:
    raise UserError(
      f"the box {[round(float(c), 5) for c in box]} (y0, x0, y1, x1) has no pixel of a mask of"
      f" {height} x {width}"
    )
  scale = 1.0 if cut.dtype == bool else 255.0
  resized = resizing.resize(cut[:, :, None].astype(np.float32), SIZE, SIZE, antialias=True)
  return resized[:, :, 0] / np.float32(scale)


def paste(mask_HW: np.ndarray, box, height: int, width: int) -> np.ndarray:
  """A decoded mask of any size, above 0 inside, and its box -> bool [height, width]."""
  whole = np.zeros((height, width), bool)
  y0, x0, y1, x1 = (
    min(max(int(c * size), 0), size)
    for c, size in zip(box, (height, width, height, width), strict=True)
  )
  if y1 > y0 and x1 > x0:
    small = Image.fromarray(np.ascontiguousarray(mask_HW, np.float32))
    resized = small.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
    whole[y0:y1, x0:x1] = np.asarray(resized) > 0
  return whole


def iou(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
  """Intersection over union of two bool masks; 1 if both are empty."""
  union = np.count_nonzero(a_HW | b_HW)
  return np.count_nonzero(a_HW & b_HW) / union if union else 1.0


def from_coco(segmentation, height: int, width: int) -> np.ndarray:
  """COCO's `segmentation`, polygons (or a flat one) or run lengths, as bool [height, width]."""
  if isinstance(segmentation, dict):
    return _from_runs(segmentation, height, width)
  mask = np.zeros((height, width), bool)
  for polygon in _polygons(segmentation):
    mask |= from_polygon(polygon, height, width)
  return mask


def bounds(segmentation) -> tuple[float, float, float, float]:
  """The box of COCO's `segmentation`: x, y, width, height in pixels."""
  if isinstance(segmentation, dict):
    size = segmentation.get("size")
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else (0, 0)
    if (
      not all(isinstance(n, int) and n > 0 for n in sides)
      or sides[0] * sides[1] > images.MAX_PIXELS
    ):
      raise UserError(f"run lengths need a size [height, width], not {size!r:.60}")
    mask_HW = _from_runs(segmentation, *sides)
    if not mask_HW.any():
      raise UserError("the run lengths are of an empty mask, which has no box")
    rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    (left, top), (right, bottom) = (columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)
  else:
    points = np.concatenate([_points(polygon) for polygon in _polygons(segmentation)])
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
  return float(left), float(top), float(right - left), float(bottom - top)


def _polygons(segmentation) -> list:
  """Polygons; a flat list of numbers is one polygon."""
  parts = segmentation if isinstance(segmentation, list) else []
  parts = [part for part in parts if part != []]
  if not parts:
    raise UserError(f"a segmentation is a list of polygons or a dict, not {segmentation!r:.60}")
  return [parts] if all(isinstance(part, int | float) for part in parts) else parts


def _points(polygon) -> np.ndarray:
  """float64 [N, 2] of x0, y0, x1, y1 ..."""
  try:
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
  except (TypeError, ValueError, OverflowError):
    points = np.zeros((0, 2))
  if len(points) < 3 or not np.isfinite(points).all():
    raise UserError(
      f"a polygon is x0, y0, x1, y1 ... of at least three points, not {str(polygon)[:60]}"
    )
  return points


def from_polygon(polygon, height: int, width: int) -> np.ndarray:
  """x0, y0, x1, y1 ... in pixels (edges from 0 to the size) -> bool [height, width]."""
  points = np.clip(_points(polygon), -1, [width + 1, height + 1])  # Nothing outside is visible.
  mask = np.zeros((height, width), bool)
  left, top = np.maximum(np.floor(points.min(axis=0)).astype(int), 0)
  right, bottom = np.minimum(np.ceil(points.max(axis=0)).astype(int), [width, height])
  if right > left and bottom > top:
    fine = Image.new("L", ((right - left) * _FINER, (bottom - top) * _FINER))
    # Pillow's coordinates are centres of fine pixels, and it also draws the outline.
    corners = (points - (left, top)) * _FINER - 0.5
    ImageDraw.Draw(fine).polygon([tuple(p) for p in corners], fill=255)
    mask[top:bottom, left:right] = np.asarray(fine.reduce(_FINER)) >= 128
  return mask


def _from_runs(runs, height, width):
  """Decodes runs down the columns, starting with zeros; text is COCO's compressed form."""
  counts = runs.get("counts")
  if isinstance(counts, str | bytes):
    counts = _uncompressed(counts)
  numbers = isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts)
  size = runs.get("size")
  if size not in ([height, width], (height, width)) or not numbers or sum(counts) != height * width:
    raise UserError(f"run lengths of size {size} do not fit an image of {height} x {width}")
  values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
  return values.reshape(width, height).T


def _uncompressed(text) -> list[int] | None:
  """Decodes COCO's text: each character from "0" on has five bits of a number and a "more" bit.

  The highest bit of the last is the sign; from the fourth number on, the text has the difference
  to the number two before.
  """
  counts: list[int] = []
  number, shift = 0, 0
  for byte in text.encode() if isinstance(text, str) else text:
    if not 48 <= byte < 112 or shift > 30:
      return None
    number |= (byte - 48 & 31) << shift
    shift += 5
    if not byte - 48 & 32:
      number -= (1 << shift) if byte - 48 & 16 else 0
      counts.append(number + (counts[-2] if len(counts) > 2 else 0))
      number, shift = 0, 0
  return counts if not shift else None
