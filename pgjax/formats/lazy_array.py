"""An array in a file that is not read yet: shape, dtype, and a function that reads its rows."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from pgjax.errors import UserError
from pgjax.formats import input_files

CHUNK_BYTES = 64 << 20  # Read, cast and written at a time; at least one row.
FLOATS = ("float32", "float16", "bfloat16", "float64")
_PIECE = 1 << 18  # Numbers whose bits are looked at together.
_EXPONENTS = {  # All of its bits are 1 in NaN and infinity.
  "float16": np.uint16(0x7C00),
  "bfloat16": np.uint16(0x7F80),
  "float32": np.uint32(0x7F800000),
  "float64": np.uint64(0x7FF0000000000000),
}


@dataclasses.dataclass(frozen=True)  # Not a NamedTuple: to JAX it is a leaf.
class LazyArray:
  """One array that is not read yet; `read(start, stop)` gives these rows of its first axis."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[int, int], np.ndarray]
  scheme: Any = None  # The quantization.Scheme of numbers that were quantized.

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

  def astype(self, dtype: np.dtype, name: str = "a weight") -> "LazyArray":
    """The same numbers, cast as they are read; `name` is for messages."""
    dtype = np.dtype(dtype)
    if dtype == self.dtype:
      return self
    return LazyArray(self.shape, dtype, lambda *rows: cast(self.read(*rows), dtype, name))


def cast(array: np.ndarray, dtype: np.dtype, name: str = "a weight") -> np.ndarray:
  """Rounds to nearest, ties to even; raises if a finite number becomes infinite."""
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


def finite(leaf: LazyArray, name: str) -> LazyArray:
  """The same numbers; raises when rows are read that are not all finite."""

  def read(start, stop):
    check_finite(rows := leaf.read(start, stop), name)
    return rows

  return LazyArray(leaf.shape, leaf.dtype, read, leaf.scheme)


def check_finite(array: np.ndarray, name: str) -> None:
  """Raises for NaN and infinity, by the bits, which is as fast as memory."""
  exponent = _EXPONENTS.get(array.dtype.name)
  if exponent is None or not array.size:
    return
  bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").reshape(-1)
  for start in range(0, bits.size, _PIECE):  # Temporaries stay in the cache.
    if np.bitwise_and(bits[start : start + _PIECE], exponent).max() == exponent:
      wrong = int((~np.isfinite(array)).sum())
      raise UserError(
        f"{name} has {wrong:,} numbers that are NaN or infinite, of {array.size:,} that were read:"
        " the weights are damaged, or their training had diverged. Take an earlier checkpoint."
      )


def of_array(array: np.ndarray) -> LazyArray:
  """A LazyArray of an array in memory."""
  return LazyArray(array.shape, array.dtype, lambda start, stop: array[start:stop])


@contextlib.contextmanager
def explained(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Turns any exception of a damaged file's readers into one sentence."""
  try:
    input_files.check_regular(path.stat())
    yield
  except UserError:
    raise
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
  except Exception as error:  # zipfile, struct and numpy raise many kinds.
    reason = str(error).rstrip(".")[:200]
    raise UserError(
      f"{path} is damaged or no {kind} file ({reason}): download or write it again."
    ) from error


def from_disk(path: pathlib.Path, offset: int, shape, dtype) -> LazyArray:
  """An array that is stored uncompressed, in C order, from `offset` on."""
  row_shape = shape[1:]
  row_bytes = math.prod(row_shape) * dtype.itemsize

  def read(start, stop):
    rows = np.empty((stop - start, *row_shape), dtype)
    with path.open("rb") as file:
      file.seek(offset + start * row_bytes)
      if file.readinto(rows.reshape(-1).view(np.uint8)) != rows.nbytes:
        raise UserError(f"{path} became shorter while it was read.")
    return rows

  return LazyArray(shape, dtype, read)


def raw_bytes(array: np.ndarray) -> memoryview:
  """Its bytes in C order."""
  return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
