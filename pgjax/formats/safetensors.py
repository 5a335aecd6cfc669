"""Safetensors files and folders as Hugging Face writes them: opened by headers, read by rows."""

import itertools
import json
import math
import pathlib
import struct
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from pgjax.errors import UserError
from pgjax.formats import foreign, lazy_array, typed_json, weight_sets
from pgjax.formats.weight_sets import INDEX

SHARD_BYTES = 5_000_000_000  # Hugging Face's default.
MAX_HEADER_BYTES = 100_000_000  # The limit of the safetensors library.
_SAFE_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Entry(msgspec.Struct):
  """One tensor in the header of a safetensors file."""

  dtype: str
  shape: list[_Bytes]
  data_offsets: tuple[_Bytes, _Bytes]


def read_safetensors(
  folder: pathlib.Path, weights: str | None = None
) -> dict[str, lazy_array.LazyArray]:
  """All tensors of a folder's only set of weights, or of the one named `weights`."""
  found = weight_sets.chosen(weight_sets.sets_of(folder), weights, str(folder))
  if found.shard_of is None:
    if len(found.files) > 1:
      raise UserError(
        f"{folder} has {len(found.files)} .safetensors files and no {INDEX}, which maps tensors to"
        " files: download the folder again."
      )
    return read_safetensors_file(found.files[0])
  index = folder / found.name
  tensors: dict[str, lazy_array.LazyArray] = {}
  with lazy_array.explained(index, "index"):
    for path in found.files:
      if not path.is_file():
        raise UserError(f"{index} names {path.name}, which is missing: download the folder again.")
      of_file = read_safetensors_file(path)
      for tensor in [t for t in of_file if found.shard_of.get(t, path.name) != path.name]:
        of_file.pop(tensor)  # The index takes it from another file.
      tensors |= of_file
  if missing := sorted(set(found.shard_of) - set(tensors)):
    raise UserError(
      f"{index} names tensors that are in none of its files: {', '.join(missing[:4])} and"
      f" {max(0, len(missing) - 4)} more: download the folder again."
    )
  return tensors


def read_safetensors_file(path: pathlib.Path) -> dict[str, lazy_array.LazyArray]:
  """The format: 8 bytes of header length, a JSON header, then the data."""
  foreign.check_start(path)
  with lazy_array.explained(path, "safetensors"):
    size = path.stat().st_size
    with path.open("rb") as file:
      (header_bytes,) = struct.unpack("<Q", file.read(8))
      if header_bytes > min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"a header of {header_bytes:,} bytes in a file of {size:,}")
      text = file.read(header_bytes)
    header = typed_json.decode(text, dict[str, Any], f"{path}, its header")
    if twice := typed_json.repeated_keys(text):
      raise ValueError(f"its header has '{twice[0]}' twice")
    header.pop("__metadata__", None)
    entries = typed_json.check(header, dict[str, _Entry], f"{path}, its header")
    used = sorted((e.data_offsets, name) for name, e in entries.items() if any(e.data_offsets))
    for ((_, end), name), ((begin, _), other) in itertools.pairwise(used):
      if begin < end:
        raise ValueError(f"'{name}' and '{other}' overlap")
    return {name: _tensor(path, 8 + header_bytes, size, name, e) for name, e in entries.items()}


def _tensor(path, data_start, file_bytes, name, entry) -> lazy_array.LazyArray:
  if entry.dtype not in _SAFE_DTYPES:
    raise UserError(
      f"{path}: '{name}' holds {entry.dtype}; weights are one of {', '.join(_SAFE_DTYPES)}."
      " Quantized checkpoints are not read: take the original."
    )
  shape, dtype = tuple(entry.shape), np.dtype(_SAFE_DTYPES[entry.dtype])
  begin, end = entry.data_offsets
  if not begin <= end <= file_bytes - data_start:
    raise ValueError(f"'{name}' ends beyond the end of the file")
  if end - begin != math.prod(shape) * dtype.itemsize:
    raise ValueError(f"'{name}' does not hold the {shape} numbers it announces")
  return lazy_array.from_disk(path, data_start + begin, shape, dtype)


class Tensor(NamedTuple):
  """A tensor to write; its blocks, in order, are its data."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  blocks: Callable[[], Iterable[np.ndarray]]

  @property
  def nbytes(self) -> int:
    """Bytes in the file."""
    return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
  folder: pathlib.Path, tensors: Iterable[Tensor], shard_bytes: int = SHARD_BYTES
) -> None:
  """model.safetensors, or numbered files of at most `shard_bytes` with their index."""
  shards: list[list[Tensor]] = [[]]
  for tensor in tensors:
    if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > shard_bytes:
      shards.append([])
    shards[-1].append(tensor)
  if len(shards) == 1:
    write_safetensors_file(folder / "model.safetensors", shards[0])
    return
  shard_of = {}
  for i, shard in enumerate(shards, 1):
    name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
    write_safetensors_file(folder / name, shard)
    shard_of |= {t.name: name for t in shard}
  total = sum(t.nbytes for shard in shards for t in shard)
  index = dict(metadata=dict(total_size=total), weight_map=dict(sorted(shard_of.items())))
  (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_safetensors_file(path: pathlib.Path, tensors: list[Tensor]) -> None:
  """Writes one file."""
  safe_names = {np.dtype(name): safe for safe, name in _SAFE_DTYPES.items()}
  ends = list(itertools.accumulate(t.nbytes for t in tensors))
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers 4.57 requires it.
  for tensor, end in zip(tensors, ends, strict=True):
    entry = _Entry(safe_names[tensor.dtype], list(tensor.shape), (end - tensor.nbytes, end))
    header[tensor.name] = msgspec.structs.asdict(entry)
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # The data starts at a multiple of eight bytes.
  with path.open("wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor, end in zip(tensors, ends, strict=True):
      for block in tensor.blocks():
        file.write(lazy_array.raw_bytes(block))
      if file.tell() != 8 + len(text) + end:
        raise RuntimeError(f"{tensor.name}: its blocks do not have its shape {tensor.shape}")
