"""Which files of a folder are one model's weights?

A folder of safetensors may hold several sets: a whole file and an index with shards of another
time, a variant such as model.fp16.safetensors. Then the user has to choose one by its name.
"""

import datetime
import pathlib
import re
from typing import Annotated, NamedTuple

import msgspec

from pgjax.errors import UserError
from pgjax.formats import lazy_array, typed_json

INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\..+)?\.safetensors")
MOST = 6  # Sets that a message names.


class _Index(msgspec.Struct):
  weight_map: Annotated[dict[str, typed_json.Text], msgspec.Meta(min_length=1)]


class WeightSet(NamedTuple):
  """Files that belong together."""

  name: str  # Of the file or of the index.
  files: tuple[pathlib.Path, ...]
  shard_of: dict[str, str] | None = None  # {tensor: file} of an index; None for a whole file.

  @property
  def size_bytes(self) -> int:
    """Of the files that exist."""
    return sum(file.stat().st_size for file in self.files if file.is_file())

  def __str__(self) -> str:
    """Such as `model.safetensors (5.85 GB, 2026-11-26 09:30)`."""
    times = [file.stat().st_mtime for file in self.files if file.is_file()]
    if not times:
      return f"{self.name} (its files are missing)"
    newest = datetime.datetime.fromtimestamp(max(times)).astimezone()
    size = self.size_bytes
    text = f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
    files = "" if self.shard_of is None and len(self.files) == 1 else f"{len(self.files)} files, "
    return f"{self.name} ({files}{text}, {newest:%Y-%m-%d %H:%M})"


def sets_of(folder: pathlib.Path) -> list[WeightSet]:
  """All sets of a folder, each index and each file that no index names; shards without one last."""
  indices = [_indexed(path) for path in sorted(folder.glob("*.safetensors.index*.json"))]
  named = {file for found in indices for file in found.files}
  whole, loose = [], {}
  for path in sorted(folder.glob("*.safetensors")):
    if path in named:
      continue
    shard = _SHARD.fullmatch(path.name)
    if shard and shard[2] != "00001":
      name = f"{shard[1]}-*-of-{shard[2]}{shard[3] or ''}.safetensors"
      loose[name] = (*loose.get(name, ()), path)
    else:
      whole.append(WeightSet(path.name, (path,)))
  return [*whole, *indices, *(WeightSet(name, files) for name, files in loose.items())]


def _indexed(path: pathlib.Path) -> WeightSet:
  shard_of = typed_json.read(path, _Index).weight_map
  with lazy_array.explained(path, "index"):
    names = sorted(set(shard_of.values()))
    for name in names:
      if pathlib.PurePath(name).name != name:
        raise UserError(f"{path} names {name!r}, which is not a file of this folder.")
    return WeightSet(path.name, tuple(path.with_name(name) for name in names), shard_of)


def chosen(sets: list[WeightSet], wanted: str | None, where: str) -> WeightSet:
  """The set named `wanted`, or the only one; `where` is the user's name of the folder."""
  listed = ", ".join(map(str, sets[:MOST])) + f" and {len(sets) - MOST} more" * (len(sets) > MOST)
  if wanted is not None:
    for found in sets:
      if found.name == wanted:
        return found
    raise UserError(f"--weights={wanted} is none of the weights in {where}, which has {listed}.")
  if len(sets) > 1:
    raise UserError(
      f"{where} has {len(sets)} sets of weights: {listed}. Choose one with --weights={sets[0].name}"
      ' (in model_init: ckpt("FOLDER", weights="...")), or move the others away.'
    )
  return sets[0]
