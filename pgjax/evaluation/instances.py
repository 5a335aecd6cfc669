"""Are the masks of all objects of an image right? The scorer of type "instances".

The true objects are in the columns of a COCO file (data/sources/coco.py): boxes (y0 x0 y1 x1,
relative to the image), labels, segmentations (polygons or run lengths), height and width.
scorers.py has all other types.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pgjax.data import locations, mask_tokens, masks
from pgjax.errors import UserError
from pgjax.formats import seg_vae_npz
from pgjax.metrics import detection
from pgjax.models import seg_vae

COLUMNS = ("boxes", "labels", "segmentations", "height", "width")
MATCH_IOU = 0.5  # The least IoU of the masks of an object that counts as detected.


def row(section: Any, tokenizer: Any, example: Mapping[str, Any], generated: Any) -> dict[str, Any]:
  """The row of an example.

  `miou` is the mean over the true objects of the IoU with their predicted mask: of their label, the
  best of those not yet taken, else 0. `best_miou` is what the true answer would reach: a mask loses
  detail as sixteen codes.
  """
  height, width = size = int(example["height"]), int(example["width"])
  boxes, labels = example["boxes"], [str(label) for label in example["labels"]]
  truth = [masks.from_coco(outline, *size) for outline in _outlines(example)]
  encoder = mask_tokens.load(section.mask_weights)
  codes = encoder.of_objects(example["segmentations"], boxes, *size, None) if truth else []
  parsed = locations.parse_tokens(generated.tokens, generated.logp, tokenizer)
  objects = [o for o in parsed.objects if o.codes]
  predicted = _decoded(section.mask_weights, [(o.codes, o.box) for o in objects], *size)
  written = [[n / (locations.BINS - 1) for n in locations.bins(box)] for box in boxes]
  best = _decoded(section.mask_weights, list(zip(codes, written, strict=True)), *size)
  ious = _matched(predicted, [o.label for o in objects], truth, labels)
  hits = sum(iou >= MATCH_IOU for iou in ious)
  return dict(
    answer=locations.segmentation_suffix(boxes, codes, labels),
    score=float(np.mean(ious)) if ious else float(not objects),
    scores={
      "miou": (float(sum(ious)), len(ious)),
      "best_miou": (float(sum(map(masks.iou, best, truth))), len(ious)),
      "f1": (2.0 * hits, len(objects) + len(truth)),
      "precision": (float(hits), len(objects)),
      "recall": (float(hits), len(truth)),
      "malformed": (float(parsed.malformed + len(parsed.objects) - len(objects)), 1),
    },
    objects=[
      dict(box=list(o.box), label=o.label, score=o.score, codes=list(o.codes), rle=rle)
      for o, rle in zip(objects, map(detection.run_lengths, predicted), strict=True)
    ],
    truth=dict(boxes=boxes, labels=labels, rle=[detection.run_lengths(mask) for mask in truth]),
    size=[height, width],
  )


def average_precision(section: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """COCO's twelve numbers of masks, and AP/<class>."""
  rows = [row for row in rows if row["answer"] is not None]
  if not rows:
    return {}
  predictions = [_objects(row["objects"]) for row in rows]
  truths = [_objects(_transposed(**row["truth"])) for row in rows]
  return detection.average_precision(predictions, truths, [tuple(row["size"]) for row in rows])


def _outlines(example) -> list:
  outlines = list(example["segmentations"])
  numbers = (len(example["boxes"]), len(example["labels"]), sum(o is not None for o in outlines))
  if len({*numbers, len(outlines)}) > 1:
    raise UserError(
      f"there are {numbers[0]} boxes, {numbers[1]} labels and {numbers[2]} segmentations; each"
      " object needs one of each"
    )
  return outlines


def _decoded(weights: str, objects, height: int, width: int) -> list[np.ndarray]:
  """bool [height, width] of each (codes, box)."""
  if not objects:
    return []
  codes = np.array([codes for codes, _ in objects])
  small_N64 = np.asarray(seg_vae.decode(seg_vae_npz.load(weights), codes))[..., 0]
  boxes = (box for _, box in objects)
  return [masks.paste(mask, box, height, width) for mask, box in zip(small_N64, boxes, strict=True)]


def _matched(predicted, labels, truth, true_labels) -> list[float]:
  """The IoU of each true mask with its predicted one: the best pair of all first, each once."""
  pairs = sorted(
    (
      (masks.iou(a, b), i, k)
      for i, a in enumerate(predicted)
      for k, b in enumerate(truth)
      if labels[i] == true_labels[k]
    ),
    reverse=True,
  )
  ious = [0.0] * len(truth)
  free, missing = set(range(len(predicted))), set(range(len(truth)))
  for iou, i, k in pairs:
    if i in free and k in missing:
      ious[k] = iou
      free.remove(i)
      missing.remove(k)
  return ious


def _transposed(boxes, labels, rle) -> list[dict[str, Any]]:
  columns = zip(boxes, labels, rle, strict=True)
  return [dict(box=box, label=label, rle=runs, score=1.0) for box, label, runs in columns]


def _objects(objects: Sequence[Mapping[str, Any]]) -> detection.Boxes:
  boxes = np.array([o["box"] for o in objects], np.float64).reshape(-1, 4)
  scores = np.array([o["score"] for o in objects], np.float64)
  return detection.Boxes(boxes, [o["label"] for o in objects], scores, [o["rle"] for o in objects])
