"""Which images are in a folder, and how large are they?"""

import os
from collections.abc import Iterable, Sequence
from concurrent import futures

from pgjax.data import images
from pgjax.errors import UserError, naming
from pgjax.formats import input_files

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
MAX_DEPTH = 10
_HEAD_BYTES = 1 << 16  # Mostly enough for the size in a header.
_THREADS = 16


def is_image(name: str) -> bool:
  """Whether the name ends as an image's does."""
  return name.lower().endswith(ENDINGS)


def walk(folder: str, endings: tuple[str, ...] = ENDINGS, depth: int = MAX_DEPTH) -> list[str]:
  """Paths of the files with these endings, relative to the folder, sorted; hidden ones are not."""
  names = []
  for name in sorted(input_files.names(folder)):
    if name.startswith((".", "__MACOSX")):
      continue
    path = os.path.join(folder, name)
    if name.lower().endswith(endings):
      names.append(name)
    elif depth and os.path.isdir(path) and not os.path.islink(path):
      names += [os.path.join(name, inner) for inner in walk(path, endings, depth - 1)]
  return names


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
