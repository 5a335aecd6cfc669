"""Which examples are in a folder with a folder of images for each class?

dict(name="folder", fname="data/train", prompt="which animal?") yields image, `label` (the name of
the folder, which is also the suffix), file_name and id.
"""

import os

from pgjax.data.sources import image_folder, table
from pgjax.data.sources.columns import Columns
from pgjax.errors import UserError
from pgjax.formats import input_files

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
_METADATA = ("metadata.jsonl", "metadata.csv")  # Of Hugging Face's imagefolder.


class ClassFolders(table.Table):
  """One example for each image, in the order of the classes, then of the files.

  prompt: the prefix of all rows. names: {folder: text}, where answers differ from the names of
  the folders.
  """

  def __init__(self, fname, split=None, prompt=None, names=None, start=None, stop=None):
    root = os.path.abspath(os.path.expanduser(fname))
    if split is not None:
      root = input_files.inside(root, split, f"split={split!r}", what="folder")
    found = image_folder.listing(root)
    listed = found.names
    loose = [name for name in listed if os.sep not in name]
    metadata = next((n for n in _METADATA if input_files.exists(os.path.join(root, n))), None)
    if metadata or loose:
      advice = (
        f"it has {metadata}: read that file, with name='{'csv' if 'csv' in metadata else 'jsonl'}'"
        if metadata
        else f"{len(loose):,} images, such as {loose[0]!r}, are in no folder of a class"
      )
      raise UserError(f"{root} is not a folder with a folder for each class: {advice}.")
    self._check_split(root, listed)
    rows = [self._row(name, names or {}) for name in listed]
    super().__init__(
      root,
      list(enumerate(rows, 1))[start:stop],
      lambda number: os.path.join(root, listed[number - 1]),
      root=root,
      columns=Columns(prompt=prompt),
      wanted="it needs a folder of images for each class",
    )
    self.fname = os.path.join(root, "")  # Caches are inside of it.
    self.omitted = found.left_out
    if self.omitted:
      table.log.warning("%s: left out are %s.", root, self.omitted)

  @staticmethod
  def _check_split(root: str, listed: list[str]) -> None:
    """Raises if the folders are splits, each with folders of classes in it."""
    parts = [name.split(os.sep) for name in listed]
    top = sorted({part[0] for part in parts})
    if parts and set(top) <= _SPLITS and all(len(part) > 2 for part in parts):
      raise UserError(
        f"{root} has the splits {', '.join(top)}, each with folders of classes: choose one, with"
        f" split={top[0]!r}."
      )

  def _row(self, name: str, names: dict[str, str]) -> dict[str, str]:
    label = name.split(os.sep)[0]
    if names and label not in names:
      raise UserError(f"names= has no text for the folder {label!r}; it has {', '.join(names)}.")
    text = names.get(label, label)
    return dict(image=name, label=text, suffix=text, file_name=name, id=name)
