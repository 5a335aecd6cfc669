"""How uncertain is a score? The percentile bootstrap (Efron 1979).

It assumes independent rows: with several questions on one image the interval is too narrow.
"""

from collections.abc import Mapping, Sequence

import numpy as np

DRAWS = 1_000
LEVEL = 0.95
_BLOCK_NUMBERS = 1 << 21  # Indices in memory at a time.


def intervals(
  parts: Sequence[Mapping[str, tuple[float, float]]], *, seed: int = 0
) -> dict[str, tuple[float, float]]:
  """{name: (low, high)}: the middle 95% of DRAWS resamples of the rows' (sum, count).

  All scores use the same draws. A score that some row lacks, or whose count is 0, has no interval.
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
  bounds = {}
  for i, name in enumerate(names):
    sums, counts = sums_DN2[:, i, 0], sums_DN2[:, i, 1]
    if values_RN2[:, i, 1].any():
      means = sums[counts > 0] / counts[counts > 0]
      tail = (1 - LEVEL) / 2
      bounds[name] = tuple(np.quantile(means, [tail, 1 - tail]).tolist())
  return bounds
