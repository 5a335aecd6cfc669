"""How are rows of Arrow and Parquet files read at random positions?

Arrow files are memory-mapped. Parquet is compressed in blocks of many rows: up to MEMORY_BYTES it
is read into memory; more is written once as an Arrow file in the cache folder ($PGJAX_CACHE_DIR),
which costs about its size on the disk, and mapped from there.
"""

import bisect
import contextlib
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from pgjax import cache_dir
from pgjax.data import signatures
from pgjax.errors import UserError, cut
from pgjax.formats import input_files

log = logging.getLogger("pgjax")

MEMORY_BYTES = 1 << 30
_BATCH_ROWS = 256
_NO_BYTES = {"bytes": None}


class ArrowRows:
  """The rows of several files, one after the other.

  Columns of ClassLabel (datasets) are read as their names, and -1, which is no label, as None.
  `indices` selects rows, in its order.
  """

  def __init__(self, paths: Sequence[str], labels: Sequence[str] | None = None, indices=None):
    self._paths, self._labels, self._indices = tuple(paths), tuple(labels or paths), indices
    with _errors(self._paths[0]):
      tables = _tables(self._paths)
      schema = tables[0].schema
      self._names = _class_names(schema)
      self._texts = [field.name for field in schema if not _has_bytes(field.type)]
      self._paths_of = [field.name for field in schema if _is_image(field.type)]
    for path, table in zip(self._paths[1:], tables[1:], strict=True):
      if not table.schema.equals(schema):
        raise UserError(
          f"{path} has other columns than {self._paths[0]}: {cut(_described(table.schema))}, not"
          f" {cut(_described(schema))}."
        )
    self._batches = [b for table in tables for b in table.to_batches() if b.num_rows]
    self._starts = [0, *itertools.accumulate(b.num_rows for b in self._batches)]
    self._file_starts = [0, *itertools.accumulate(table.num_rows for table in tables)]

  def __reduce__(self):  # Worker processes map the files themselves.
    return ArrowRows, (self._paths, self._labels, self._indices)

  def __len__(self):
    return self._starts[-1] if self._indices is None else len(self._indices)

  def __getitem__(self, i: int) -> dict[str, Any]:
    with self._reading(i) as row:
      return self._named(row.to_pylist()[0])

  def texts(self, i: int) -> dict[str, Any]:
    """Without columns of bytes; an image is a dict with its path, and "bytes" if it has none."""
    with self._reading(i) as row:
      columns = row.select(self._texts).to_pylist()[0] if self._texts else {}
      for name in self._paths_of:
        image = row.column(name)
        inside = image.field("bytes")[0].is_valid
        columns[name] = {"path": image.field("path")[0].as_py(), **({} if inside else _NO_BYTES)}
      return self._named(columns)

  def at(self, i: int) -> str:
    """File and row."""
    i = i if self._indices is None else int(self._indices[i])
    k = bisect.bisect_right(self._file_starts, i) - 1
    return f"{self._labels[k]}, row {i - self._file_starts[k]}"

  @contextlib.contextmanager
  def _reading(self, i: int) -> Iterator[Any]:
    """Row i as a batch of one, checked: a damaged file could lead to any place in memory."""
    try:
      number = i if self._indices is None else int(self._indices[i])
      if not 0 <= number < self._starts[-1]:
        raise ValueError(f"its indices name row {number} of {self._starts[-1]}")
      k = bisect.bisect_right(self._starts, number) - 1
      row = self._batches[k].slice(number - self._starts[k], 1)
      row.validate(full=True)
      yield row
    except (ValueError, OverflowError) as error:  # A text that is not UTF-8, a date out of range.
      raise UserError(f"{self.at(i)} cannot be read: {cut(str(error))}.") from None

  def _named(self, row: dict[str, Any]) -> dict[str, Any]:
    for name, names in self._names.items():
      value = row.get(name)
      if isinstance(value, int) and -1 <= value < len(names):
        row[name] = None if value == -1 else names[value]
    return row


def of_parquet(paths: Sequence[str]) -> ArrowRows:
  """The rows of Parquet files; writes an Arrow file first if they do not fit in MEMORY_BYTES."""
  require()
  import pyarrow.parquet as pq

  total = 0
  for path in paths:
    with _errors(path):
      _check_kind(path)
      metadata = pq.ParquetFile(path).metadata
    groups = range(metadata.num_row_groups)
    total += sum(metadata.row_group(k).total_byte_size for k in groups)
  if total <= MEMORY_BYTES:
    return ArrowRows(paths)
  return ArrowRows([_cached(path) for path in paths], labels=paths)


