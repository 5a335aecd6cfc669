"""Which examples are in WebDataset's tar files?

dict(name="webdataset", fname="data/train-{000..009}.tar"): files of one name with different endings
are one example, such as 0001.jpg with 0001.json (its columns) and 0001.txt (column "txt"). The
headers of the tar files are read once; rows are then read at their offsets, at random. A tar file
that is compressed as a whole cannot be.
"""

import glob
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pgjax.data import signatures
from pgjax.data.sources import image_folder, lazy_table
from pgjax.data.sources.columns import Columns
from pgjax.errors import UserError, cut
from pgjax.formats import input_files, typed_json

_MAX_TAR_BYTES = 1 << 42
_MAX_TEXT_BYTES = 16 << 20  # Of a member that is no image.
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class WebDataset(lazy_table.LazyTable):
  """One example a name. Columns: `image`, those of the JSON, and texts by their ending.

  image, prefix, suffix, id: the columns with these, such as image="jpg", suffix="txt"; prompt: all
  prefixes. `id` is the name without its ending.
  """

  def __init__(
    self,
    fname,
    split=None,
    start=None,
    stop=None,
    image=None,
    prefix=None,
    suffix=None,
    id=None,
    prompt=None,
  ):
    del split  # A pattern of files is its own split.
    fname = os.path.expanduser(fname)
    super().__init__(
      fname,
      TarRows(tar_files(fname)),
      root=os.path.dirname(fname),
      columns=Columns(image, prefix, suffix, id, prompt),
      start=start,
      stop=stop,
    )


class _Member(NamedTuple):
  ending: str  # In lower case, without the dot.
  offset: int
  size: int


class TarRows:
  """The examples of tar files, in order."""

  names_files = False

  def __init__(self, paths: list[str]):
    self._paths = paths
    self._rows: list[tuple[int, str, list[_Member]]] = []  # Which file, name, members.
    for k, path in enumerate(paths):
      seen: set[str] = set()
      for key, members in _examples(path):
        if key in seen:
          raise UserError(f"{path} has the files of {key!r} at two places; they must be together.")
        seen.add(key)
        self._rows.append((k, key, members))

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    return self._columns(i, with_images=True)

  def texts(self, i):
    """The columns without images."""
    return self._columns(i, with_images=False)

  def at(self, i):
    """Tar file and name."""
    k, key, _ = self._rows[i]
    return f"{self._paths[k]}, {key}"

  def _columns(self, i: int, *, with_images: bool) -> dict[str, Any]:
    k, key, members = self._rows[i]
    images, columns = {}, {}
    for member in members:
      if f".{member.ending.rpartition('.')[2]}" in image_folder.ENDINGS:
        images[member.ending] = (
          input_files.part(self._paths[k], member.offset, member.size) if with_images else None
        )
        continue
      where = f"{self.at(i)}.{member.ending}"
      if member.size > _MAX_TEXT_BYTES:
        raise UserError(f"{where} has {member.size:,} bytes; up to {_MAX_TEXT_BYTES:,} are read.")
      data = input_files.part(self._paths[k], member.offset, member.size)
      own = (
        typed_json.decode(data, dict[str, Any], where)
        if member.ending == "json"
        else {member.ending: typed_json.text(data, where).strip()}
      )
      if twice := [name for name in own if name in columns and own[name] != columns[name]]:
        raise UserError(
          f"{self.at(i)}: {twice[0]!r} is a column of its .json and a file of its own; rename one."
        )
      columns |= own
    if with_images:
      columns |= images
      if len(images) == 1:
        columns["image"] = next(iter(images.values()))
    return {"id": key, **columns} if columns.get("id") is None else columns


def tar_files(fname: str) -> list[str]:
  """The files of a name with {000..009} or *; raises if there are none."""
  if braces := _BRACES.search(fname):
    first, last = braces[1], braces[2]
    if int(last) - int(first) > 1_000_000:
      raise UserError(f"{fname} names more than a million files.")
    numbers = range(int(first), int(last) + 1)
    names = (f"{fname[: braces.start()]}{n:0{len(first)}d}{fname[braces.end() :]}" for n in numbers)
    return list(itertools.chain.from_iterable(map(tar_files, names)))
  if input_files.is_folder(fname):
    fname = os.path.join(fname, "*.tar")
  paths = input_files.matching(fname) if glob.has_magic(fname) else [fname]
  if not paths:
    raise UserError(f"{fname} has no tar files.")
  return paths


def _members(path: str, alive: Callable) -> list[tuple[str, _Member]]:
  """(name of the example, member) of the files in a tar file, in order."""
  members: list[tuple[str, _Member]] = []
  with (
    input_files.opened(path, most=_MAX_TAR_BYTES) as file,
    tarfile.open(fileobj=file, mode="r:") as tar,
  ):
    end = os.fstat(file.fileno()).st_size
    for info in tar:
      alive()
      folder, _, base = info.name.rpartition("/")
      stem, dot, ending = base.partition(".")
      if not info.isreg() or info.sparse or not stem or not dot:
        continue  # Folders, links and hidden files.
      if info.offset_data + info.size > end:
        raise UserError(f"{path} is cut off in {info.name!r}; copy or download it again.")
      key = f"{folder}/{stem}" if folder else stem
      members.append((key, _Member(ending.lower(), info.offset_data, info.size)))
  return members


def _examples(path: str) -> Iterator[tuple[str, list[_Member]]]:
  """(name, members) of the examples of one file."""
  kind = signatures.of(input_files.file_head(path, 1024))
  if kind is not None:
    raise UserError(f"{path} is {kind.name}, and rows are read at random from a plain tar file"
                    f"{kind.as_rows or '; unpack it'}.")  # fmt: skip
  try:
    members = input_files.bounded(lambda alive: _members(path, alive))
  except UserError:
    raise
  except (tarfile.TarError, OSError, ValueError, EOFError) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{path} cannot be read as a tar file: {cut(str(reason))}.") from None
  for key, group in itertools.groupby(members, key=lambda pair: pair[0]):
    own = [member for _, member in group]
    endings = [member.ending for member in own]
    if len(set(endings)) < len(endings):
      raise UserError(f"{path} has {key!r} twice with the same ending ({', '.join(endings)}).")
    yield key, own
