"""What can be wrong with data, and how is it told?

One table of the kinds. Of each kind and data set the number is counted, and the first few are shown
with file and line, whatever their order of discovery.
"""

from collections.abc import Callable
from typing import NamedTuple

EXAMPLES = 5
ERROR, WARNING = "error", "warning"


class Kind(NamedTuple):
  """How bad it is, and a sentence about one example."""

  level: str
  what: str


KINDS = {
  "not opened": Kind(ERROR, "the data cannot be opened"),
  "unreadable image": Kind(ERROR, "an image cannot be read"),
  "damaged image": Kind(ERROR, "an image cannot be decoded"),
  "refused": Kind(ERROR, "pp refuses the example"),
  "malformed box": Kind(ERROR, "a box or mask of the answer cannot be read back"),
  "malformed mask": Kind(ERROR, "a segmentation is no mask"),
  "too many cut": Kind(ERROR, "the text is longer than text_len (pgjax.train refuses over 1%)"),
  "cut": Kind(WARNING, "the text is longer than text_len and loses its end"),
  "answer too long": Kind(WARNING, "the answer is longer than max_decode_len"),
  "empty answer": Kind(WARNING, "the answer is empty"),
  "class not asked for": Kind(WARNING, "the answer names a class that its prompt does not"),
  "duplicate box": Kind(WARNING, "an object is there twice (the same label, IoU of 0.9 or more)"),
  "not JSON": Kind(WARNING, "the answer is no JSON object or list, as most of the others are"),
  "mixed types": Kind(WARNING, "a value has another type than most of its column"),
  "rotated image": Kind(WARNING, "an image has an EXIF rotation, which is not applied"),
  "coarse mask": Kind(WARNING, "a mask keeps less than 0.7 IoU through its codes"),
  "repeated": Kind(WARNING, "image, prefix and answer are those of an earlier example"),
  "contradiction": Kind(
    WARNING, "image and prefix are those of an earlier example, not the answer"
  ),
  "example in training": Kind(WARNING, "image and prefix are those of a training example"),
  "image in training": Kind(WARNING, "the image is that of a training example, not the prefix"),
  "left out": Kind(WARNING, "the source leaves boxes out"),
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
    return KINDS[self.kind].level

  @property
  def sentence(self) -> str:
    """Without the examples."""
    share = "" if self.of is None else f", {self.count:,} of {self.of:,}"
    return f"{self.data}{share}: {KINDS[self.kind].what}"


class Book:
  """Where the faults of one data set are written down."""

  def __init__(self, data: str, where: Callable[[int], str]):
    """`where` is the source's."""
    self.data, self._where = data, where
    self._found: dict[str, dict[int, str]] = {}
    self._rest: list[Finding] = []

  def tell(self, kind: str, index: int, detail: str = "") -> None:
    """One more at this example; a second one of that kind there counts once."""
    assert kind in KINDS, kind
    self._found.setdefault(kind, {}).setdefault(index, detail)

  def add(self, kind: str, *examples: str) -> None:
    """What is not of single examples."""
    self._rest.append(Finding(kind, self.data, 1, None, examples))

  def count(self, kind: str) -> int:
    """At how many examples."""
    return len(self._found.get(kind, ()))

  def findings(self, of: int) -> list[Finding]:
    """All, in the order of KINDS; `of` examples were looked at."""
    found = list(self._rest)
    for kind, told in self._found.items():
      first = sorted(told.items())[:EXAMPLES]
      examples = [self._where(i) + (f": {detail}" if detail else "") for i, detail in first]
      found.append(Finding(kind, self.data, len(told), of, tuple(examples)))
    return sorted(found, key=lambda f: list(KINDS).index(f.kind))
