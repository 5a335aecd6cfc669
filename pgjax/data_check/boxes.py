"""Are the boxes and masks of a data set such that a model can learn to write them?

Answers must be read back by locations.parse, which is what scores predictions; the classes of an
answer must be among those that its prompt asks for; a mask must survive its sixteen codes.
"""

import collections
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pgjax.data import locations, masks
from pgjax.data_check.findings import Book
from pgjax.errors import UserError

MAX_MASKS = 100  # Coded there and back, in each data set: some milliseconds each.
COARSE = 0.7  # IoU.
CLASSES = 12


def has_locations(answer: str) -> bool:
  """Whether someone meant a box or a mask."""
  return "<loc" in answer or "<seg" in answer


def classes_of(prefix: str) -> tuple[str, ...] | None:
  """Those that a prompt asks to find; None where it asks for something else."""
  found = (locations.classes_of_prompt(prefix, command) for command in ("detect", "segment"))
  return next((classes for classes in found if classes is not None), None)


def look_at(prefix: str, answer: str, i: int, book: Book) -> None:
  """Faults of one answer; one without boxes has none."""
  if not has_locations(answer):
    return
  parsed = locations.parse(answer)
  if parsed.malformed:
    pieces = [piece for piece in answer.split(";") if locations.parse(piece).malformed]
    told = [f"{fault(piece)} in {piece.strip()[:90]!r}" for piece in pieces if piece.strip()]
    book.tell("malformed box", i, told[0] if told else "nothing between two ;")
  if parsed.duplicates:
    book.tell("duplicate box", i, _twice(parsed.objects))
  asked = classes_of(prefix)
  if asked is None:
    return
  if other := sorted({o.label for o in parsed.objects if o.label} - set(asked)):
    book.tell("class not asked for", i, f"{other} to {prefix[:80]!r}")


def _twice(objects: Sequence[locations.Object]) -> str:
  """The first object that one before it equals, as locations.parse counts them."""
  for k, o in enumerate(objects):
    for before in objects[:k]:
      if locations.is_duplicate(o, before):
        both = [locations.loc_string(one.box) for one in (before, o)]
        return f"{o.label} at {' and '.join(both)}"
  return ""


def fault(piece: str) -> str:
  """Why a piece of an answer is no object, in the order in which one would look."""
  numbers = [int(n) for n in re.findall(r"<loc(\d+)>", piece)]
  codes = [int(n) for n in re.findall(r"<seg(\d+)>", piece)]
  if len(numbers) != 4:
    return f"{len(numbers)} <loc>, not 4,"
  if max(numbers) >= locations.BINS:
    return f"a <loc> above {locations.BINS - 1}"
  y0, x0, y1, x1 = numbers
  for first, last, start, end in (("y0", "y1", y0, y1), ("x0", "x1", x0, x1)):
    if end <= start:
      return f"{last}={end} is not above {first}={start} (the order is y0 x0 y1 x1)"
  if len(codes) not in (0, locations.NUM_CODES):
    return f"{len(codes)} <seg>, not {locations.NUM_CODES},"
  if codes and max(codes) >= locations.CODEBOOK:
    return f"a <seg> above {locations.CODEBOOK - 1}"
  if re.search(r"<(loc(?!\d{4}>)|seg(?!\d{3}>))", piece):
    return "a number without its leading zeros"
  if not codes and piece.rstrip().endswith(">"):
    return "a box without a label"
  return "something before or between the tokens, or in the label,"


def facts(answers: Iterable[Sequence[str]]) -> dict[str, Any]:
  """Objects an answer and their classes; nothing where there are no boxes."""
  counts, classes, with_mask = [], collections.Counter(), 0
  for one in answers:
    objects = [
      o for answer in one for o in locations.parse(answer).objects if has_locations(answer)
    ]
    counts.append(len(objects))
    classes.update(o.label for o in objects)
    with_mask += sum(o.codes is not None for o in objects)
  if not sum(counts):
    return {}
  boxes = dict(
    objects=sum(counts),
    with_mask=with_mask,
    most_in_an_answer=max(counts),
    answers_without=counts.count(0),
    classes=classes.most_common(CLASSES),
  )
  return dict(boxes=boxes)


def mask_round_trips(
  of: Sequence[tuple], coder: tuple[Callable, Callable], book: Book
) -> dict[str, Any]:
  """IoU of some masks with what their codes give.

  `of` is from objects_with_masks, `coder` is (encode, decode) with seg_vae's parameters bound.
  """
  kept = [of[i * len(of) // MAX_MASKS] for i in range(MAX_MASKS)] if len(of) > MAX_MASKS else of
  ious = []
  for i, k, segmentation, box, size in kept:
    try:
      mask_HW = masks.from_coco(segmentation, *size)
      ious.append(masks.round_trip_iou(mask_HW, box, *coder))
    except UserError as error:
      book.tell("malformed mask", i, f"object {k}: {error}")
      continue
    if ious[-1] < COARSE:
      book.tell("coarse mask", i, f"object {k}: {ious[-1]:.2f}")
  return dict(
    number=len(of),
    looked_at=len(kept),
    mean_iou=float(np.mean(ious)) if ious else None,
    least_iou=min(ious, default=None),
  )


def objects_with_masks(source: Any, indices: Sequence[int], book: Book) -> list[tuple]:
  """(index, which object, segmentation, box y0 x0 y1 x1, (height, width)) of raw examples."""
  found = []
  for i in indices:
    try:
      example = source.texts(i)
      outlines, boxes = example.get("segmentations") or (), example.get("boxes") or ()
      size = (example.get("height"), example.get("width"))
      if any(outlines) and all(size):
        pairs = zip(outlines, boxes, strict=True)
        found += [(i, k, o, box, size) for k, (o, box) in enumerate(pairs) if o is not None]
    except ValueError as error:
      book.tell("malformed mask", i, " ".join(str(error).split()))
  return found
