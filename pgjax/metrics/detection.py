"""Are the boxes right? COCO's average precision, and counts of repeated and unknown boxes.

Boxes are y0 x0 y1 x1 as fractions of height and width. pycocotools computes average precision, on
boxes in pixels, or on masks. Truths have no crowds, and their area is that of the box, or the mask.
"""

import collections
import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pgjax.errors import UserError

# Names of COCOeval's twelve numbers, in its order.
COCO_NAMES = (
  *("AP", "AP50", "AP75", "APs", "APm", "APl"),
  *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)


class Boxes(NamedTuple):
  """The objects of one image; the `scores` of truths are ignored."""

  y0x0y1x1: np.ndarray  # float [N, 4], normalised.
  labels: list[str]
  scores: np.ndarray  # float [N]
  masks: list[dict] | None = None  # Of run_lengths: then masks are compared, not boxes.


def average_precision(
  predictions: Sequence[Boxes], truths: Sequence[Boxes], sizes: Sequence[tuple[int, int]]
) -> dict[str, float]:
  """COCO_NAMES and "AP/<class>" for every class of the truths; `sizes` are (height, width).

  An undefined number is omitted (APs without a small box; all of them without any truth). As at
  COCO, predictions of a class without truths change no number; `num_unknown` counts them.
  """
  if not len(predictions) == len(truths) == len(sizes):
    raise UserError(
      f"{len(predictions)} images have predictions, {len(truths)} truths and {len(sizes)} sizes;"
      " there must be one of each for every image."
    )
  for side, images in (("predictions", predictions), ("truths", truths)):
    for i, boxes in enumerate(images):
      _check(boxes, f"the {side} of image {i}")
  classes = sorted({label for boxes in truths for label in boxes.labels})
  if not classes:
    return {}
  evaluation = _evaluated(predictions, truths, sizes, classes)
  scores = dict(zip(COCO_NAMES, map(float, evaluation.stats), strict=True))
  # [IoU threshold, recall, class, area, detections]: all areas, 100 detections.
  precision_TRK = evaluation.eval["precision"][..., 0, -1]
  scores |= {f"AP/{name}": float(precision_TRK[..., i].mean()) for i, name in enumerate(classes)}
  return {name: value for name, value in scores.items() if value >= 0}  # -1: undefined.


def run_lengths(mask_HW: np.ndarray) -> dict:
  """COCO's compressed run lengths of a mask, as they are written to JSON."""
  _, _, mask = require()
  runs = mask.encode(np.asfortranarray(mask_HW, np.uint8))
  return dict(size=[int(n) for n in runs["size"]], counts=runs["counts"].decode())


def num_unknown(predictions: Sequence[Boxes], truths: Sequence[Boxes]) -> int:
  """Predicted boxes of a split whose label no truth has."""
  known = {label for boxes in truths for label in boxes.labels}
  return sum(label not in known for boxes in predictions for label in boxes.labels)


def num_repeated(boxes: Boxes) -> int:
  """Boxes with the numbers and the label of an earlier box of the image."""
  keys = zip(map(tuple, np.asarray(boxes.y0x0y1x1).tolist()), boxes.labels, strict=True)
  return sum(count - 1 for count in collections.Counter(keys).values())


def _check(boxes: Boxes, of_what: str) -> None:
  shape, num_labels, num_scores = np.shape(boxes.y0x0y1x1), len(boxes.labels), len(boxes.scores)
  if not num_labels == num_scores == len(boxes.y0x0y1x1) or (num_labels and shape[1:] != (4,)):
    raise UserError(
      f"Boxes of {of_what} have shape {shape}, {num_labels} labels and {num_scores} scores; for N"
      " boxes they must be [N, 4], N and N."
    )
  if not (np.all(np.isfinite(boxes.y0x0y1x1)) and np.all(np.isfinite(boxes.scores))):
    raise UserError(f"Boxes of {of_what} have numbers that are not finite: {boxes}.")


def require() -> tuple[Any, Any, Any]:
  """The modules of pycocotools; raises UserError if it is missing, before anything is scored."""
  try:
    from pycocotools import coco, cocoeval, mask
  except ImportError as error:
    raise UserError(
      "Average precision needs the package pycocotools, which is not installed. Run `pip install"
      " -r requirements-metrics.txt`, or leave the detection evaluator out (with --evals in"
      " pgjax.evaluate)."
    ) from error
  return coco, cocoeval, mask


def _evaluated(predictions, truths, sizes, classes) -> Any:
  """A finished COCOeval; pycocotools' printed lines are discarded."""
  coco, cocoeval, _ = require()
  number = {name: i + 1 for i, name in enumerate(classes)}
  with contextlib.redirect_stdout(io.StringIO()):
    sides = []
    for images in (truths, predictions):
      side = coco.COCO()
      side.dataset = {
        "images": [{"id": i + 1, "height": h, "width": w} for i, (h, w) in enumerate(sizes)],
        "categories": [{"id": i, "name": name} for name, i in number.items()],
        "annotations": _annotations(images, sizes, number),
      }
      side.createIndex()
      sides.append(side)
    with_masks = all(boxes.masks is not None for boxes in (*predictions, *truths))
    evaluation = cocoeval.COCOeval(*sides, iouType="segm" if with_masks else "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return evaluation


def _annotations(images, sizes, number: Mapping[str, int]) -> list[dict]:
  """COCO's: x, y, width, height in pixels. Ids begin at 1, since 0 means unmatched."""
  rows: list[dict] = []
  for i, (boxes, (height, width)) in enumerate(zip(images, sizes, strict=True)):
    pixels = np.asarray(boxes.y0x0y1x1, np.float64).reshape(-1, 4) * (height, width, height, width)
    masks = boxes.masks or [None] * len(pixels)
    columns = zip(pixels, boxes.labels, boxes.scores, masks, strict=True)
    for (y0, x0, y1, x1), label, score, mask in columns:
      if label in number:
        row = {"id": len(rows) + 1, "image_id": i + 1, "category_id": number[label], "iscrowd": 0}
        row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
        if mask is not None:
          row |= {"segmentation": mask, "area": float(require()[2].area(mask))}
        rows.append(row | {"score": float(score)})
  return rows
