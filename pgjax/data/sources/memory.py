"""How are questions in memory a source of data?"""

from collections.abc import Mapping, Sequence
from typing import Any

from pgjax.data import images


class InMemory:
  """Rows with a prefix and an image for images.encoded; `names` are for messages."""

  # Rows of pgjax itself may have tokens, under names that loader.py reserves.
  own_columns = frozenset({"mask_ar", "mask_loss", "mask_input"})

  def __init__(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]):
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
