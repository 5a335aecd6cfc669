"""How far is one string from another, and how well does the model predict a text?

Every score is a pair (sum, count), so that examples, padding (count 0) and hosts add up before the
only division, in `mean`. vqa.py applies these functions to tasks.
"""

import math
from collections.abc import Iterable, Mapping

Score = tuple[float, int]
Scores = dict[str, Score]


def levenshtein(a: str, b: str) -> int:
  """Insertions, deletions and substitutions of code points that turn `a` into `b`."""
  if len(a) < len(b):
    a, b = b, a
  above = list(range(len(b) + 1))
  for i, char_a in enumerate(a, start=1):
    row = [i]
    for j, char_b in enumerate(b, start=1):
      row.append(min(row[j - 1] + 1, above[j] + 1, above[j - 1] + (char_a != char_b)))
    above = row
  return above[-1]


def anls(prediction: str, target: str) -> float:
  """Normalized Levenshtein similarity of ST-VQA (arXiv:1905.13648); 0 if half the text is wrong."""
  if not target:
    return float(not prediction)
  distance = levenshtein(prediction, target) / max(len(prediction), len(target))
  return 1.0 - distance if distance < 0.5 else 0.0


def perplexity(nll_sum: float, weight_sum: float) -> Scores:
  """One example of big_vision's perplexity: `sum` of its tokens' nll; `avg` a token, 0 of none."""
  return {"sum": (nll_sum, 1), "avg": (nll_sum / max(weight_sum, 2e-38), 1)}


def mean(scores: Iterable[Mapping[str, Score]]) -> dict[str, float]:
  """The sum of each name's sums over the sum of its counts; names whose count is 0 are omitted.

  `math.fsum` is exact, so neither the order of the examples nor their process matters.
  """
  sums: dict[str, list[float]] = {}
  counts: dict[str, int] = {}
  for score in scores:
    for name, (value, count) in score.items():
      sums.setdefault(name, []).append(value)
      counts[name] = counts.get(name, 0) + count
  return {name: math.fsum(sums[name]) / counts[name] for name in sums if counts[name]}
