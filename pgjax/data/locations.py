"""How does a box become four tokens, and which boxes are in a generated text?

A box is y0, x0, y1, x1 as shares of the image's height and width. A coordinate becomes the bin
round(c * 1023), half to even in float32, clipped to 0..1023; bin n means n / 1023, exactly as in
big_vision's refcoco_mask2str. The text of an answer is

  detection      <loc0102><loc0003><loc0900><loc0512> cat ; <loc...> dog
  segmentation   four <loc>, sixteen <seg>, and optionally the label

`parse` and `parse_tokens` count malformed objects and never raise.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pgjax.errors import UserError

BINS = 1024
NUM_CODES = 16  # <seg> tokens of a mask.
CODEBOOK = 128
DUPLICATE_IOU = 0.9  # Two boxes of one label with this IoU are the same object.
SEPARATOR = " ; "
FORMATS = ("normalised", "coco", "voc", "yolo")

_OBJECT = re.compile(r"\s*((?:<loc[0-9]{4}>){4})((?:<seg[0-9]{3}>){16})?\s*(.*?)\s*", re.DOTALL)
_LOC, _SEG = "<loc0000>", "<seg000>"
_NUMBER = re.compile(r"<(?:loc|seg)([0-9]+)>")
_SPECIAL = re.compile(r"<(?:loc[0-9]{4}|seg[0-9]{3})>|[;\n]")


class Object(NamedTuple):
  """One object of an answer.

  `span` is its range in the text. `box_score` is the geometric mean of the probabilities of its
  <loc> tokens (and its <seg> tokens, if any), `label_score` the product of those of its label's
  tokens; both are None if the probabilities are unknown.
  """

  box: tuple[float, float, float, float]
  label: str
  codes: tuple[int, ...] | None
  span: tuple[int, int]
  box_score: float | None = None
  label_score: float | None = None

  @property
  def score(self) -> float | None:
    """The model's confidence in this object, from 0 to 1; None if unknown."""
    return None if self.box_score is None else self.box_score * self.label_score


class Parsed(NamedTuple):
  """The objects of a text, without the `malformed` pieces and with the `duplicates`."""

  objects: tuple[Object, ...]
  malformed: int
  duplicates: int


def bins(box: Sequence[float]) -> tuple[int, ...]:
  """y0, x0, y1, x1 as shares of the image -> four numbers from 0 to 1023."""
  scaled = np.round(np.asarray(box, np.float32) * np.float32(BINS - 1))
  return tuple(int(n) for n in np.clip(scaled, 0, BINS - 1))


def loc_string(box: Sequence[float]) -> str:
  """The four tokens of a box, such as <loc0000><loc0512><loc1023><loc1023>."""
  return "".join(f"<loc{n:04d}>" for n in bins(box))


def seg_string(codes: Sequence[int]) -> str:
  """The sixteen tokens of a mask's codes, such as <seg003>..."""
  if len(codes) != NUM_CODES or not all(0 <= n < CODEBOOK for n in codes):
    raise UserError(
      f"a mask has {NUM_CODES} codes from 0 to {CODEBOOK - 1}, not {[int(n) for n in codes]}"
    )
  return "".join(f"<seg{int(n):03d}>" for n in codes)


def has_area(box: Sequence[float]) -> bool:
  """Whether the box has an area in bins."""
  y0, x0, y1, x1 = bins(box)
  return y0 < y1 and x0 < x1


def detection_suffix(boxes: Sequence[Sequence[float]], labels: Sequence[str]) -> str:
  """The right answer to "detect cat ; dog"; empty without boxes."""
  return _suffix(boxes, [""] * len(boxes), labels)


def segmentation_suffix(
  boxes: Sequence[Sequence[float]], codes: Sequence[Sequence[int]], labels: Sequence[str] = ()
) -> str:
  """The right answer to "segment cat"; without labels as in RefCOCO."""
  return _suffix(boxes, [seg_string(c) for c in codes], labels or [None] * len(boxes))


def _suffix(boxes, codes, labels):
  if not len(boxes) == len(codes) == len(labels):
    raise UserError(f"{len(boxes)} boxes, {len(codes)} masks and {len(labels)} labels do not match")
  parts = []
  for box, code, label in zip(boxes, codes, labels, strict=True):
    if not has_area(box):
      raise UserError(
        f"the box {[round(float(c), 5) for c in box]} (y0, x0, y1, x1) has no area in {BINS} bins;"
        " remove it, or check the order and format of its numbers"
      )
    parts.append(loc_string(box) + code + (f" {checked_label(label)}" if label is not None else ""))
  return SEPARATOR.join(parts)


def checked_label(label: str) -> str:
  """The label with single spaces; raises if `parse` could not read it back."""
  if not isinstance(label, str) or not label.strip() or _SPECIAL.search(label):
    raise UserError(
      f"the label {label!r} cannot be in an answer: it must be text without ; or a new line, and"
      " without <loc> and <seg> tokens"
    )
  return " ".join(label.split())


def parse(text: str) -> Parsed:
  """The objects of an answer; never raises.

  Pieces are separated by ";". A piece is malformed if it is not four <loc> (and sixteen <seg>) and
  a label, if a number is out of range, or if the box ends before it starts. Only masks may lack a
  label. An object is a duplicate if an earlier one has the same label and an IoU of at least 0.9.
  """
  pieces, start = [], 0
  for piece in text.split(";") if text.strip() else ():
    pieces.append(_read(piece, start))
    start += len(piece) + 1
  objects = tuple(o for o in pieces if o is not None)
  return Parsed(objects, len(pieces) - len(objects), num_duplicates(objects))


