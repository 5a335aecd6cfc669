"""Which images are in a folder, and how large are they?"""

import os
from collections.abc import Container, Iterable, Sequence
from concurrent import futures
from typing import NamedTuple

from pgjax.data import images
from pgjax.errors import UserError, naming
from pgjax.formats import input_files

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
MAX_DEPTH = 10
_UNREAD = (  # Pictures whose names do not end as those that are read.
  *(".avif", ".dng", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".mpo", ".pgm", ".psd"),
  ".svg",
)
_HEAD_BYTES = 1 << 16  # Mostly enough for the size in a header.
_THREADS = 16
_MAX_NAMED = 5  # Files that a message lists.


def is_image(name: str) -> bool:
  """Whether the name ends as an image's does."""
  return name.lower().endswith(ENDINGS)


def walk(folder: str, endings: tuple[str, ...] = ENDINGS, depth: int = MAX_DEPTH) -> list[str]:
  """Paths of the files with these endings, relative to the folder, sorted; hidden ones are not."""
  return listing(folder, endings, depth).names


class Listing(NamedTuple):
  """Paths relative to a folder."""

  names: list[str]
  unread: list[str]  # Pictures of other formats, links to folders, and folders that are too deep.

  @property
  def left_out(self) -> str:
    """What `unread` has, such as "2 of other kinds (a.heic, ...)"; empty without."""
    more = ", ..." * (len(self.unread) > _MAX_NAMED)
    named = ", ".join(self.unread[:_MAX_NAMED]) + more
    return f"{len(self.unread):,} that are not read ({named})" if self.unread else ""


def listing(folder: str, endings: tuple[str, ...] = ENDINGS, depth: int = MAX_DEPTH) -> Listing:
  """The files of `walk`, and what looks like more of them."""
  found = Listing([], [])
  for entry in sorted(input_files.entries(folder)):
    name = entry.name
    if name.startswith((".", "__MACOSX")):
      continue
    if name.lower().endswith(endings) and not entry.is_folder:
      found.names.append(name)
    elif entry.is_folder and depth and not entry.is_link:
      inner = listing(os.path.join(folder, name), endings, depth - 1)
      for ours, theirs in zip(found, inner, strict=True):
        ours += [os.path.join(name, one) for one in theirs]
    elif entry.is_folder or name.lower().endswith(_UNREAD):
      found.unread.append(name)
  return found


def sizes(paths: Sequence[str], wheres: Iterable[str]) -> list[tuple[int, int]]:
  """(width, height) of each image, from its header."""

  def size(path, where):
    with naming(where):
      try:
        return images.size(input_files.head(path, _HEAD_BYTES))
      except (OSError, UserError):  # A header may be longer, as with a large profile.
        return images.size(input_files.file_bytes(path))

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(size, paths, wheres))


def nearest(available: Container[str], name: str, of: str) -> str:
  """The image that a file of labels names, as a name in its folder; `of`: the file's own name.

  Tools write a path of another machine there, or leave the old name of an image that was renamed:
  then an image there of the same name, or of the name of the file, is taken.
  """
  name = name.replace("\\", "/")
  base, (folder, stem) = name.rsplit("/", 1)[-1], (os.path.dirname(of), os.path.splitext(of)[0])
  near = [os.path.normpath(os.path.join(folder, one)) for one in (name, base)]
  near += [name, base, *(stem + ending for ending in ENDINGS)]
  return next((one for one in near if one in available), near[0])


def without(what: str, available: Iterable[str], used: Iterable[str]) -> dict[str, int]:
  """{"images without an XML file": 3} of the images that no label file is of; {} if none is."""
  count = len(set(available) - set(used))
  return {f"image{'s' * (count > 1)} without {what}": count} if count else {}


def check_unique(keys: Iterable[str], names: Iterable[str]) -> None:
  """Raises if two images have one file of labels, as 1.jpg and 1.png have 1.txt."""
  first: dict[str, str] = {}
  for key, name in zip(keys, names, strict=True):
    if (other := first.setdefault(key, name)) != name:
      raise UserError(f"{other} and {name} both have the labels {key}; rename one of them.")
