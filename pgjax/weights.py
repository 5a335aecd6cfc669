"""How do initial weights get from a file onto the mesh?

A checkpoint is read leaf by leaf, and of a leaf each process reads the slices that its devices
keep: neither a host nor a device ever holds the whole model a second time. Names and shapes are
big_vision's, which are ours. What is here: big_vision's `.npz` files and the names they are known
by. A workdir of pgjax.train is checkpoint.py's business.
"""

import functools
import logging
import math
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from pgjax import params
from pgjax.errors import UserError

log = logging.getLogger("pgjax")

WEIGHTS_DIR = "PGJAX_WEIGHTS_DIR"
POS_EMBEDDING = "img/pos_embedding"
TOKEN_TABLE = "llm/embedder/input_embedding"
NEW_ROWS_STDDEV = 0.02  # big_vision's value for tokens that the checkpoint lacks.
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_NAME = re.compile(r"pt_(?:(3b|10b|28b)_)?(224|448|896)(?:\.(bf16|f16))?")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, struct.error)


class Leaf(NamedTuple):
  """One array of a checkpoint, not read yet; `open` gives it, from the disk where it can."""

  shape: tuple[int, ...]
  dtype: np.dtype
  open: Callable[[], np.ndarray]


def load(
  model_init: str | Mapping[str, str], shapes: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, Any]:
  """Nested dict of the checkpoint's arrays, cast, placed and (where the rules say so) adapted.

  Args:
    model_init: a name ("pt_224"), a path ("x.npz", or "x.npz:img" for a part of it), or a dict
      from the parts of the model to such strings; parts that it leaves out are not returned.
    shapes: nested dict of the model's leaves, with shapes and storage dtypes.
    shardings: the same tree of shardings.
  """
  wanted, placed = params.flatten(shapes), params.flatten(shardings)
  if isinstance(model_init, str):
    found, source = leaves(model_init), model_init
  else:
    parts = {name.split("/")[0] for name in wanted}
    if unknown := sorted(set(model_init) - parts):
      raise UserError(f"model_init has no part {unknown}; the model has {sorted(parts)}.")
    wanted = {n: shape for n, shape in wanted.items() if n.split("/")[0] in model_init}
    found = {
      f"{part}/{name}": leaf for part in model_init for name, leaf in _part(model_init, part)
    }
    source = ", ".join(model_init.values())
  _check(found, wanted, source)
  loaded = {}
  for name, want in wanted.items():
    cut = _adapted(name, found[name], want)
    array = jax.make_array_from_callback(tuple(want.shape), placed[name], cut)
    loaded[name] = jax.block_until_ready(array)  # Frees what the host read for it.
  return params.unflatten(loaded)


def leaves(spec: str) -> dict[str, Leaf]:
  """The arrays of the file that `spec` names, under the model's names."""
  path, _, part = spec.rpartition(":")
  if not path or part.endswith(".npz"):  # No part is named; the path may hold a colon.
    path, part = spec, ""
  found = _npz_leaves(resolve(path))
  if not part:
    return found
  inside = {
    n.removeprefix(f"{part}/"): leaf for n, leaf in found.items() if n.startswith(f"{part}/")
  }
  if not inside:
    tops = sorted({name.split("/")[0] for name in found})
    raise UserError(f"model_init='{spec}': the file has no part '{part}', but {tops}.")
  return inside


def _part(model_init, part):
  """(name inside the part, leaf) of the file for it: the part's own, or a whole model's part."""
  found = leaves(model_init[part])
  inside = {
    n.removeprefix(f"{part}/"): leaf for n, leaf in found.items() if n.startswith(f"{part}/")
  }
  return (inside or found).items()


