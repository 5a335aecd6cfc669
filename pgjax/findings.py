"""What can be wrong with data, and how is it told?

One table of the kinds. Of each kind and data set the number is counted, and the first few are shown
with file and line, whatever their order of discovery.
"""

from collections.abc import Callable
from typing import NamedTuple

EXAMPLES = 5
ERROR, WARNING = "error", "warning"


class Kind(NamedTuple):
  """How bad it is, and the sentence after "3 of 200"."""

  level: str
  what: str


KINDS = {
  "not opened": Kind(ERROR, "data sets cannot be opened"),
  "unreadable image": Kind(ERROR, "examples have an image that cannot be read"),
  "damaged image": Kind(ERROR, "examples have an image that cannot be decoded"),
  "refused": Kind(ERROR, "examples are refused by pp"),
  "malformed box": Kind(ERROR, "answers have a box or mask that cannot be read back"),
  "malformed mask": Kind(ERROR, "examples have a segmentation that is no mask"),
  "too many cut": Kind(ERROR, "texts are longer than text_len, more than pgjax.train allows"),
  "cut": Kind(WARNING, "texts are longer than text_len and lose their end"),
  "answer not reachable": Kind(WARNING, "answers are longer than max_decode_len"),
  "empty answer": Kind(WARNING, "answers are empty"),
  "class not asked for": Kind(WARNING, "answers name a class that their prompt does not"),
  "duplicate box": Kind(WARNING, "answers have one object twice (one label, IoU of 0.9 or more)"),
  "not JSON": Kind(WARNING, "answers are no JSON object or list, and most of the others are"),
  "mixed types": Kind(WARNING, "examples have a value of another type than most of its column"),
  "rotated image": Kind(
    WARNING, "examples have an image with an EXIF rotation, which is not applied"
  ),
  "coarse mask": Kind(WARNING, "masks looked at keep less than 0.7 IoU through their codes"),
  "repeated": Kind(WARNING, "examples have image, prefix and answer of an earlier one"),
  "contradiction": Kind(
    WARNING, "examples have image and prefix of an earlier one, not its answer"
  ),
  "example in training": Kind(WARNING, "examples have image and prefix of a training example"),
  "image in training": Kind(WARNING, "other examples have the image of a training example"),
  "left out": Kind(WARNING, "boxes are left out by the source"),
}


class Finding(NamedTuple):
  """One kind of fault in one data set."""

  kind: str
  data: str  # "training", "evals.val".
  count: int
  of: int | None  # None where a share means nothing.
  examples: tuple[str, ...]

  @property
  def level(self) -> str:
    """ "error" or "warning"."""
    return KINDS[self.kind].level

  @property
  def sentence(self) -> str:
    """Without the examples."""
    share = "" if self.of is None else f" of {self.of:,}"
    return f"{self.data}: {self.count:,}{share} {KINDS[self.kind].what}"


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

  def add(self, kind: str, count: int, of: int | None, *examples: str) -> None:
    """What is not of single examples."""
    self._rest.append(Finding(kind, self.data, count, of, examples[:EXAMPLES]))

  def has(self, kind: str) -> bool:
    """Whether anything of that kind was told."""
    return kind in self._found

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
