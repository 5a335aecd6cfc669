"""How far would a score move if the split had other examples? The bootstrap's answer.

Rows are drawn again with replacement, as many as there are, and the score of each draw is its sum
over its count; the middle 95% of the draws is the interval (the percentile bootstrap: Efron 1979).
It takes rows as independent of each other: questions on one image are not quite, so it is too
narrow there.
"""

from collections.abc import Mapping, Sequence

import numpy as np

DRAWS = 1_000
LEVEL = 0.95
_BLOCK_NUMBERS = 1 << 21  # Indices in memory at a time.


def intervals(
  parts: Sequence[Mapping[str, tuple[float, float]]], *, seed: int = 0
) -> dict[str, tuple[float, float]]:
  """{name: (low, high)} of each score that rows have, from every row's (sum, count).

  All scores are of the same draws, so their intervals can be compared. A score that some row lacks,
  or that is counted nowhere, gets none.
  """
  names = [name for name in (parts[0] if parts else ()) if all(name in row for row in parts)]
  if not names:
    return {}
  values_RN2 = np.array([[row[name] for name in names] for row in parts], np.float64)
  num_rows, rng = len(parts), np.random.default_rng(seed)
  block = max(1, _BLOCK_NUMBERS // num_rows)
  drawn = []
  for start in range(0, DRAWS, block):
    size = (min(block, DRAWS - start), num_rows)
    picked = rng.integers(num_rows, size=size, dtype=np.int32)
    drawn.append([values_RN2[rows].sum(axis=0) for rows in picked])
  sums_DN2 = np.concatenate(drawn)
  found = {}
  for i, name in enumerate(names):
    sums, counts = sums_DN2[:, i, 0], sums_DN2[:, i, 1]
    if values_RN2[:, i, 1].any():
      means = sums[counts > 0] / counts[counts > 0]
      tail = (1 - LEVEL) / 2
      low, high = np.quantile(means, [tail, 1 - tail])
      found[name] = (float(low), float(high))
  return found
