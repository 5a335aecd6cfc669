"""NumPy's `.npz` as big_vision writes it: opened by its headers, read by rows. No pickles."""

import functools
import math
import pathlib
import struct
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from pgjax.errors import UserError
from pgjax.formats import foreign, lazy_array


def read_npz(
  path: pathlib.Path, starts: str | tuple[str, ...] = ""
) -> dict[str, lazy_array.LazyArray]:
  """Parameters whose names have these starts, in an `.npz` of any of big_vision's three layouts."""
  foreign.check_start(path)
  with lazy_array.explained(path, ".npz"), zipfile.ZipFile(path) as file:
    members = [info for info in file.infolist() if info.filename.startswith(starts)]
    if sum(info.compress_size for info in members) > path.stat().st_size:
      raise ValueError("its arrays have more bytes than the file")
    leaves = {i.filename.removesuffix(".npy"): _npy_leaf(path, file, i) for i in members}
    if len(leaves) < len(members):
      raise ValueError("two of its arrays have the same name")
  for prefix in ("params/", "opt/target/"):
    if inside := {n.removeprefix(prefix): a for n, a in leaves.items() if n.startswith(prefix)}:
      leaves = inside
      break
  for name, leaf in leaves.items():
    if leaf.dtype.name not in lazy_array.FLOATS:
      raise UserError(
        f"{path}: '{name}' holds {leaf.dtype}; weights are one of {', '.join(lazy_array.FLOATS)}."
      )
  return leaves


def _npy_leaf(path, file, info) -> lazy_array.LazyArray:
  """Reads the header of one member."""
  with file.open(info) as member:
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
      raise ValueError(f"'{info.filename}' has .npy version {version}")
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, fortran, dtype = read_header(member)
    header_bytes = member.tell()
  if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
    dtype = np.dtype(ml_dtypes.bfloat16)  # numpy has no name for it and writes two void bytes.
  if dtype.hasobject:
    raise ValueError(f"'{info.filename}' holds Python objects, which are never read")
  announced = header_bytes + math.prod(shape) * dtype.itemsize
  if not shape or min(shape) < 0 or info.file_size != announced:
    raise ValueError(f"'{info.filename}' does not hold the {shape} numbers it announces")
  packed = info.compress_type != zipfile.ZIP_STORED
  if info.file_size > (1100 * info.compress_size if packed else info.compress_size):
    raise ValueError(f"'{info.filename}' announces {info.file_size:,} bytes, more than it can hold")
  if packed or (fortran and len(shape) > 1):
    key = path, info.filename, header_bytes, dtype, shape, "F" if fortran else "C"
    return lazy_array.LazyArray(shape, dtype, lambda start, stop: _unpacked(*key)[start:stop])
  return _checked(path, info, header_bytes, shape, dtype)


def _checked(path, info, header_bytes, shape, dtype) -> lazy_array.LazyArray:
  """An uncompressed member: its rows are read from the file once its checksum is checked."""
  leaf = None

  def read(start, stop):
    nonlocal leaf
    with lazy_array.explained(path, ".npz"):
      if leaf is None:
        with zipfile.ZipFile(path) as file, file.open(info) as member:
          while member.read(1 << 20):  # Compares the checksum at the end.
            pass
        with path.open("rb") as file:
          file.seek(info.header_offset + 26)
          name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
        begin = info.header_offset + 30 + name_bytes + extra_bytes
        leaf = lazy_array.from_disk(path, begin + header_bytes, shape, dtype)
      return leaf.read(start, stop)

  return lazy_array.LazyArray(shape, dtype, read)


@functools.lru_cache(maxsize=1)  # One array, while its rows are read one after another.
def _unpacked(path, member, header_bytes, dtype, shape, order) -> np.ndarray:
  with lazy_array.explained(path, ".npz"), zipfile.ZipFile(path) as file:
    data = file.read(member)  # Compares the checksum.
    return np.frombuffer(data, dtype, offset=header_bytes).reshape(shape, order=order)


def write_npz(path: pathlib.Path, leaves: Mapping[str, lazy_array.LazyArray]) -> None:
  """Writes the arrays under their names; bfloat16 as two void bytes, as in big_vision's files."""
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
    for name, leaf in leaves.items():
      descr = "|V2" if leaf.dtype == ml_dtypes.bfloat16 else leaf.dtype.newbyteorder("<").str
      header = dict(descr=descr, fortran_order=False, shape=leaf.shape)
      info = zipfile.ZipInfo(f"{name}.npy")  # Without a date: equal weights are equal files.
      with file.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for rows in leaf.chunks():
          member.write(lazy_array.raw_bytes(rows))