def num_duplicates(objects: Sequence[Object]) -> int:
  """Objects that are duplicates of an earlier one."""
  return sum(any(is_duplicate(o, before) for before in objects[:i]) for i, o in enumerate(objects))


def is_duplicate(one: Object, other: Object) -> bool:
  """Whether two objects of an answer are the same object of the image."""
  return one.label == other.label and iou(one.box, other.box) >= DUPLICATE_IOU


def classes_of_prompt(prompt: str, command: str) -> tuple[str, ...] | None:
  """("cat", "dog") of "detect cat ; dog"; None where the prompt is another command."""
  first, _, rest = prompt.partition(" ")
  if first != command:
    return None
  return tuple(dict.fromkeys(name.strip() for name in rest.split(";") if name.strip()))


def _read(piece: str, start: int) -> Object | None:
  match = _OBJECT.fullmatch(piece)
  if not match:
    return None
  locs, segs, label = match.groups()
  y0, x0, y1, x1 = numbers = [int(n) for n in _NUMBER.findall(locs)]
  codes = tuple(int(n) for n in _NUMBER.findall(segs)) if segs else None
  if max(numbers) >= BINS or y1 <= y0 or x1 <= x0 or _SPECIAL.search(label):
    return None
  if (codes is None and not label) or (codes is not None and max(codes) >= CODEBOOK):
    return None
  left = len(piece) - len(piece.lstrip())
  box = tuple(n / (BINS - 1) for n in numbers)
  return Object(box, " ".join(label.split()), codes, (start + left, start + len(piece.rstrip())))


def parse_tokens(tokens: Sequence[int], logp: Sequence[float], tokenizer) -> Parsed:
  """Like `parse`, from ids and their log-probabilities, with scores (docs/boxes.md gives reasons).

  PaliGemma 2 scores only the label (arXiv:2412.03555, App. C), but with a model that has learned
  noise boxes.
  """
  tokens = [int(token) for token in tokens]
  end = tokens.index(tokenizer.eos) if tokenizer.eos in tokens else len(tokens)
  tokens, logp = tokens[:end], [float(p) for p in logp][:end]
  text = tokenizer.decode(tokens)
  spans = _spans(tokens, tokenizer, len(text))
  parsed = parse(text)
  scored = []
  for o in parsed.objects:
    inside = [i for i, (a, b) in enumerate(spans) if a < o.span[1] and b > o.span[0]]
    # The end of its <loc> and <seg> and the start of its label.
    border = text.index("<", o.span[0]) + len(_LOC) * 4 + len(_SEG) * len(o.codes or ())
    box = [logp[i] for i in inside if spans[i][0] < border]
    label = sum(logp[i] for i in inside if spans[i][0] >= border)
    box_score = math.exp(sum(box) / len(box))
    scored.append(o._replace(box_score=box_score, label_score=math.exp(label)))
  return parsed._replace(objects=tuple(scored))


def _spans(tokens, tokenizer, length) -> list[tuple[int, int]]:
  """The range of each token in the text.

  A character of several byte tokens appears with the last of them, and before that the text may be
  longer than at the end; a token that adds nothing has the range of the token before it.
  """
  ends = [len(tokenizer.decode(tokens[: i + 1])) for i in range(len(tokens))]
  spans: list[tuple[int, int]] = []
  for i in reversed(range(len(ends))):
    ends[i] = min(ends[i], ends[i + 1] if i + 1 < len(ends) else length)
  for start, end in zip([0, *ends], ends, strict=False):
    spans.append((start, end) if end > start or not spans else spans[-1])
  return spans


def iou(a: Sequence[float], b: Sequence[float]) -> float:
  """Intersection over union of two boxes y0, x0, y1, x1."""
  height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
  width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
  union = area(a) + area(b) - height * width
  return height * width / union if union > 0 else 0.0


def area(box: Sequence[float]) -> float:
  """Area of y0, x0, y1, x1; 0 if the box ends before it starts."""
  return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def to_normalised(box: Sequence[float], format: str, *, width=None, height=None) -> tuple:
  """Converts a box from one of FORMATS to y0, x0, y1, x1 in shares of the image.

  coco: x, y, width, height in pixels; voc: x0, y0, x1, y1 in pixels; yolo: x and y of the centre,
  width, height, all as shares. Pixels are edges from 0 to the image's size; subtract 1 first from
  pixels that start at 1.
  """
  a, b, c, d = _four(box, format, width, height)
  if format == "normalised":
    return (a, b, c, d)
  if format == "yolo":
    return (b - d / 2, a - c / 2, b + d / 2, a + c / 2)
  if format == "coco":
    c, d = a + c, b + d
  return (b / height, a / width, d / height, c / width)


def from_normalised(box: Sequence[float], format: str, *, width=None, height=None) -> tuple:
  """Converts y0, x0, y1, x1 in shares of the image to one of FORMATS; inverts to_normalised."""
  y0, x0, y1, x1 = _four(box, format, width, height)
  if format == "normalised":
    return (y0, x0, y1, x1)
  if format == "yolo":
    return ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
  if format == "coco":
    return (x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height)
  return (x0 * width, y0 * height, x1 * width, y1 * height)


def _four(box, format, width, height):
  if format not in FORMATS:
    raise UserError(f"boxes have no format {format!r}, only {', '.join(FORMATS)}")
  try:
    numbers = [float(n) for n in box]
  except (TypeError, ValueError):
    numbers = []
  if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
    raise UserError(f"a box is four numbers, not {box!r}")
  if format in ("coco", "voc") and not (width and height and width > 0 and height > 0):
    raise UserError(f"boxes in pixels need the image's width and height, not {width} x {height}")
  return numbers
