"""A source of rows in memory, whose images are files below a folder (or URLs, or in the rows)."""

import collections
import logging
import os
from collections.abc import Iterable
from typing import Any

from pgjax.data.sources import columns as columns_lib, files, foreign_rows, image_values
from pgjax.errors import UserError

log = logging.getLogger("pgjax")


class Table:
  """One example a row.

  rows: (number, row), where at(number) is the start of an error; row by row, a row may become
  several or none (foreign_rows.py). `image` is looked up below `root`.
  """

  def __init__(
    self,
    fname: str,
    rows: Iterable[tuple[int, dict[str, Any]]],
    at,
    *,
    root: str,
    columns: columns_lib.Columns,
    wanted: str,
    allow_urls: bool = False,
    multi_turn: str = "refuse",
  ):
    self.fname, self.root, self._at = fname, os.path.abspath(os.path.expanduser(root)), at
    adapter = foreign_rows.Adapter(columns, multi_turn)
    numbered = [
      (number, one) for number, row in rows for one in adapter.rows(row, at(number), str(number))
    ]
    adapter.check()
    if not numbered:
      raise UserError(f"{self.fname} has no examples; {wanted}.")
    self.omitted = adapter.omitted
    self.read_as: list[str] = []
    self._note(adapter.notes, len(numbered))
    self._numbers, self._rows = zip(*numbered, strict=True)
    self._images = [
      image_values.of_row(row, self._line(i), allow_urls=allow_urls)
      for i, row in enumerate(self._rows)
    ]
    named = [
      (value.name, self._line(i))
      for i, (values, _) in enumerate(self._images)
      for value in values
      if isinstance(value, image_values.File)
    ]
    paths = iter(files.locate(self.root, named, self.fname, read_as=self.read_as))
    self._paths = [
      [next(paths) if isinstance(value, image_values.File) else None for value in values]
      for values, _ in self._images
    ]
    self._check_image_ids()

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    example, (values, several) = self.texts(i), self._images[i]
    encoded = [image_values.read(*pair) for pair in zip(values, self._paths[i], strict=True)]
    return example | {"image": encoded if several else encoded[0]}

  def texts(self, i):
    """The example with image names instead of bytes."""
    row, (values, several) = self._rows[i], self._images[i]
    names = [image_values.name(value) for value in values]
    example = {"id": str(i), **row, "image": names if several else names[0]}
    return example if example["id"] is not None else example | {"id": str(i)}

  def where(self, i):
    """File and line."""
    return f"{self._line(i)} (image {self.texts(i)['image']})"

  def check_images(self):
    """Raises for the first missing image."""
    paths = ((path, self._line(i)) for i, group in enumerate(self._paths) for path in group if path)
    files.check_present(self.root, paths)

  def _line(self, i):
    return self._at(self._numbers[i])

  def _note(self, notes: collections.Counter, total: int) -> None:
    if notes:
      self.read_as.append(", ".join(f"{what} ({count:,})" for what, count in notes.items()))
      log.warning("%s, of %d rows: %s.", self.fname, total, self.read_as[-1])
    if self.omitted:
      log.warning("%s: left out are %s.", self.fname, self.omitted)

  def _check_image_ids(self):
    """Raises if one `image_id` has different images: their rows would be scored as one image."""
    first: dict[Any, int] = {}
    for i, row in enumerate(self._rows):
      key = row.get("image_id")
      if not isinstance(key, int | str):
        continue
      k = first.setdefault(key, i)
      if (self._paths[k], self._images[k]) != (self._paths[i], self._images[i]) and (
        None in self._paths[i] or self._paths[k] != self._paths[i]
      ):
        raise UserError(
          f"{self.where(k)} and {self.where(i)} have the same image_id {key!r} and different"
          " images; give each image its own."
        )
