"""What can be wrong with data, and how is it told?

One table of the kinds. Of each kind and data set the number is counted, and the first few are shown
with file and line, whatever their order of discovery.
"""

from collections.abc import Callable
from typing import NamedTuple

EXAMPLES = 5
ERROR, WARNING = "error", "warning"


class Defect(NamedTuple):
  """How bad it is, and a sentence about one example."""

  level: str
  what: str


FINDING_KINDS = {
  "not opened": Defect(ERROR, "the data cannot be opened"),
  "unreadable image": Defect(ERROR, "an image cannot be read"),
  "damaged image": Defect(ERROR, "an image cannot be decoded"),
  "refused": Defect(ERROR, "pp refuses the example"),
  "malformed box": Defect(ERROR, "a box or mask of the answer cannot be read back"),
  "malformed mask": Defect(ERROR, "a segmentation is no mask"),
  "too many cut": Defect(ERROR, "the text is longer than text_len (pgjax.train refuses over 1%)"),
  "cut": Defect(WARNING, "the text is longer than text_len and loses its end"),
  "answer too long": Defect(WARNING, "the answer is longer than max_decode_len"),
  "empty answer": Defect(WARNING, "the answer is empty"),
  "class not asked for": Defect(WARNING, "the answer names a class that its prompt does not"),
  "duplicate box": Defect(WARNING, "an object is there twice (the same label, IoU of 0.9 or more)"),
  "not JSON": Defect(WARNING, "the answer is no JSON object or list, as most of the others are"),
  "mixed types": Defect(WARNING, "a value has another type than most of its column"),
  "rotated image": Defect(WARNING, "an image has an EXIF rotation, which is not applied"),
  "coarse mask": Defect(WARNING, "a mask keeps less than 0.7 IoU through its codes"),
  "repeated": Defect(WARNING, "image, prefix and answer are those of an earlier example"),
  "contradiction": Defect(
    WARNING, "image and prefix are those of an earlier example, not the answer"
  ),
  "example in training": Defect(WARNING, "image and prefix are those of a training example"),
  "image in training": Defect(WARNING, "the image is that of a training example, not the prefix"),
  "left out": Defect(WARNING, "the source leaves boxes out"),
}


class Finding(NamedTuple):
  """One kind of fault in one data set."""

  kind: str
  data: str  # "training", "evals.val".
  count: int
  of: int | None  # Examples looked at; None for what is not of single examples.
  examples: tuple[str, ...]

  @property
  def level(self) -> str:
    """ "error" or "warning"."""
    return FINDING_KINDS[self.kind].level

  @property
  def sentence(self) -> str:
    """Without the examples."""
    share = "" if self.of is None else f", {self.count:,} of {self.of:,}"
    return f"{self.data}{share}: {FINDING_KINDS[self.kind].what}"


class Book:
  """Where the faults of one data set are written down."""

  def __init__(self, data: str, where: Callable[[int], str]):
    """`where` is the source's."""
    self.data, self._where = data, where
    self._found: dict[str, dict[int, str]] = {}
    self._rest: list[Finding] = []

  def tell(self, kind: str, index: int, detail: str = "") -> None:
    """One more at this example; a second one of that kind there counts once."""
    assert kind in FINDING_KINDS, kind
    self._found.setdefault(kind, {}).setdefault(index, detail)

  def add(self, kind: str, *examples: str) -> None:
    """What is not of single examples."""
    self._rest.append(Finding(kind, self.data, 1, None, examples))

  def count(self, kind: str) -> int:
    """At how many examples."""
    return len(self._found.get(kind, ()))

  def findings(self, of: int) -> list[Finding]:
    """All, in the order of FINDING_KINDS; `of` examples were looked at."""
    found = list(self._rest)
    for kind, told in self._found.items():
      first = sorted(told.items())[:EXAMPLES]
      examples = [self._where(i) + (f": {detail}" if detail else "") for i, detail in first]
      found.append(Finding(kind, self.data, len(told), of, tuple(examples)))
    return sorted(found, key=lambda f: list(FINDING_KINDS).index(f.kind))
