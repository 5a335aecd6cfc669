"""Which examples are in a JSONL file and its folder of images?"""

import os
from collections.abc import Mapping
from typing import Any

from pgjax.data.sources import files
from pgjax.errors import UserError
from pgjax.formats import typed_json


class Jsonl:
  """One JSON object a line; `image` is a file or a list of them; `start` and `stop` select rows."""

  def __init__(self, fname, root=None, fopen_keys=None, split=None, start=None, stop=None):
    del split  # big_vision's configs may have one; a file is its own split.
    self.fname = os.path.expanduser(fname)
    if fopen_keys is not None:  # big_vision's name for root.
      root = fopen_keys["image"] if isinstance(fopen_keys, Mapping) else root
    self.root = os.path.abspath(os.path.expanduser(root or os.path.dirname(self.fname)))
    rows = list(self._read())[start:stop]
    if not rows:
      raise UserError(f"{self.fname} has no examples; each line is a JSON object with an image.")
    self._lines, self._rows = zip(*rows, strict=True)
    self._paths = [
      [files.inside(self.root, name, self._line(i)) for name in _listed(row["image"])]
      for i, row in enumerate(self._rows)
    ]

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    example = dict(self._rows[i])
    encoded = [files.file_bytes(path) for path in self._paths[i]]
    example["image"] = encoded if isinstance(example["image"], list) else encoded[0]
    example.setdefault("id", str(i))
    return example

  def texts(self, i):
    """The example with image names instead of bytes."""
    return {"id": str(i), **self._rows[i]}

  def where(self, i):
    """File and line."""
    return f"{self._line(i)} (image {self._rows[i]['image']})"

  def check_images(self):
    """Raises for the first missing image."""
    paths = ((path, self._line(i)) for i, group in enumerate(self._paths) for path in group)
    files.check_present(self.root, paths)

  def _line(self, i):
    return f"{self.fname}, line {self._lines[i]}"

  def _read(self):
    try:
      text = files.file_bytes(self.fname).decode()
    except UnicodeDecodeError as error:
      line = error.object[: error.start].count(b"\n") + 1
      raise UserError(f"{self.fname}, line {line}: this is not UTF-8 text.") from None
    for number, line in enumerate(text.split("\n"), 1):
      if line.strip():
        yield number, self._parse(line, number)

  def _parse(self, line, number):
    where = f"{self.fname}, line {number}"
    row = typed_json.decode(line, dict[str, Any], where, _bad_line)
    images = row.get("image")
    if images == [] or not all(isinstance(image, str) and image for image in _listed(images)):
      raise UserError(f"{where}: 'image' must be a file name (or a list of them), not {images!r}.")
    return row


def _listed(images) -> list:
  return images if isinstance(images, list) else [images]


def _bad_line(message: str) -> UserError:
  example = '{"image": "a.png", "prefix": "...", "suffix": "..."}'
  return UserError(f"{message} Each line is one JSON object such as {example}.")
