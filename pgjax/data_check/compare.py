"""Which examples and prompts do several data sets have in common, and which contradict?"""

import collections
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pgjax.data import notes
from pgjax.data_check.findings import Book
from pgjax.data_check.scan import CheckedSplit, Text


def prompts_of(texts: Mapping[int, Text]) -> collections.Counter[tuple[str, ...]]:
  """The prompts for boxes and masks, with counts."""
  return collections.Counter(filter(None, (notes.asked_for(t.prefix) for t in texts.values())))


def other_prompts(
  texts: Mapping[int, Text], training: Mapping[tuple[str, ...], int], book: Book
) -> None:
  """Adds to the book the prompts that training, {prompt: count}, never asks."""
  differing = notes.differing_prompts(training, prompts_of(texts))
  for i, text in texts.items():
    if (asked := notes.asked_for(text.prefix)) in differing:
      book.add("other prompt", i, differing[asked])


class Seen(NamedTuple):
  """Digests and texts of a data set, for comparison with others."""

  digests: dict[int, str]
  texts: dict[int, Text]


def repeats(seen: Seen, where: Any, book: Book) -> None:
  """Adds to the book the examples with image and prefix of an earlier one."""
  first: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {}
  for i in (i for i in seen.digests if i in seen.texts):
    prefix, answers = seen.texts[i]
    earlier, its_answers = first.setdefault((seen.digests[i], prefix), (i, answers))
    if answers != its_answers:
      mine, other = _difference(" | ".join(answers), " | ".join(its_answers))
      book.add("contradiction", i, f"{mine!r}, but {other!r} as {where(earlier)}")
    elif earlier != i:
      book.add("repeated", i, f"as {where(earlier)}")


def _difference(a: str, b: str) -> tuple[str, str]:
  """Both texts around the first character that differs."""
  differing = (k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
  same = next(differing, min(len(a), len(b)))
  start = max(0, same - 20)
  return a[start : same + 40], b[start : same + 40]


def leaks(seen: Seen, training: dict[str, tuple[str, set[str]]], book: Book) -> None:
  """Adds to the book the examples that are in `training`, the result of `of_training`."""
  for i, digest in seen.digests.items():
    if digest in training:
      where, prefixes = training[digest]
      same = i in seen.texts and seen.texts[i].prefix in prefixes
      book.add("example in training" if same else "image in training", i, f"as {where}")


def of_training(splits: Iterable[tuple[CheckedSplit, Seen]]) -> dict[str, tuple[str, set[str]]]:
  """{image digest: (its first location, its prefixes)} over all training data."""
  training: dict[str, tuple[str, set[str]]] = {}
  for split, seen in splits:
    for i, digest in seen.digests.items():
      _, prefixes = training.setdefault(digest, (split.source.where(i), set()))
      if i in seen.texts:
        prefixes.add(seen.texts[i].prefix)
  return training
