"""How is a CSV, or a list with one value a line, of a download read?"""

import csv
import io
from collections.abc import Iterator

from pgjax.datasets import base
from pgjax.errors import cut


def rows(
  raw: base.Raw, name: str, columns: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, str]]]:
  """(line, row) of a CSV whose first line names at least these columns."""
  reader = csv.DictReader(io.StringIO(raw.text(name), newline=""), strict=True)
  try:
    names = reader.fieldnames or ()
    lacks = [column for column in columns if column not in names]
    raw.check(
      not lacks, name, f"it has no column {', '.join(lacks)}; it has {cut(', '.join(names))}"
    )
    for row in reader:
      whole = None not in row and None not in row.values()
      message = f"this row does not have {len(names)} columns, as in half of a download"
      raw.check(whole, f"{name}, line {reader.line_num}", message)
      yield reader.line_num, row
  except csv.Error as error:
    raw.check(False, f"{name}, line {reader.line_num}", f"this is not CSV ({error})")


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
