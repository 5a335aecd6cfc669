"""Folders and disks: can this be written, is there room, what does an error of the disk mean?"""

import pathlib
import shutil


def free_bytes(path: pathlib.Path) -> int:
  """What the disk of `path`, or of the nearest folder above that exists, has free."""
  while not path.exists():
    path = path.parent
  return shutil.disk_usage(path).free
