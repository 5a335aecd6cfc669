"""How is a CSV, or a list with one value a line, of a download read?"""

import csv
import io
import logging
from collections.abc import Iterator

from pgjax.datasets import base
from pgjax.errors import cut

_log = logging.getLogger("pgjax.prepare")
_CUT_SHORT = "unexpected end of data"  # Of the csv module, for quotes that do not end.


def rows(
  raw: base.Raw, name: str, columns: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, str]]]:
  """(line, row) of a CSV whose first line names at least these columns.

  Quotes are read as builders do, with Python's csv module; what is beyond the columns is left out
  as there, and counted.
  """
  text = raw.text(name)
  reader = csv.DictReader(io.StringIO(text, newline=""), strict=_is_strict(text))
  longer = 0
  try:
    names = reader.fieldnames or ()
    lacks = [column for column in columns if column not in names]
    raw.check(
      not lacks, name, f"it has no column {', '.join(lacks)}; it has {cut(', '.join(names))}"
    )
    for row in reader:
      message = f"this row does not have {len(names)} columns, as in half of a download"
      raw.check(None not in row.values(), f"{name}, line {reader.line_num}", message)
      longer += row.pop(None, None) is not None
      yield reader.line_num, row
  except csv.Error as error:
    raw.check(False, f"{name}, line {reader.line_num}", f"this is not CSV ({error})")
  if longer:
    _log.warning("%s: %d rows have more columns than names, which are left out", name, longer)


def _is_strict(text: str) -> bool:
  """Whether to raise for quotes that do not end: not if others are odd, which builders accept."""
  try:
    for _ in csv.reader(io.StringIO(text, newline=""), strict=True):
      pass
  except csv.Error as error:
    return str(error) == _CUT_SHORT
  return True


def lines(raw: base.Raw, name: str) -> Iterator[tuple[int, str]]:
  """(number from 1, text without spaces at its ends) of each line that is not empty."""
  for number, line in enumerate(raw.text(name).splitlines(), 1):
    if line.strip():
      yield number, line.strip()


def whole_number(raw: base.Raw, text: str, where: str) -> int:
  """A number of up to nine digits."""
  whole = text.isascii() and text.isdigit() and len(text) < 10
  raw.check(whole, where, f"{cut(text)!r} is not a whole number below a billion")
  return int(text)
