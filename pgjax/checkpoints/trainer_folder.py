"""Reads the parameters in checkpoint folders of other JAX trainers: big_vision's and openpi's.

big_vision saves each array on its own, checkpoint.bv-000001234/params~llm~...; openpi saves one
tree with Orbax, STEP/params, in which PaliGemma is a part. Only names and shapes are read at first.
"""

import contextlib
import functools
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import tensorstore

from pgjax import disk
from pgjax.checkpoints import workdir
from pgjax.errors import UserError
from pgjax.formats import input_files, lazy_array, typed_json
from pgjax.formats.lazy_array import LazyArray

_LAST = "checkpoint.bv-LAST"  # big_vision's, with the end of the newest folder's name.
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}  # By the file that describes an array.
_DATABASE = "manifest.ocdbt"  # All arrays of a folder are in one of tensorstore's databases.
_TREES = ("params/PaliGemma/", "PaliGemma/", "params/")
_EXPERT = re.compile(r"llm/(.*_1(/.*)?)")  # pi0's second tower, which shares PaliGemma's attention.


class _Described(msgspec.Struct):
  """What is read of zarr's .zarray."""

  chunks: list[int]
  dimension_separator: str = "."


class Params(NamedTuple):
  """The parameters in a folder, by big_vision's names, and notes for the user."""

  leaves: dict[str, LazyArray]
  notes: tuple[str, ...]


def find(path: pathlib.Path) -> pathlib.Path | None:
  """The folder with the arrays: `path`, its params, or the newest one of big_vision's workdir."""
  if (path / "run.json").is_file() or (path / workdir.FOLDER).is_dir():
    return None
  if (path / _LAST).is_file():
    end = input_files.head(path / _LAST, 64).decode(errors="replace").strip()
    newest = path / f"checkpoint.bv-{end}"
    if not re.fullmatch(r"[0-9]+(-tmp)?", end) or not newest.is_dir():
      raise UserError(f"{path / _LAST} names the checkpoint {newest.name}, which is not there.")
    path = newest
  folders = (path / "params", path)
  return next((folder for folder in folders if folder.is_dir() and _has_arrays(folder)), None)


def read(folder: pathlib.Path) -> Params:
  """The parameters of PaliGemma in a folder that `find` gave; raises if there are none."""
  arrays = _arrays(folder)
  tree = next((tree for tree in _TREES if any(name.startswith(tree) for name in arrays)), "")
  inside = {name.removeprefix(tree): key for name, key in arrays.items() if name.startswith(tree)}
  names = [name for name in inside if name.startswith(("img/", "llm/")) and not _EXPERT.match(name)]
  if not names:
    raise UserError(
      f"{folder} holds {len(arrays)} arrays and no PaliGemma among them: none is called img/... or"
      f" llm/..., but {', '.join(sorted(arrays)[:3])}."
    )
  leaves = {name: _leaf(folder, name, *inside[name]) for name in sorted(names)}
  notes = []
  if more := len(arrays) - len(leaves):
    notes.append(f"{more} other arrays of the checkpoint are not read: they are not PaliGemma's.")
  if missing := _missing_chunks(folder, leaves, {name: inside[name][0] for name in leaves}):
    notes.append(
      f"{sum(missing.values())} files of {len(missing)} arrays are missing, {min(missing)} first:"
      " they are read as zeros, which they are if the checkpoint was copied as a whole."
    )
  return Params(leaves, tuple(notes))


def _has_arrays(folder: pathlib.Path) -> bool:
  return (folder / _DATABASE).is_file() or any(
    next(folder.glob(f"*/{file}"), None) for file in _DRIVERS
  )


def _arrays(folder: pathlib.Path) -> dict[str, tuple[str, str]]:
  """{our spelling of a name: (its key, driver)} of all arrays in a folder."""
  if (folder / _DATABASE).is_file():
    with _explained(folder, _DATABASE):
      keys = tensorstore.KvStore.open(_store(folder)).result().list().result()
    files = [key.decode(errors="replace") for key in keys]
  else:
    found = (file for end in _DRIVERS for file in folder.glob(f"*/{end}"))
    files = [f"{file.parent.name}/{file.name}" for file in found]
  arrays = {}
  for file in files:
    key, _, end = file.rpartition("/")
    if driver := _DRIVERS.get(end):
      name = "/".join(key.split("~" if "~" in key else "."))
      arrays[name.removesuffix("/value")] = key, driver  # flax.nnx ends names in value.
  return arrays


def _store(folder: pathlib.Path) -> dict[str, Any]:
  """Where tensorstore finds the files of a folder."""
  files = dict(driver="file", path=f"{folder}/")
  return dict(driver="ocdbt", base=files) if (folder / _DATABASE).is_file() else files


def _opened(folder: pathlib.Path, key: str, driver: str) -> tensorstore.TensorStore:
  store = tensorstore.KvStore.open(_store(folder)).result() / f"{key}/"
  spec = dict(driver=driver, kvstore=store.spec().to_json())
  return tensorstore.open(spec, open=True, read=True).result()


def _leaf(folder: pathlib.Path, name: str, key: str, driver: str) -> LazyArray:
  with _explained(folder, name):
    store = _opened(folder, key, driver)
    dtype = store.dtype.numpy_dtype
  if dtype.name not in lazy_array.FLOATS or not store.shape:
    raise UserError(
      f"{folder}: '{name}' holds {dtype}{list(store.shape)}; weights are one of"
      f" {', '.join(lazy_array.FLOATS)}."
    )
  rows = store.chunk_layout.read_chunk.shape[0]
  chunk = rows * math.prod(store.shape[1:]) * dtype.itemsize
  whole = rows > 1 and chunk > 2 * lazy_array.CHUNK_BYTES  # One row costs as much as N.

  def read(start: int, stop: int) -> np.ndarray:
    with _explained(folder, name):
      if whole:
        return _whole(folder, key, driver)[start:stop]
      return store[start:stop].read().result()

  return LazyArray(tuple(store.shape), dtype, read)


@functools.lru_cache(maxsize=1)  # One array, while its rows are read one after another.
def _whole(folder: pathlib.Path, key: str, driver: str) -> np.ndarray:
  return _opened(folder, key, driver).read().result()


def _missing_chunks(
  folder: pathlib.Path, leaves: Mapping[str, LazyArray], keys: Mapping[str, str]
) -> dict[str, int]:
  """{name: files that zarr would have for non-zero numbers and that are not there}."""
  missing = {}
  for name, leaf in leaves.items():
    if (file := folder / keys[name] / ".zarray").is_file():
      described = typed_json.read(file, _Described)
      if described.dimension_separator != ".":  # Then files are in folders.
        continue
      sizes = zip(leaf.shape, described.chunks, strict=True)
      grid = math.prod(-(-size // max(1, chunk)) for size, chunk in sizes)
      missing[name] = grid - sum(not p.name.startswith(".") for p in file.parent.iterdir())
  return {name: count for name, count in missing.items() if count > 0}


@contextlib.contextmanager
def _explained(folder: pathlib.Path, name: str) -> Iterator[None]:
  """Turns tensorstore's exceptions into one sentence."""
  try:
    yield
  except (ValueError, OSError, KeyError) as error:
    reason = disk.disk_trouble(error) or (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(f"The checkpoint {folder} cannot be read: {name}: {reason[:200]}.") from error
