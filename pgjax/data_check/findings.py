"""Which defects can data have, and how are they collected?

Per kind and data set: the number of examples, and the first few with file and line.
"""

from collections.abc import Callable
from typing import NamedTuple

from pgjax.data import notes

EXAMPLES = 5
ERROR, WARNING = "error", "warning"

ERRORS = {
  "not opened": "the data cannot be opened",
  "unreadable image": "an image cannot be read",
  "wrong size": "the image file has neither the declared size nor its aspect ratio",
  "damaged image": "an image cannot be decoded",
  "refused": "pp refuses the example",
  "malformed box": "a box or mask of the answer cannot be read back",
  "malformed mask": "a segmentation is not a mask",
  "too many cut": "the text is longer than text_len (pgjax.train refuses over 1%)",
}
WARNINGS = {
  "odd boxes": "boxes do not fit their images",
  "other prompt": "the prompt asks for other classes than training, or in another order",
  "source": "the data may not be read as meant",
  **notes.KINDS,
  "cut": "the text is longer than text_len and loses its end",
  "answer too long": "the answer is longer than max_decode_len",
  "empty answer": "the answer is empty",
  "class not asked for": "the answer names a class that its prompt does not",
  "duplicate box": "an object is listed twice (same label, IoU of 0.9 or more)",
  "not JSON": "the answer is not a JSON object or list; most others are",
  "mixed types": "a value has another type than most of its column",
  "no answer": "the answer is null; it is not scored",
  "dim image": "an image of 16 bits uses less than a quarter of its range",
  "flat image": "all pixels of an image are equal",
  "rotated image": "an image has an EXIF rotation, which is not applied",
  "scaled size": "an image file is larger or smaller than declared; its boxes are scaled",
  "coarse mask": "a mask has less than 0.7 IoU after its codes",
  "repeated id": "an id that an earlier example has, so their predictions cannot be told apart",
  "repeated": "image, prefix and answer are those of an earlier example",
  "contradiction": "same image and prefix as an earlier example, another answer",
  "example in training": "image and prefix are those of a training example",
  "image in training": "same image as a training example, another prefix",
  "left out": "the source leaves out boxes or rows",
}
FINDING_KINDS = ERRORS | WARNINGS


class Finding(NamedTuple):
  """One kind of defect in one data set."""

  kind: str
  data: str  # "training", "evals.val".
  count: int
  of: int | None  # Examples checked; None for a finding about the whole data set.
  examples: tuple[str, ...]

  @property
  def level(self) -> str:
    """ "error" or "warning"."""
    return ERROR if self.kind in ERRORS else WARNING

  @property
  def sentence(self) -> str:
    """The finding without its examples."""
    share = "" if self.of is None else f", {self.count:,} of {self.of:,}"
    return f"{self.data}{share}: {FINDING_KINDS[self.kind]}"


class Book:
  """Collects the defects of one data set; `where` is its source's."""

  def __init__(self, data: str, where: Callable[[int], str]):
    self.data, self._where = data, where
    self._details: dict[str, dict[int, str]] = {}
    self._of_data: list[Finding] = []

  def add(self, kind: str, index: int, detail: str = "") -> None:
    """A defect of one example; more of one kind count once."""
    assert kind in FINDING_KINDS, kind
    self._details.setdefault(kind, {}).setdefault(index, detail)

  def add_to_data(self, kind: str, text: str) -> None:
    """A defect of the whole data set."""
    self._of_data.append(Finding(kind, self.data, 1, None, (text,)))

  def findings(self, of: int) -> list[Finding]:
    """All findings in the order of FINDING_KINDS; `of` examples were checked."""
    findings = list(self._of_data)
    for kind, details in self._details.items():
      first = sorted(details.items())[:EXAMPLES]
      examples = [self._where(i) + (f": {detail}" if detail else "") for i, detail in first]
      findings.append(Finding(kind, self.data, len(details), of, tuple(examples)))
    return sorted(findings, key=lambda f: list(FINDING_KINDS).index(f.kind))
