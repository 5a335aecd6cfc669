"""Intervals of scores: against formulas, and invariances."""

import numpy as np
import pytest

from pgjax.metrics import interval


def test_the_interval_of_a_share_equals_the_normal_approximation():
  right = np.arange(4_000) % 5 > 0  # 80%.
  low, high = interval.intervals([dict(acc=(float(r), 1)) for r in right])["acc"]
  half = 1.96 * np.sqrt(0.8 * 0.2 / len(right))
  assert low == pytest.approx(0.8 - half, abs=0.1 * half)
  assert high == pytest.approx(0.8 + half, abs=0.1 * half)


def test_a_ratio_is_drawn_as_a_ratio():
  """Sum and count are drawn together: where all rows have one ratio, nothing is uncertain."""
  rows = [dict(avg=(3.0 * n, float(n))) for n in range(1, 50)]
  assert interval.intervals(rows)["avg"] == (3.0, 3.0)


def test_draws_are_seeded_and_do_not_depend_on_the_size_of_a_block(monkeypatch):
  rows = [dict(a=(float(i % 3), 1), b=(float(i % 7), 2)) for i in range(200)]
  whole = interval.intervals(rows)
  monkeypatch.setattr(interval, "_BLOCK_NUMBERS", 3 * len(rows))
  assert interval.intervals(rows) == whole
  assert interval.intervals(rows, seed=1) != whole


def test_scores_that_rows_lack_or_do_not_count_have_no_interval():
  rows = [dict(a=(1, 1), b=(1, 1), c=(0, 0)), dict(a=(0, 1), c=(0, 0))]
  assert interval.intervals(rows).keys() == {"a"}
  assert interval.intervals([]) == {}