def require() -> Any:
  """The module `pyarrow`; raises UserError if it is not installed."""
  try:
    import pyarrow
  except ImportError:
    raise UserError(
      "reading Parquet and Arrow needs pyarrow: pip install -r requirements-data.txt."
    ) from None
  return pyarrow


def _tables(paths: Sequence[str]) -> list:
  pyarrow = require()
  tables = []
  for path in paths:
    with _errors(path):
      _check_kind(path)
      if input_files.head(path, 4) == b"PAR1":
        import pyarrow.parquet as pq

        tables.append(pq.ParquetFile(path).read())
        continue
      file = pyarrow.memory_map(path)
      is_stream = input_files.head(path, 6) != b"ARROW1"  # As datasets writes them.
      opened = pyarrow.ipc.open_stream if is_stream else pyarrow.ipc.open_file
      tables.append(opened(file).read_all())
  return tables


def _cached(path: str) -> str:
  """The Arrow file of a Parquet file, written if it is not there."""
  import pyarrow
  import pyarrow.parquet as pq

  folder = cache_dir.folder("arrow")
  if folder is None:
    raise UserError(
      f"{path} is larger than {MEMORY_BYTES:,} bytes and is stored as an Arrow file first, but no"
      " cache folder can be written: set PGJAX_CACHE_DIR."
    )
  with _errors(path):
    info = input_files.status(path)
  identity = f"{os.path.realpath(path)} {info.st_size} {info.st_mtime_ns}"
  target = str(folder / (hashlib.sha256(identity.encode()).hexdigest()[:32] + ".arrow"))
  if os.path.exists(target):
    return target
  log.warning("Storing %s once as Arrow in %s, for reading at random positions.", path, target)
  part = f"{target}.{os.getpid()}"
  try:
    with (
      _errors(path),
      contextlib.closing(pq.ParquetFile(path)) as file,
      pyarrow.OSFile(part, "wb") as sink,
      pyarrow.ipc.new_file(sink, file.schema_arrow) as out,
    ):
      for batch in file.iter_batches(_BATCH_ROWS):
        out.write_batch(batch)
    os.replace(part, target)
  except OSError as error:
    raise UserError(f"{target} cannot be written: {error.strerror or error}.") from None
  finally:
    if os.path.exists(part):
      os.remove(part)
  return target


def _check_kind(path: str) -> None:
  """Raises for what is no file, and for a file of another kind that its first bytes name."""
  start = input_files.head(path, 1024)
  kind = signatures.of(start)
  if kind is not None and not start.startswith((b"PAR1", b"ARROW1")):
    raise UserError(f"{path} is {kind.name}, not a Parquet or Arrow file{kind.as_rows}.")


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
  """Arrow's errors as UserError."""
  try:
    yield
  except UserError:
    raise
  except (OSError, ValueError, KeyError, NotImplementedError) as error:  # ArrowInvalid and others.
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    raise UserError(f"{path} cannot be read as Parquet or Arrow: {cut(reason)}.") from None


def _described(schema) -> str:
  return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _class_names(schema) -> dict[str, list[str]]:
  """{column: names} of the ClassLabel columns that `datasets` describes in the schema."""
  described = (schema.metadata or {}).get(b"huggingface")
  try:
    features = json.loads(described)["info"]["features"] if described else {}
    return {
      name: [str(one) for one in feature["names"]]
      for name, feature in features.items()
      if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
  except (ValueError, KeyError, TypeError):
    return {}


def _has_bytes(kind) -> bool:
  """Whether a column may hold encoded images: bytes, or lists or structs with them."""
  import pyarrow

  types = pyarrow.types
  if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
    return True
  return any(_has_bytes(kind.field(k).type) for k in range(kind.num_fields))


def _is_image(kind) -> bool:
  """Whether it is {"bytes", "path"}, as `datasets` stores images."""
  import pyarrow

  is_struct = pyarrow.types.is_struct(kind)
  return is_struct and {kind.field(k).name for k in range(kind.num_fields)} == {"bytes", "path"}
