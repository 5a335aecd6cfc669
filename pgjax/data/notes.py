"""What is odd about texts and boxes without being an error? Counted, and reported before a run.

Special words such as <eos> are ordinary text for the tokenizer, because pgjax adds these tokens
itself. An <image> at the front of a prompt is dropped: other tools write it there, and a model of
pgjax never saw it. Boxes outside of their images, or smaller than a pixel, mostly have their
numbers in another order or unit. pgjax.check reports the same of every example.
"""

import collections
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pgjax.data import locations

KINDS = {
  "image word": "the prompt begins with <image>, which is dropped (pgjax adds the image's tokens)",
  "special word": "a text has a special word, which becomes ordinary pieces; remove it",
  "leading space": "a text begins with a space, which becomes part of its first token",
}
OUTSIDE = 0.01  # Share of the image by which a box may end outside of it, for rounding.
MANY = 0.1  # Share of boxes below a pixel from which they are reported.
MOST = 0.95  # Share of boxes that another reading must explain to be named.
MAX_PROMPTS = 10  # Different class lists of training data up to which others are reported.

_LEADING = re.compile(r"\s*(?:<image>\s*)+")
_WORD = re.compile(r"<(?:image|bos|eos|pad)>")
_SPACED = re.compile(r"<loc\d{4}>\s+<loc\d{4}>")


def without_image_word(example: dict[str, Any]) -> dict[str, Any]:
  """Drops every <image> at the front of the prefix, and then sets `_image_word`."""
  prefix = example.get("prefix")
  if not isinstance(prefix, str) or not (match := _LEADING.match(prefix)):
    return example
  return example | {"prefix": prefix[match.end() :], "_image_word": True}


def of_texts(example: Mapping[str, Any], answers: Sequence[str]) -> Iterator[tuple[str, str]]:
  """(kind, detail) of what is odd about the prefix and the answers of an example after pp."""
  if example.get("_image_word"):
    yield "image word", ""
  prefix = example.get("prefix")
  texts = [("prompt", prefix)] * isinstance(prefix, str) + [("answer", text) for text in answers]
  for name, text in texts:
    if match := _WORD.search(text):
      yield "special word", f"the {name} has {match[0]}"
    elif text.endswith("\n"):
      more = ", and another is added" if name == "prompt" else ""
      yield "special word", f"the {name} ends with a newline{more}"
    elif match := _SPACED.search(text):
      yield "special word", f"the {name} has {match[0]!r}; there are no spaces between <loc>"
    elif text.strip() and text[:1].isspace():
      yield "leading space", f"the {name} is {text[:40]!r}" + "..." * (len(text) > 40)


