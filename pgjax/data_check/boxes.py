"""Are the boxes and masks of a data set learnable?

Answers must parse with locations.parse, which scores predictions; an answer's classes must be among
those of its prompt; a mask must survive encoding to sixteen codes.
"""

import collections
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pgjax.data import locations, masks
from pgjax.data_check.findings import Book
from pgjax.errors import UserError

MAX_MASKS = 100  # Round trips per data set; a few milliseconds each.
_AT_ONCE = 20  # Masks in memory, which may be large.
COARSE = 0.7  # IoU.
CLASSES = 12


def has_locations(answer: str) -> bool:
  """Whether the answer is meant to have a box or a mask."""
  return "<loc" in answer or "<seg" in answer


def classes_of(prefix: str) -> tuple[str, ...] | None:
  """The classes of a detect or segment prompt; None for other prompts."""
  classes = locations.classes_of_prompt(prefix, "detect")
  return locations.classes_of_prompt(prefix, "segment") if classes is None else classes


def look_at(prefix: str, answer: str, i: int, book: Book) -> None:
  """Adds the defects of one answer's boxes to the book."""
  if not has_locations(answer):
    return
  parsed = locations.parse(answer)
  if parsed.malformed:
    pieces = [piece for piece in answer.split(";") if locations.parse(piece).malformed]
    faults = [f"{fault(piece)} in {piece.strip()[:90]!r}" for piece in pieces if piece.strip()]
    book.add("malformed box", i, faults[0] if faults else "nothing between two ;")
  if parsed.duplicates:
    book.add("duplicate box", i, _duplicate(parsed.objects))
  asked = classes_of(prefix)
  labels = {o.label for o in parsed.objects if o.label}
  if asked is not None and (other := sorted(labels - set(asked))):
    book.add("class not asked for", i, f"{other} to {prefix[:80]!r}")


def _duplicate(objects: Sequence[locations.Object]) -> str:
  """The first object that duplicates an earlier one, as locations.parse counts them."""
  for k, o in enumerate(objects):
    for before in objects[:k]:
      if locations.is_duplicate(o, before):
        both = sorted(locations.loc_string(one.box) for one in (before, o))
        return f"{o.label} at {' and '.join(both)}"
  return ""


def fault(piece: str) -> str:
  """Why a piece of an answer is not an object."""
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
  """Objects per answer and their classes; empty without boxes."""
  counts, classes, with_mask = [], collections.Counter(), 0
  for texts in answers:
    objects = [o for text in texts if has_locations(text) for o in locations.parse(text).objects]
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
  """IoU of some masks (of objects_with_masks) after encoding and decoding; coder: the two."""
  encode, decode = coder
  count = min(len(of), MAX_MASKS)
  sample, ious = [of[i * len(of) // count] for i in range(count)], []
  for some in (sample[at : at + _AT_ONCE] for at in range(0, count, _AT_ONCE)):
    readable = []
    for i, k, segmentation, box, size in some:
      try:
        mask_HW = masks.from_coco(segmentation, *size)
        readable.append((i, k, mask_HW, box, masks.crop(mask_HW, box)))
      except UserError as error:
        book.add("malformed mask", i, f"object {k}: {error}")
    if not readable:
      continue
    *_, crops = zip(*readable, strict=True)
    values = np.asarray(decode(encode(np.stack(crops)[..., None])))[..., 0]
    for (i, k, mask_HW, box, _), decoded_HW in zip(readable, values, strict=True):
      again_HW = masks.paste(decoded_HW, box, *mask_HW.shape)
      ious.append(masks.iou(mask_HW, again_HW))
      if ious[-1] < COARSE:
        book.add("coarse mask", i, f"object {k}: {ious[-1]:.2f}")
  return dict(
    number=len(of),
    looked_at=count,
    mean_iou=float(np.mean(ious)) if ious else None,
    least_iou=min(ious, default=None),
  )


def objects_with_masks(source: Any, indices: Sequence[int], book: Book) -> list[tuple]:
  """(index, which object, segmentation, box y0 x0 y1 x1, (height, width)) of raw examples."""
  masked = []
  for i in indices:
    try:
      example = source.texts(i)
      outlines, boxes = example.get("segmentations") or (), example.get("boxes") or ()
      size = (example.get("height"), example.get("width"))
      if any(outlines) and all(size):
        pairs = zip(outlines, boxes, strict=True)
        masked += [(i, k, o, box, size) for k, (o, box) in enumerate(pairs) if o is not None]
    except ValueError as error:
      book.add("malformed mask", i, " ".join(str(error).split()))
  return masked
