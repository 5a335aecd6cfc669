"""Which arrays are in a file, and how does one get into it without more memory than its rows?

Two formats: NumPy's `.npz` as big_vision has it, and safetensors as Hugging Face has it. A file is
opened by reading its headers alone; an array is a Leaf, read by rows of its first axis. Nothing is
mapped into memory, so that a process that copies a model stays as small as it says. No pickles.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from pgjax.errors import UserError

CHUNK_BYTES = 64 << 20  # What is read, cast and written at a time, at least one row.
SHARD_BYTES = 5_000_000_000  # Of a safetensors file, as in Hugging Face's own.
MAX_HEADER_BYTES = 100_000_000  # The limit of the safetensors library.
INDEX = "model.safetensors.index.json"
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_SAFE_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What damaged or malicious files make zipfile, struct, json and numpy raise.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, LookupError, ValueError, struct.error)
_DAMAGED += (TypeError, AttributeError, OverflowError, MemoryError, RecursionError)


@dataclasses.dataclass(frozen=True)  # Not a NamedTuple: to JAX it is a leaf.
class Leaf:
  """One array that is not read yet; `read(start, stop)` gives these rows of its first axis."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[int, int], np.ndarray]
  scheme: Any = None  # The quantize.Scheme that its numbers were rounded by, if they were.

  @property
  def nbytes(self) -> int:
    """Bytes of the whole array."""
    return math.prod(self.shape) * self.dtype.itemsize

  def whole(self) -> np.ndarray:
    """All of it."""
    return self.read(0, self.shape[0])

  def chunks(self, limit_bytes: int = CHUNK_BYTES) -> Iterator[np.ndarray]:
    """All of it, in blocks of rows, in order."""
    rows = max(1, limit_bytes * self.shape[0] // max(1, self.nbytes))
    for start in range(0, self.shape[0], rows):
      yield self.read(start, min(start + rows, self.shape[0]))

  def astype(self, dtype: np.dtype, name: str = "a weight") -> "Leaf":
    """The same numbers, cast as they are read; `name` is for messages."""
    dtype = np.dtype(dtype)
    if dtype == self.dtype:
      return self
    return Leaf(self.shape, dtype, lambda start, stop: cast(self.read(start, stop), dtype, name))


def cast(array: np.ndarray, dtype: np.dtype, name: str = "a weight") -> np.ndarray:
  """Rounds to nearest, ties to even. A finite number that becomes infinite is an error."""
  with np.errstate(over="ignore"):
    rounded = array.astype(dtype)
  if not np.isfinite(rounded).all():
    beyond = np.abs(array[np.isfinite(array) & ~np.isfinite(rounded)].astype(np.float64))
    if beyond.size:
      raise UserError(
        f"{name} has a value of {beyond.max():.4g}, which does not fit into"
        f" {np.dtype(dtype).name} (up to {float(ml_dtypes.finfo(dtype).max):.5g}): choose bfloat16"
        " or float32."
      )
  return rounded


def of_array(array: np.ndarray) -> Leaf:
  """A Leaf of what is in memory already."""
  return Leaf(array.shape, array.dtype, lambda start, stop: array[start:stop])


@contextlib.contextmanager
def explained(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Whatever a damaged file makes the readers raise, as one sentence."""
  try:
    yield
  except UserError:
    raise
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
  except (
    *_DAMAGED,
    OverflowError,
    MemoryError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as error:
    raise UserError(
      f"{path} is damaged or no {kind} file ({str(error).rstrip('.')}): download or write it again."
    ) from error


def _from_disk(path: pathlib.Path, offset: int, shape, dtype) -> Leaf:
  """An array that lies in the file as it is, in C order."""
  row_shape = shape[1:]
  row_bytes = math.prod(row_shape) * dtype.itemsize

  def read(start, stop):
    rows = np.empty((stop - start, *row_shape), dtype)
    with path.open("rb") as file:
      file.seek(offset + start * row_bytes)
      if file.readinto(rows.reshape(-1).view(np.uint8)) != rows.nbytes:
        raise UserError(f"{path} has become shorter while it was read.")
    return rows

  return Leaf(shape, dtype, read)


def read_npz(path: pathlib.Path, starts: str | tuple[str, ...] = "") -> dict[str, Leaf]:
  """The parameters in an `.npz`, whichever of big_vision's three layouts it has.

  Only names that start with `starts` are looked at. Each array's checksum is compared before the
  first of its rows is given out.
  """
  with explained(path, ".npz"), zipfile.ZipFile(path) as file:
    members = [info for info in file.infolist() if info.filename.startswith(starts)]
    found = {i.filename.removesuffix(".npy"): _npy_leaf(path, file, i) for i in members}
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


def _npy_leaf(path, file, info) -> Leaf:
  """Reads the header of one member."""
  with file.open(info) as member:
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
      raise ValueError(f"'{info.filename}' has .npy version {version}")
    read_header = (
      np.lib.format.read_array_header_1_0
      if version == (1, 0)
      else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read_header(member)
    header_bytes = member.tell()
  if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
    dtype = np.dtype(ml_dtypes.bfloat16)  # numpy has no name for it and writes two void bytes.
  if dtype.hasobject:
    raise ValueError(f"'{info.filename}' holds Python objects, which are never read")
  if not shape or info.file_size != header_bytes + math.prod(shape) * dtype.itemsize:
    raise ValueError(f"'{info.filename}' does not hold the {shape} numbers it announces")
  if info.compress_type != zipfile.ZIP_STORED or (fortran and len(shape) > 1):
    order = "F" if fortran else "C"
    return Leaf(
      shape,
      dtype,
      lambda start, stop: _unpacked(path, info.filename, header_bytes, dtype, shape, order)[
        start:stop
      ],
    )
  return _checked(path, info, header_bytes, shape, dtype)


def _checked(path, info, header_bytes, shape, dtype) -> Leaf:
  """A member that is stored as it is: read from the file, after one look at its checksum."""
  leaf = None

  def read(start, stop):
    nonlocal leaf
    with explained(path, ".npz"):
      if leaf is None:
        with path.open("rb") as file:
          file.seek(info.header_offset + 26)
          name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
          begin = info.header_offset + 30 + name_bytes + extra_bytes
          if _crc32(file, begin, info.file_size) != info.CRC:
            raise ValueError(f"the checksum of '{info.filename}' is wrong")
        leaf = _from_disk(path, begin + header_bytes, shape, dtype)
      return leaf.read(start, stop)

  return Leaf(shape, dtype, read)


def _crc32(file, begin, num_bytes):
  file.seek(begin)
  crc = 0
  while num_bytes and (block := file.read(min(num_bytes, 1 << 20))):
    crc, num_bytes = zlib.crc32(block, crc), num_bytes - len(block)
  return crc


@functools.lru_cache(maxsize=1)  # One array, while its rows are asked for one after another.
def _unpacked(path, member, header_bytes, dtype, shape, order) -> np.ndarray:
  with explained(path, ".npz"), zipfile.ZipFile(path) as file:
    data = file.read(member)  # Compares the checksum.
    return np.frombuffer(data, dtype, offset=header_bytes).reshape(shape, order=order)


def write_npz(path: pathlib.Path, leaves: Mapping[str, Leaf]) -> None:
  """Writes under the names given; bfloat16 as two void bytes, as big_vision's files have it."""
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
    for name, leaf in leaves.items():
      descr = "|V2" if leaf.dtype == ml_dtypes.bfloat16 else leaf.dtype.newbyteorder("<").str
      header = dict(descr=descr, fortran_order=False, shape=leaf.shape)
      info = zipfile.ZipInfo(f"{name}.npy")  # Without a date: equal weights are equal files.
      with file.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for rows in leaf.chunks():
          member.write(_raw(rows))


def _raw(array: np.ndarray) -> memoryview:
  """Its bytes in C order."""
  return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def read_safetensors(folder: pathlib.Path) -> dict[str, Leaf]:
  """All tensors of a folder with model.safetensors, or with shards and their index."""
  index = folder / INDEX
  if not index.is_file():
    files = sorted(folder.glob("*.safetensors"))
    single = [f for f in files if f.name == "model.safetensors"] or files
    if len(single) != 1:
      raise UserError(
        f"{folder} has {len(files)} .safetensors files and no {INDEX}, which says what is in which:"
        " download the folder again."
      )
    return read_safetensors_file(single[0])
  with explained(index, "index"):
    shard_of = json.loads(index.read_text())["weight_map"]
    names = sorted(set(shard_of.values()))
  found: dict[str, Leaf] = {}
  for name in names:
    path = folder / name
    if pathlib.PurePath(name).name != name:
      raise UserError(f"{index} names {name!r}, which is not a file of this folder.")
    if not path.is_file():
      raise UserError(f"{index} names {name}, which is not there: download the folder again.")
    found |= read_safetensors_file(path)
  if missing := sorted(set(shard_of) - set(found)):
    raise UserError(
      f"{index} names tensors that are in none of its files: {', '.join(missing[:4])} and"
      f" {max(0, len(missing) - 4)} more: download the folder again."
    )
  return found


def read_safetensors_file(path: pathlib.Path) -> dict[str, Leaf]:
  """The format: 8 bytes of header length, a JSON header, then the data."""
  with explained(path, "safetensors"):
    size = path.stat().st_size
    with path.open("rb") as file:
      (header_bytes,) = struct.unpack("<Q", file.read(8))
      if header_bytes > min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"a header of {header_bytes:,} bytes in a file of {size:,}")
      header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    return {name: _tensor(path, 8 + header_bytes, size, name, e) for name, e in header.items()}


def _tensor(path, data_start, file_bytes, name, entry) -> Leaf:
  if entry["dtype"] not in _SAFE_DTYPES:
    raise UserError(
      f"{path}: '{name}' holds {entry['dtype']}; weights are one of {', '.join(_SAFE_DTYPES)}."
      " Quantized checkpoints are not read: take the original."
    )
  shape, dtype = tuple(entry["shape"]), np.dtype(_SAFE_DTYPES[entry["dtype"]])
  begin, end = entry["data_offsets"]
  if not 0 <= begin <= end <= file_bytes - data_start:
    raise ValueError(f"'{name}' ends beyond the end of the file")
  if end - begin != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
    raise ValueError(f"'{name}' does not hold the {shape} numbers it announces")
  return _from_disk(path, data_start + begin, shape, dtype)


class Tensor(NamedTuple):
  """What one file entry will hold, and the blocks that make it, in order."""

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
  names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
  if len(shards) == 1:
    names = ["model.safetensors"]
  for name, shard in zip(names, shards, strict=True):
    write_safetensors_file(folder / name, shard)
  if len(shards) > 1:
    shard_of = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
    total = sum(t.nbytes for shard in shards for t in shard)
    index = dict(metadata=dict(total_size=total), weight_map=dict(sorted(shard_of.items())))
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_safetensors_file(path: pathlib.Path, tensors: list[Tensor]) -> None:
  """One file of that name."""
  safe_names = {np.dtype(name): safe for safe, name in _SAFE_DTYPES.items()}
  ends = list(itertools.accumulate(t.nbytes for t in tensors))
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers 4.57 asks for it.
  for tensor, end in zip(tensors, ends, strict=True):
    offsets = [end - tensor.nbytes, end]
    header[tensor.name] = dict(
      dtype=safe_names[tensor.dtype], shape=list(tensor.shape), data_offsets=offsets
    )
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # The data starts at a multiple of eight bytes.
  with path.open("wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor, end in zip(tensors, ends, strict=True):
      for block in tensor.blocks():
        file.write(_raw(block))
      if file.tell() != 8 + len(text) + end:
        raise RuntimeError(f"{tensor.name}: its blocks are not the {tensor.shape} announced")


def free_bytes(path: pathlib.Path) -> int:
  """What the disk of `path`, or of the nearest folder above that exists, has free."""
  while not path.exists():
    path = path.parent
  return shutil.disk_usage(path).free
