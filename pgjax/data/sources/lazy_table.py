"""A source of rows that stay on the disk until they are read, such as Arrow's and tar files'.

`rows` has len, [i] (all columns), texts(i) (without encoded images) and at(i) (for messages).
"""

import hashlib
import os
from typing import Any, Protocol

from pgjax.data.sources import files, foreign_rows, image_values
from pgjax.data.sources.columns import Columns
from pgjax.errors import UserError

_MAX_IDS = 1_000_000  # Ids of images that are compared.


class Rows(Protocol):
  """Rows by number."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> dict[str, Any]:
    """All columns."""

  def texts(self, i: int) -> dict[str, Any]:
    """The columns without encoded images; an image is a dict with its path, or missing.

    The dict has "bytes" (None) if the path is that of a file.
    """

  def at(self, i: int) -> str:
    """The start of an error about row i."""


class LazyTable:
  """One example a row; names of images are looked up below `root`."""

  def __init__(
    self,
    fname: str,
    rows: Rows,
    *,
    root: str,
    columns: Columns,
    start: int | None = None,
    stop: int | None = None,
    allow_urls: bool = False,
  ):
    self.fname, self.root = fname, os.path.abspath(root)
    self._rows, self._indices = rows, range(len(rows))[start:stop]
    self._columns, self._allow_urls = columns, allow_urls
    if not self._indices:
      raise UserError(f"{self.fname} has no examples.")
    self._paths: dict[str, str] = {}  # Of names of files.
    self._digests: dict[int | str, tuple[bytes, int]] = {}  # Of the image of each image_id.
    first = self._rows[self._indices[0]]  # Reports a wrong column before a run.
    self._row(first, 0)

  def __len__(self):
    return len(self._indices)

  def __getitem__(self, i):
    row = self._row(self._rows[self._indices[i]], i)
    values, several = image_values.of_row(row, self._line(i), allow_urls=self._allow_urls)
    encoded = [image_values.read(value, self._path(value, i)) for value in values]
    self._check_image_id(row.get("image_id"), encoded, i)
    return row | {"image": encoded if several else encoded[0]}

  def texts(self, i):
    """The example without encoded images."""
    row = self._row(self._rows.texts(self._indices[i]), i, is_whole=False)
    if isinstance(image := row.get("image"), dict):
      row["image"] = image.get("path")
      if image.get("path") is None and "bytes" not in image:
        del row["image"]  # Its bytes are in the row, and have no name.
    return row

  def where(self, i):
    """File and row."""
    return self._line(i)

  def check_images(self):
    """Raises for the first missing file; images inside of the rows are not read."""
    if not getattr(self._rows, "names_files", True):
      return
    named = []
    for i in range(len(self)):
      row = self._row(self._rows.texts(self._indices[i]), i, is_whole=False)
      value = row.get("image")
      if isinstance(value, str | list) or (isinstance(value, dict) and "bytes" in value):
        values, _ = image_values.of(value, self._line(i), allow_urls=self._allow_urls)
        named += [(v.name, self._line(i)) for v in values if isinstance(v, image_values.File)]
    paths = files.locate(self.root, named, self.fname or self.root)
    files.check_present(self.root, zip(paths, (where for _, where in named), strict=True))
    self._paths = {name: path for (name, _), path in zip(named, paths, strict=True)}

  def _check_image_id(self, key, encoded: list[bytes], i: int) -> None:
    """Raises if one `image_id` has different images: their rows would be scored as one image."""
    if not isinstance(key, int | str):
      return
    digest = hashlib.blake2b(b"".join(encoded), digest_size=8).digest()
    if key not in self._digests and len(self._digests) >= _MAX_IDS:
      return
    other, first = self._digests.setdefault(key, (digest, i))
    if other != digest:
      raise UserError(
        f"{self._line(first)} and {self._line(i)} have the same image_id {key!r} and different"
        " images; give each image its own."
      )

  def _line(self, i):
    return self._rows.at(self._indices[i])

  def _row(self, row: dict[str, Any], i: int, *, is_whole: bool = True) -> dict[str, Any]:
    where = self._line(i)
    columns = self._columns
    if not is_whole and columns.image not in row:
      columns = columns._replace(image=None)
    adapter = foreign_rows.Adapter(columns)
    rows = adapter.rows(row, where, str(i))
    adapter.check()
    return rows[0] if rows[0].get("id") is not None else {**rows[0], "id": str(i)}

  def _path(self, value: image_values.Value, i: int) -> str | None:
    if not isinstance(value, image_values.File):
      return None
    if value.name not in self._paths:
      where = self._line(i)
      (path,) = files.locate(self.root, [(value.name, where)], self.fname or self.root)
      self._paths[value.name] = path
    return self._paths[value.name]