class BoxCounter:
  """Counts boxes that do not fit their images."""

  def __init__(self):
    self._total = self._outside = self._tiny = self._as_corners = self._as_shares = 0
    self._left_out = 0
    self._first: dict[str, int] = {}

  def add(self, i: int, example: Mapping[str, Any]) -> None:
    """Counts the normalised boxes of example i, with `_boxes` and `_size` of data/pp/box_ops.py."""
    if left_out := example.get("_boxes_left_out"):
      self._left_out += left_out
      self._first.setdefault("left out", i)
    boxes = example.get("_boxes", example.get("boxes"))
    if boxes is None and not example.get("_without_area"):
      return
    height, width = example.get("_size") or (example.get("height"), example.get("width"))
    try:
      boxes = [*(() if boxes is None else boxes), *example.get("_without_area", ())]
      y0, x0, y1, x1 = np.array(boxes, np.float64).reshape(-1, 4).T
      height, width = float(height or locations.BINS), float(width or locations.BINS)
    except (TypeError, ValueError):  # Another column of that name.
      return
    high, wide = y1 - y0, x1 - x0
    outside = (np.minimum(y0, x0) < -OUTSIDE) | (np.maximum(y1, x1) > 1 + OUTSIDE)
    tiny = (high * height < 1) | (wide * width < 1)
    corners = (high > y0) & (wide > x0) & (np.maximum(high, wide) <= 1 + OUTSIDE)
    shares = np.maximum(y1 * height, x1 * width) <= 2
    self._total += len(boxes)
    self._outside += int(np.count_nonzero(outside))
    self._tiny += int(np.count_nonzero(tiny))
    self._as_corners += int(np.count_nonzero(corners))
    self._as_shares += int(np.count_nonzero(shares))
    for name, odd in (("outside", outside), ("tiny", tiny)):
      if odd.any():
        self._first.setdefault(name, i)

  def sentences(self, where: Callable[[int], str]) -> list[str]:
    """What is odd; empty for good boxes."""
    sentences = []
    if self._left_out:
      sentences.append(
        f"{self._left_out:,} of {self._total:,} boxes are left out, because an image has more than"
        f" num_boxes, such as {where(self._first['left out'])}"
      )
    if self._outside:
      corners = self._outside > MANY * self._total and self._as_corners >= MOST * self._total
      hint = (
        f"; {self._as_corners:,} would fit if their numbers were x0, y0, x1, y1, and COCO's are x,"
        " y, width, height"
        if corners
        else ""
      )
      sentences.append(
        f"{self._outside:,} of {self._total:,} boxes end outside of their images and are cut at the"
        f" edge, such as in {where(self._first['outside'])}{hint}"
      )
    if self._tiny > MANY * self._total:
      hint = "; their numbers look like shares of the image, and COCO's are pixels"
      sentences.append(
        f"{self._tiny:,} of {self._total:,} boxes are less than a pixel high or wide, such as in"
        f" {where(self._first['tiny'])}{hint if self._as_shares >= MOST * self._total else ''}"
      )
    return sentences


class Notes:
  """Collects the notes about a data set; `where` is its source's."""

  def __init__(self, where: Callable[[int], str]):
    self._where, self._boxes, self._seen = where, BoxCounter(), 0
    self._counts: collections.Counter[str] = collections.Counter()
    self._first: dict[str, tuple[int, str]] = {}
    self.prompts: collections.Counter[tuple[str, ...]] = collections.Counter()

  def add(self, i: int, example: Mapping[str, Any]) -> None:
    """Looks at example i after its text ops."""
    suffix, self._seen = example.get("suffix"), self._seen + 1
    answers = [suffix] if isinstance(suffix, str) else []
    for kind, detail in dict(of_texts(example, answers)).items():
      self._counts[kind] += 1
      self._first.setdefault(kind, (i, detail))
    self._boxes.add(i, example)
    if isinstance(prefix := example.get("prefix"), str) and (asked := asked_for(prefix)):
      self.prompts[asked] += 1

  def sentences(self) -> list[str]:
    """What is odd, with counts and an example of each kind."""
    sentences = []
    for kind, count in self._counts.items():
      i, detail = self._first[kind]
      example = self._where(i) + (f": {detail}" if detail else "")
      sentences.append(f"{count:,} of {self._seen:,} texts: {KINDS[kind]}, such as in {example}")
    return sentences + self._boxes.sentences(self._where)


def asked_for(prefix: str) -> tuple[str, ...] | None:
  """("detect", "cat", "dog") of "detect cat ; dog"; None for other prompts."""
  for command in ("detect", "segment"):
    if (classes := locations.classes_of_prompt(prefix, command)) is not None:
      return command, *classes
  return None


def differing_prompts(
  training: Mapping[tuple[str, ...], int], other: Mapping[tuple[str, ...], int]
) -> dict[tuple[str, ...], str]:
  """{prompt: how it differs} of prompts of `other` that training never asks.

  Both are {asked_for(prefix): count}. Empty where training asks for whatever is in an image.
  """
  total = sum(training.values())
  if not training or len(training) > MAX_PROMPTS or (1 < len(training) > total / 2):
    return {}
  differing = {}
  for asked in set(other) - set(training):
    nearest = max(training, key=lambda t: (len(set(t) & set(asked)), training[t]))
    order = " in another order" if set(nearest) == set(asked) else ""
    ours, its = (f"{a[0]} {locations.SEPARATOR.join(a[1:])}" for a in (asked, nearest))
    differing[asked] = f"{ours[:80]!r}, and training asks {its[:80]!r}{order}"
  return differing
