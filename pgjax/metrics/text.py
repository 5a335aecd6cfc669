"""How far is one string from another, and how surprised was the model by a text?

Pure functions of strings and numbers, no arrays of JAX, no files. Every score is a pair
(sum, count), so that examples, padding (count 0) and hosts can be added before the one division in
`mean`. What the pieces mean for a task (references, lower-casing, ChartQA's numbers) is in vqa.py.
"""

import math
from collections.abc import Iterable, Mapping

Score = tuple[float, int]


def exact_match(prediction: str, target: str) -> float:
  """1 for the same string, code point for code point; nothing is stripped or lower-cased."""
  return float(prediction == target)


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
  """Normalized Levenshtein similarity of ST-VQA (arXiv:1905.13648); 0 from half the text wrong."""
  if not target:
    return float(not prediction)
  distance = levenshtein(prediction, target) / max(len(prediction), len(target))
  return 1.0 - distance if distance < 0.5 else 0.0


def perplexity(nll_sum: float, weight_sum: float) -> dict[str, Score]:
  """One example's share of big_vision's perplexity metrics, both of them means over examples.

  `sum`: minus the log probability of the example's weighted tokens; `avg`: the same per token. The
  odd floor keeps an example without weights at 0 (big_vision evaluators/.../perplexity.py).
  """
  return {"sum": (nll_sum, 1), "avg": (nll_sum / max(weight_sum, 2e-38), 1)}


def mean(scores: Iterable[Mapping[str, Score]]) -> dict[str, float]:
  """Adds the (sum, count) pairs of each name and divides once.

  `math.fsum` is exact, so the result depends neither on the order of the examples nor on how they
  were spread over processes. Names whose count is 0 are left out: there is nothing to report.
  """
  sums: dict[str, list[float]] = {}
  counts: dict[str, int] = {}
  for score in scores:
    for name, (value, count) in score.items():
      sums.setdefault(name, []).append(value)
      counts[name] = counts.get(name, 0) + count
  return {name: math.fsum(sums[name]) / counts[name] for name in sums if counts[name]}
