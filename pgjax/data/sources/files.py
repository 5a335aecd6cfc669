"""Which files may a data set name, and are they there?

A data set is somebody else's text: the images it names must lie in one folder.
"""

import os
import pathlib

from pgjax.errors import UserError


def inside(root: str, name: str, where: str, field: str = "root") -> str:
  """The path of `name` below `root`; `where` begins the sentence if it leads out of it.

  `field` is the one of the data set's description that sets root.
  """
  path = os.path.normpath(os.path.join(root, name))
  if os.path.commonpath([root, path]) != root or "\0" in name:
    raise UserError(
      f"{where}: image '{name}' lies outside of {root}; paths stay inside the folder of the file, "
      f"or set {field}= to the folder that holds the images."
    )
  return path


class Present:
  """Whether files exist; looks once into each folder, which matters on network disks."""

  def __init__(self, root: str):
    self._root, self._listed = root, {}

  def check(self, path: str, where: str) -> None:
    """Raises if the file is not there; `where` begins the sentence."""
    folder, name = os.path.split(path)
    if folder not in self._listed:
      self._listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    if name not in self._listed[folder]:
      image = os.path.relpath(path, self._root)
      raise UserError(f"{where}: image '{image}' is not in {self._root}.")


def file_bytes(path: str | pathlib.Path) -> bytes:
  """The whole file."""
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