def resolve(name: str) -> pathlib.Path:
  """The file of a path, or of a name such as pt_448 or pt_3b_224 in PGJAX_WEIGHTS_DIR."""
  match = _NAME.fullmatch(name)
  if not match:
    path = pathlib.Path(name).expanduser()
    if not name.endswith(".npz"):
      raise UserError(
        f"model_init='{name}' is neither a path that ends in .npz nor a known name; names are"
        " pt_224, pt_448, pt_896 (PaliGemma 1) and pt_3b_224, pt_10b_448, pt_28b_896, ..."
        " (PaliGemma 2), with .bf16 or .f16 behind to pick a precision."
      )
    if not path.is_file():
      raise UserError(f"model_init='{name}': there is no such file.")
    return path
  files, where = _files_of(*match.groups())
  folder = os.environ.get(WEIGHTS_DIR)
  if not folder:
    raise UserError(
      f"model_init='{name}' is looked for in the folder that the environment variable"
      f" {WEIGHTS_DIR} names, which is not set: download {files[0]} ({where}), and set"
      f" {WEIGHTS_DIR} to the folder that holds it."
    )
  for file in files:
    if (path := pathlib.Path(folder, file)).is_file():
      return path
  raise UserError(
    f"model_init='{name}': {folder} ({WEIGHTS_DIR}) has none of {', '.join(files)}; download the"
    f" first of them ({where}) into it."
  )


def _files_of(size, res, precision):
  """(file names that a name stands for, the preferred one first; where to get it)."""
  if size is None:
    model, short, page = f"paligemma-3b-pt-{res}", f"pt_{res}", "paligemma"
    endings = ["", ".bf16", ".f16"]
  else:
    model, short, page = f"paligemma2-{size}-pt-{res}", f"pt_{size}_{res}", "paligemma-2"
    endings = [".b16", ".bf16", "", ".f16"]  # Kaggle spells PaliGemma 2's bfloat16 b16.
  if precision:
    spellings = {"bf16": (".b16", ".bf16"), "f16": (".f16",)}[precision]
    endings = [ending for ending in endings if ending in spellings]
  where = (
    f"Kaggle google/{page}/jax/{model}, or Hugging Face google/{model}-jax; both ask you to accept"
    " the licence first"
  )
  return [f"{stem}{ending}.npz" for ending in endings for stem in (model, short)], where


def _npz_leaves(path: pathlib.Path) -> dict[str, Leaf]:
  """The parameters in an `.npz`, whichever of the reference's three layouts it has."""
  try:
    with zipfile.ZipFile(path) as file:
      found = {
        info.filename.removesuffix(".npy"): _npy_leaf(path, file, info) for info in file.infolist()
      }
  except _DAMAGED as e:
    raise _damaged(path, e) from e
  for prefix in ("params/", "opt/target/"):
    if inside := {n.removeprefix(prefix): a for n, a in found.items() if n.startswith(prefix)}:
      found = inside
      break
  for name, leaf in found.items():
    if leaf.dtype.name not in _FLOATS:
      raise UserError(
        f"{path}: '{name}' holds {leaf.dtype}; weights are one of {', '.join(_FLOATS)}."
      )
  return found


def _damaged(path, error):
  return UserError(
    f"{path} is damaged or no .npz file ({str(error).rstrip('.')}): download or write it again."
  )


