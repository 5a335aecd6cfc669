"""Which files may a data set name, and do they exist? Only images below one folder are read."""

import functools
import os
import pathlib
from collections.abc import Iterable

from pgjax.errors import UserError


def inside(root: str, name: str, where: str, field: str = "root") -> str:
  """The path of `name` below `root`, which `field` of a data set sets; raises if it is outside."""
  path = os.path.normpath(os.path.join(root, name))
  if os.path.commonpath([root, path]) != root or "\0" in name:
    raise UserError(
      f"{where}: image '{name}' is outside of {root}; paths must be below the folder of the file, "
      f"or set {field}= to the folder of the images."
    )
  return path


def check_present(root: str, paths: Iterable[tuple[str, str]]) -> None:
  """Raises for the first missing (path, start of the error); lists each folder only once."""
  listed = functools.cache(lambda folder: set(os.listdir(folder)) if os.path.isdir(folder) else ())
  for path, where in paths:
    folder, name = os.path.split(path)
    if name not in listed(folder):
      raise UserError(f"{where}: image '{os.path.relpath(path, root)}' is not in {root}.")


def file_bytes(path: str | pathlib.Path) -> bytes:
  """The content of the file."""
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
