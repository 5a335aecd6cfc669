"""Examples in memory as a source of data."""

from collections.abc import Mapping, Sequence
from typing import Any

from pgjax.data import images


class InMemory:
  """Questions in memory as a source: image (anything that images.py encodes) and prefix."""

  def __init__(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]):
    """`names` are what messages call each row."""
    self.rows, self.names = rows, names

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, i):
    return dict(self.rows[i], image=images.encoded(self.rows[i]["image"]))

  def texts(self, i):
    """The question without its image."""
    return {name: value for name, value in self.rows[i].items() if name != "image"}

  def where(self, i):
    """The question's name."""
    return self.names[i]
