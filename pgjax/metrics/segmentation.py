"""Does the predicted mask cover the object that the text describes? (RefCOCO: mIoU, cIoU.)

Each function scores one example, {name: (sum, count)}, by the rules of big_vision's
evaluators/proj/paligemma/transfers/segmentation.py: an invalid answer has an empty box and mask.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from pgjax.metrics import text

BOX_THRESHOLDS = (0.5, 0.75)


class Overlap(NamedTuple):
  """Pixels in both masks, pixels in either, and whether the prediction is valid."""

  intersection: int
  union: int
  valid: bool

  @property
  def iou(self) -> float:
    """0 if both masks are empty."""
    return self.intersection / self.union if self.union else 0.0


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
  """IoU of two boxes y0 x0 y1 x1 in the same unit; 0 if both are empty."""
  heights = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
  widths = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
  intersection = max(0.0, float(heights)) * max(0.0, float(widths))
  union = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - intersection
  return intersection / union if union > 0 else 0.0


def mask_overlap(
  mask_64x64: np.ndarray | None, box: np.ndarray | None, truth_HW: np.ndarray
) -> Overlap:
  """The decoder's mask (above 0 is inside), resized into its box, against the true mask.

  `box` is y0 x0 y1 x1 from 0 to 1, rounded down to pixels; no mask, box or pixel in it: invalid.
  """
  truth_HW = np.asarray(truth_HW) > 0
  area = int(truth_HW.sum())
  nothing = Overlap(0, area, valid=False)
  if mask_64x64 is None or box is None:
    return nothing
  height, width = truth_HW.shape
  y0, x0, y1, x1 = (int(v) for v in np.asarray(box, np.float64) * (height, width, height, width))
  if y1 <= y0 or x1 <= x0:
    return nothing
  floats = Image.fromarray(np.asarray(mask_64x64, np.float32))
  inside = np.asarray(floats.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)) > 0.0
  intersection = int((inside & truth_HW[y0:y1, x0:x1]).sum())
  return Overlap(intersection, area + int(inside.sum()) - intersection, valid=True)


def referring(
  mask_64x64: np.ndarray | None, box: np.ndarray | None, truth_HW: np.ndarray, truth_box: np.ndarray
) -> text.Scores:
  """All figures of an example: `miou`, `ciou`, `boxacc/0.5`, `boxacc/0.75`, `invalid_share`.

  `miou`: the published mean IoU. `ciou`: the split's intersections over its unions, the older
  figure. Boxes are from 0 to 1; `box` is None for an answer without box and mask.
  """
  overlap = mask_overlap(mask_64x64, box, truth_HW)
  iou = 0.0 if box is None else box_iou(np.asarray(box), np.asarray(truth_box))
  return {
    "miou": (overlap.iou, 1),
    "ciou": (float(overlap.intersection), overlap.union),
    **{f"boxacc/{least}": (float(iou >= least), 1) for least in BOX_THRESHOLDS},
    "invalid_share": (float(not overlap.valid), 1),
  }
