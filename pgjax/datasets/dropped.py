"""Which rows of a download are not prepared, and why? Counted, and reported once a split."""

import logging

_log = logging.getLogger("pgjax.prepare")


class Dropped:
  """Used as a context: its end logs a warning for each reason, with the first row."""

  def __init__(self, name: str, part: str | None, split: str):
    self._of = f"{name if part is None else f'{name}/{part}'} {split}"
    self._reasons: dict[str, tuple[int, str]] = {}

  def add(self, reason: str, row: object) -> None:
    """One more row without a record."""
    count, first = self._reasons.get(reason, (0, str(row)))
    self._reasons[reason] = count + 1, first

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    for reason, (count, first) in self._reasons.items() if kind is None else ():
      _log.warning("%s: %d dropped: %s (the first: %s)", self._of, count, reason, first)
