"""Which examples are in a JSONL file and its folder of images?"""

import collections
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pgjax.data.sources import files, foreign_rows, row_files
from pgjax.errors import UserError

log = logging.getLogger("pgjax")


class Jsonl:
  """One JSON object a line; `image` is a file or a list of them; `start` and `stop` select rows.

  A JSON list of such objects is read too, and rows of other programs with one meaning
  (foreign_rows.py).
  """

  def __init__(self, fname, root=None, fopen_keys=None, split=None, start=None, stop=None):
    del split  # big_vision's configs may have one; a file is its own split.
    self.fname = os.path.expanduser(fname)
    if fopen_keys is not None:  # big_vision's name for root.
      root = fopen_keys["image"] if isinstance(fopen_keys, Mapping) else root
    self.root = os.path.abspath(os.path.expanduser(root or os.path.dirname(self.fname)))
    self._file = row_files.RowFile(self.fname)
    self._adapted: collections.Counter[str] = collections.Counter()
    rows = list(self._read())[start:stop]
    if not rows:
      raise UserError(f"{self.fname} has no examples; {row_files.WANTED}.")
    if self._adapted:
      counts = ", ".join(f"{what} ({count:,})" for what, count in self._adapted.items())
      log.warning("%s, of %d rows: %s.", self.fname, len(rows), counts)
    self._numbers, self._rows = zip(*rows, strict=True)
    names = [_listed(row["image"]) for row in self._rows]
    named = ((name, self._line(i)) for i, group in enumerate(names) for name in group)
    paths = iter(files.locate(self.root, named, self.fname))
    self._paths = [[next(paths) for _ in group] for group in names]
    self._check_image_ids()

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    example = self.texts(i)
    encoded = [files.file_bytes(path) for path in self._paths[i]]
    example["image"] = encoded if isinstance(example["image"], list) else encoded[0]
    return example

  def texts(self, i):
    """The example with image names instead of bytes."""
    example = {"id": str(i), **self._rows[i]}
    return example if example["id"] is not None else example | {"id": str(i)}

  def where(self, i):
    """File and line."""
    return f"{self._line(i)} (image {self._rows[i]['image']})"

  def check_images(self):
    """Raises for the first missing image."""
    paths = ((path, self._line(i)) for i, group in enumerate(self._paths) for path in group)
    files.check_present(self.root, paths)

  def _line(self, i):
    return self._file.at(self._numbers[i])

  def _check_image_ids(self):
    """Raises if one `image_id` has different images: their rows would be scored as one image."""
    first: dict[Any, int] = {}
    for i, row in enumerate(self._rows):
      key = row.get("image_id")
      if isinstance(key, int | str) and self._paths[first.setdefault(key, i)] != self._paths[i]:
        raise UserError(
          f"{self.where(first[key])} and {self.where(i)} have the same image_id {key!r} and"
          " different images; give each image its own."
        )

  def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in self._file:
      yield number, self._checked(row, self._file.at(number))

  def _checked(self, row, where) -> dict[str, Any]:
    row, notes = foreign_rows.adapted(row, where)
    self._adapted.update(notes)
    images = row.get("image")
    if images is None and isinstance(row.get("video"), str):
      raise UserError(
        f"{where} names a video: read the file as dict(name='video', fname=..., num_frames=...)."
      )
    if images == [] or not all(isinstance(image, str) and image for image in _listed(images)):
      raise UserError(f"{where}: 'image' must be a file name (or a list of them), not {images!r}.")
    return row


def _listed(images) -> list:
  return images if isinstance(images, list) else [images]
