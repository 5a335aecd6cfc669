"""Is a download complete enough to prepare, and where does one get it?"""

import pathlib
from collections.abc import Sequence

from pgjax.datasets.base import DataSet
from pgjax.errors import UserError
from pgjax.formats import input_files

_SHOWN = 20  # Missing files in one message.
_ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")


def describe(data: DataSet) -> str:
  """Where the files come from, and which go where: what is printed without --raw."""
  lines = [f"{data.name}: {data.about}", f"from {data.source}", ""]
  parts = data.part_names()
  for split in data.split_names(parts):
    n = data.counts(parts[0]).get(split)
    size = f" ({n:,} rows)" if n and parts == [None] else ""
    files = dict.fromkeys(name for part in parts for name in data.files(part, split))
    extra = ", only with --splits" if split in data.extra_splits else ""
    lines.append(f"  {split}{size}{extra}: {', '.join(map(_quoted, files))}")
  if parts != [None]:
    lines.append(f"parts: {', '.join(map(str, parts))}")
  if data.lost_images:
    lines.append("Rows without their image are dropped where the download lacks images:")
    lines += [f"  {split}: {why}" for split, why in data.lost_images.items()]
  return "\n".join(lines)


def check(data: DataSet, folder: pathlib.Path, parts: Sequence[str | None], splits: Sequence[str]):
  """Raises UserError with all files that the parts and splits lack, before anything is written."""
  if not folder.is_dir():
    raise UserError(f"--raw={folder} is not a folder; {_folders(data, parts, splits)}.")
  lacking = {
    (part, split): [name for name in _needed(data, part, split) if not _exists(folder, name)]
    for part in parts
    for split in splits
    if split in data.counts(part)
  }
  missing = list(dict.fromkeys(name for names in lacking.values() for name in names))
  if not missing:
    return
  shown = ", ".join(_shown(folder, name) for name in missing[:_SHOWN])
  if len(missing) > _SHOWN:
    shown += f" and {len(missing) - _SHOWN} more"
  raise UserError(
    f"The download of {data.name} lacks {shown}; {_advice(data, folder, missing, lacking)}."
  )


def _shown(folder: pathlib.Path, name: str) -> str:
  paths = [str(folder / one) + ("/" if one.endswith("/") else "") for one in name.split("|")]
  return " or ".join(paths)


def _advice(data: DataSet, folder: pathlib.Path, missing: list[str], lacking: dict) -> str:
  if archive := next((a for name in missing if (a := _archive(folder, name))), None):
    return f"unpack {archive} in the place where it is"
  for inner in sorted(input_files.names(str(folder)))[:1000]:
    if all(_exists(folder / inner, name) for name in missing):
      return f"they are in {folder / inner}: use --raw={folder / inner}"
  complete = [of for of, names in lacking.items() if not names]
  parts = [p for p in dict.fromkeys(p for p, _ in lacking) if p and _all(lacking, 0, p)]
  splits = [s for s in dict.fromkeys(s for _, s in lacking) if _all(lacking, 1, s)]
  if complete and (parts or splits):
    flag = f"--parts={','.join(parts)}" if parts else f"--splits={','.join(splits)}"
    return f"to prepare what is there: {flag}"
  return f"they come from {data.source}"


def _all(lacking: dict, axis: int, name: str) -> bool:
  return all(not names for of, names in lacking.items() if of[axis] == name)


def _folders(data: DataSet, parts: Sequence[str | None], splits: Sequence[str]) -> str:
  names = dict.fromkeys(n for part in parts for s in splits for n in _needed(data, part, s))
  shown = ", ".join(map(_quoted, list(names)[:4])) + (", ..." if len(names) > 4 else "")
  return f"it is the folder that holds {shown}, from {data.source}"


def _needed(data: DataSet, part: str | None, split: str) -> list[str]:
  return [name for name in data.files(part, split) if not name.endswith("?")]


def _exists(folder: pathlib.Path, name: str) -> bool:
  if "|" in name:
    return any(_exists(folder, one) for one in name.split("|"))
  path = folder / name
  if "*" in name:
    return any(True for _ in folder.glob(name))
  if name.endswith("/"):
    return path.is_dir() and any(True for _ in path.iterdir())
  return path.exists()


def _archive(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """The archive of a missing file or folder, if it is there and was not unpacked."""
  for stem in (folder / one.rstrip("/") for one in name.split("|")):
    for archive in (stem.with_name(stem.name + ending) for ending in _ARCHIVES):
      if archive.is_file():
        return archive
  return None


def _quoted(name: str) -> str:
  if name.endswith("?"):
    return f"{name[:-1]} (for some rows)"
  if "|" in name:
    return " or ".join(name.split("|"))
  return f"'{name}'" if " " in name else name
