"""Which rows are in a file of examples: JSONL, a JSON list, CSV or TSV?

Each row comes with the number of its line (or entry), and errors name it. All texts are UTF-8.
"""

import collections
import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from pgjax.data import signatures
from pgjax.data.sources import files
from pgjax.errors import UserError, cut
from pgjax.formats import input_files, typed_json

ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
WANTED = 'each line is one JSON object such as {"image": "a.png", "prefix": "...", "suffix": "..."}'
_MAX_CELL = 16 << 20  # Characters of one cell of a CSV file.


class RowFile:
  """The rows of a file, iterated over once: (number, row); `unit` is "line" or "entry" then."""

  def __init__(self, fname: str, *, as_csv: bool = False):
    self.fname, self.unit = fname, "line"
    self._as_csv = as_csv or fname.lower().endswith((".csv", ".tsv"))

  def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
    data = files.file_bytes(self.fname, most=input_files.MAX_TEXT_BYTES)
    if kind := signatures.of(data):
      wanted = "a CSV file is text" if self._as_csv else WANTED
      raise UserError(f"{self.fname} is {kind.name}; {wanted}{kind.as_rows}.")
    text = typed_json.text(data, self.fname)
    del data
    if self._as_csv and "\0" in text:
      raise UserError(f"{self.fname} has NUL characters, as UTF-16 text has; it must be UTF-8.")
    yield from self._csv(text) if self._as_csv else self._json(text)

  def at(self, number: int) -> str:
    """File and line."""
    return f"{self.fname}, {self.unit} {number}"

  def _json(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if text.lstrip()[:1] == "[":
      self.unit = "entry"
      rows = typed_json.decode(text, list[Any], self.fname, _bad_list)
      for number, row in enumerate(rows, 1):
        typed = typed_json.check(row, dict[str, Any], self.at(number), _bad_line)
        yield number, self._checked(typed, number)
      return
    for number, line in enumerate(text.split("\n"), 1):
      if line.strip():
        row = typed_json.decode(line, dict[str, Any], self.at(number), _bad_line)
        yield number, self._checked(row, number)

  def _checked(self, row: dict[str, Any], number: int) -> dict[str, Any]:
    if {"images", "annotations"} <= row.keys():
      raise UserError(
        f"{self.at(number)} is a whole COCO file: name it as dict(name='coco', fname=...)."
      )
    return row

  def _csv(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    delimiter = "\t" if self.fname.lower().endswith(".tsv") else _delimiter(text)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    csv.field_size_limit(_MAX_CELL)
    header, last = None, 0
    try:
      for cells in rows:
        number, last = last + 1, rows.line_num
        if not cells:
          continue
        if header is None:
          header = self._header([name.strip() for name in cells], number)
        elif len(cells) != len(header):
          raise UserError(
            f"{self.at(number)}: it has {len(cells)} cells, and the first line names"
            f" {len(header)} columns, {cut(', '.join(header))}; a cell with a {delimiter!r} or a"
            " line break is written in double quotes."
          )
        else:
          yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
      raise UserError(f"{self.at(last + 1)}: not CSV ({error}).") from None

  def _header(self, names: list[str], number: int) -> list[str]:
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated or "" in names:
      fault = f"has {repeated[0]!r} twice" if repeated and repeated[0] else "has one without a name"
      raise UserError(
        f"{self.at(number)}: the first line of a CSV file names its columns, and it {fault}:"
        f" {cut(', '.join(names))}."
      )
    return names


def _delimiter(text: str) -> str:
  """The most frequent one in the first line, outside of quotes; a comma if there is none."""
  first = re.sub(r'"[^"]*"', "", text.lstrip("\n\r").split("\n", 1)[0])
  return max((",", ";", "\t"), key=first.count)


def _bad_list(message: str) -> UserError:
  return UserError(f"{message} It begins as one JSON list of all rows.")


def _bad_line(message: str) -> UserError:
  return UserError(f"{message} {WANTED[0].upper()}{WANTED[1:]}.")