def _npy_leaf(path, file, info) -> Leaf:
  """Reads the header of one member; of a member that is stored as it is, its place in the file."""
  with file.open(info) as member:
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
      raise ValueError(f"'{info.filename}' has .npy version {version}")
    read = (
      np.lib.format.read_array_header_1_0
      if version == (1, 0)
      else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(member)
    header_bytes = member.tell()
  if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
    dtype = np.dtype(ml_dtypes.bfloat16)  # numpy has no name for it and writes two void bytes.
  if dtype.hasobject or info.file_size != header_bytes + math.prod(shape) * dtype.itemsize:
    raise ValueError(f"'{info.filename}' does not hold the {shape} numbers it announces")
  read_member = functools.partial(
    _read_member, path, info, header_bytes, dtype, shape, "F" if fortran else "C"
  )
  return Leaf(shape, dtype, read_member)


def _read_member(path, info, header_bytes, dtype, shape, order) -> np.ndarray:
  """One array: mapped from the file if it is stored uncompressed, else decompressed.

  Either way its checksum is compared, so that a damaged download is never trained on.
  """
  try:
    if info.compress_type != zipfile.ZIP_STORED or not math.prod(shape):
      with zipfile.ZipFile(path) as file:
        data = file.read(info)  # Compares the checksum.
      return np.frombuffer(data, dtype, offset=header_bytes).reshape(shape, order=order)
    with path.open("rb") as file:
      file.seek(info.header_offset + 26)
      name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    start = info.header_offset + 30 + name_bytes + extra_bytes
    mapped = np.memmap(path, np.uint8, "r", start, info.file_size)
    if _crc32(mapped) != info.CRC:
      raise ValueError(f"the checksum of '{info.filename}' is wrong")
    return np.memmap(path, dtype, "r", start + header_bytes, shape, order)
  except _DAMAGED as e:
    raise _damaged(path, e) from e


def _crc32(data, chunk_bytes=64 << 20):
  crc = 0
  for start in range(0, len(data), chunk_bytes):
    crc = zlib.crc32(data[start : start + chunk_bytes], crc)
  return crc


def _check(found, wanted, source):
  """Every leaf of the model is in the file, and the reverse, with a shape that fits."""
  missing = sorted(set(wanted) - set(found))
  unexpected = sorted(set(found) - set(wanted))
  wrong = [
    f"{name} is {found[name].shape}, the model has {tuple(want.shape)}"
    for name, want in wanted.items()
    if name in found and not _fits(name, found[name].shape, tuple(want.shape))
  ]
  told = [
    f"{what} {_some(names)}"
    for what, names in (("missing:", missing), ("unexpected:", unexpected), ("wrong shape:", wrong))
    if names
  ]
  if told:
    raise UserError(
      f"model_init='{source}' does not fit the model; {'; '.join(told)}. Check model.img.variant,"
      " model.llm.variant and res against the checkpoint."
    )


def _some(names, limit=4):
  return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" * (len(names) > limit))


def _fits(name, shape, want):
  if name == POS_EMBEDDING and len(shape) == 3 and shape[::2] == want[::2]:
    return all(math.isqrt(n) ** 2 == n for n in (shape[1], want[1]))
  if name == TOKEN_TABLE and len(shape) == 2:
    return shape[1] == want[1] and shape[0] <= want[0]
  return shape == want


def _adapted(name, leaf, want) -> Callable[[tuple[slice, ...]], np.ndarray]:
  """From the index of a slice to that slice of the leaf, as the model wants it."""
  array, shape = leaf.open(), tuple(want.shape)
  if name == POS_EMBEDDING and leaf.shape != shape:
    old, new = math.isqrt(leaf.shape[1]), math.isqrt(shape[1])
    log.info("%s is resampled from %dx%d to %dx%d patches.", name, old, old, new, new)
    array = resample_pos_embedding(array, new)
  if name == TOKEN_TABLE and leaf.shape != shape:
    more = shape[0] - leaf.shape[0]
    log.info("%s gets %d new rows, normal with stddev %g.", name, more, NEW_ROWS_STDDEV)
    new_rows = np.random.default_rng(0).normal(0, NEW_ROWS_STDDEV, (more, shape[1]))
    return lambda index: _rows(array, new_rows, index).astype(want.dtype)
  return lambda index: np.asarray(array[index]).astype(want.dtype)


def _rows(array, new_rows, index):
  """array[index] of the table that continues `array` with `new_rows`."""
  rows, columns = index
  start, stop, _ = rows.indices(len(array) + len(new_rows))
  old = np.asarray(array[start : min(stop, len(array)), columns], np.float32)
  new = new_rows[max(start - len(array), 0) : max(stop - len(array), 0), columns]
  return np.concatenate([old, new.astype(np.float32)])


def resample_pos_embedding(table_1PD: np.ndarray, new: int) -> np.ndarray:
  """Linear, corner-aligned: what the reference gets from scipy.ndimage.zoom(order=1)."""
  old = math.isqrt(table_1PD.shape[1])
  at = np.linspace(0, old - 1, new)
  low = np.minimum(at.astype(int), max(old - 2, 0))
  weights = np.zeros((new, old))  # Row i: how much each old position gives to new position i.
  weights[np.arange(new), low] = 1 - (at - low)
  if old > 1:
    weights[np.arange(new), low + 1] = at - low
  grid = table_1PD[0].astype(np.float64).reshape(old, old, -1)
  grid = np.einsum("ia,jb,abd->ijd", weights, weights, grid, optimize=True)
  return grid.reshape(1, new * new, -1).astype(np.float32)
