"""Reads and writes only the parameters of a step folder, lazily: by rows, leaf by leaf."""

import functools
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from pgjax import disk
from pgjax.checkpoints import checksums, orbax_items, workdir
from pgjax.errors import UserError
from pgjax.formats.lazy_array import CHUNK_BYTES, LazyArray
from pgjax.params.tree import unflatten


def stored_names(run: workdir.Checkpoint, *, ema: bool) -> dict[str, str]:
  """{parameter: its name in the checkpoint}; with `ema`, "ema/..." where it is stored."""
  names = {name: f"params/{name}" for name in orbax_items.under(run.shapes, "params")}
  return names | {name: f"ema/{name}" for name in orbax_items.under(run.shapes, "ema") if ema}


def leaves(run: workdir.Checkpoint, *, ema: bool = False) -> dict[str, LazyArray]:
  """The parameters of a checkpoint, read by rows and compared with their checksums."""
  return stored(run, stored_names(run, ema=ema), checked=True)


def stored(
  run: workdir.Checkpoint, names: Mapping[str, str], *, checked: bool = False
) -> dict[str, LazyArray]:
  """The arrays of `stored_names`, read by rows; checked: compared with their checksums.

  Of arrays that are not stored in small chunks (`in_pieces`), one is in memory as a whole.
  """

  @functools.lru_cache(maxsize=1)
  def whole(name):
    return _stored(run, name)[:].read().result()

  @functools.cache
  def rows_of(name):
    store = _stored(run, name)
    rows = store.chunk_layout.read_chunk.shape[0]  # One row costs as much as N.
    dtype = store.dtype.numpy_dtype
    if rows == 1 or rows * math.prod(store.shape[1:]) * dtype.itemsize <= 2 * CHUNK_BYTES:
      read = lambda start, stop: store[start:stop].read().result()  # noqa: E731
    else:
      read = lambda start, stop: whole(name)[start:stop]  # noqa: E731
    leaf = LazyArray(tuple(store.shape), dtype, read)
    if (dtype.name, store.shape) != (run.shapes[name][0], tuple(run.shapes[name][1])):
      raise workdir.DamagedError(f"it is {dtype}{list(store.shape)}, unlike in run.json ($.shapes)")
    if checked and checksums.checksum(leaf.chunks(), ordered=run.ordered) != run.sums[name]:
      raise workdir.DamagedError("it, or its sum in run.json, has changed since it was written")
    return read

  def leaf(name):
    dtype, shape = run.shapes[name]

    def read(start, stop):
      try:
        return rows_of(name)(start, stop)
      except (workdir.DamagedError, ValueError, OSError) as error:
        if reason := disk.disk_trouble(error):
          what = f"The checkpoint {run.path} cannot be read: {name}: {reason}."
          raise workdir.UnreadableError(what) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"The checkpoint {run.path} is damaged: {name}: {reason}") from error

    return LazyArray(tuple(shape), np.dtype(dtype), read)

  return {name: leaf(stored_name) for name, stored_name in names.items()}


def _stored(run: workdir.Checkpoint, name: str) -> tensorstore.TensorStore:
  """Opens one array of Orbax's items `params` and `ema`."""
  item, _, rest = name.partition("/")
  key = dict(driver="ocdbt", base=f"file://{run.path}/{item}/", path=rest.replace("/", ".") + "/")
  return tensorstore.open(dict(driver="zarr", kvstore=key), open=True, read=True).result()


def write_params(
  folder: pathlib.Path,
  weights: Mapping[str, LazyArray],
  run: dict[str, Any],
  tokenizer: bytes | None,
) -> None:
  """Writes a step folder without an optimizer, leaf by leaf; run: see workdir.add_files.

  Chunked, so that neither writing nor restoring onto a mesh needs a second copy of a leaf.
  """
  sums: dict[str, int] = {}
  handler = _LeafWriter(sums)
  registry = ocp.type_handlers.create_type_handler_registry((LazyArray, handler))
  logging.getLogger("absl").addFilter(orbax_items.is_worth_logging)
  folder.mkdir(parents=True)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as writer:
    args = ocp.args.PyTreeSave(
      unflatten(weights),
      save_args=orbax_items.in_pieces(weights),
      ocdbt_target_data_file_size=CHUNK_BYTES,
    )
    writer.save(folder / "params", args=args)
  shapes = {f"params/{name}": [leaf.dtype.name, list(leaf.shape)] for name, leaf in weights.items()}
  sums = {f"params/{name}": value for name, value in sums.items()}
  workdir.add_files(folder, dict(run, shapes=shapes, sums=sums), tokenizer)


class _LeafWriter(ocp.type_handlers.NumpyHandler):
  """Reads and writes one block of rows after the other."""

  def __init__(self, sums: dict[str, int]):
    """`sums` gets the checksum of each leaf, by name."""
    super().__init__(deepcopy_host_arrays=False)
    self._sums = sums

  async def serialize(self, values, infos, args=None):
    """One leaf after the other; Orbax would start all at once."""
    for leaf, info, arg in zip(values, infos, args, strict=True):
      unwritten = _Unwritten(leaf)
      for future in await super().serialize([unwritten], [info], [arg]):
        future.result()
      self._sums[info.name.replace(".", "/")] = unwritten.checksum.value
    return []

  async def _open_and_write(self, value, tspec, ts_context):
    """Replaces Orbax's write of a whole array at once."""
    store = await tensorstore.open(tspec, create=True, open=True, context=ts_context)
    leaf, piece = value.leaf, store.chunk_layout.write_chunk.shape[0]
    rows = piece * max(1, CHUNK_BYTES * leaf.shape[0] // leaf.nbytes // piece)
    for start in range(0, leaf.shape[0], rows):
      stop = min(start + rows, leaf.shape[0])
      block = leaf.read(start, stop)
      value.checksum.add(block)
      await store[start:stop].write(block)


class _Unwritten:
  """The attributes of an array that Orbax reads before it writes it, and its checksum so far."""

  def __init__(self, leaf: LazyArray):
    """Nothing is read yet."""
    self.leaf, self.shape, self.dtype = leaf, leaf.shape, leaf.dtype
    self.size, self.checksum = math.prod(leaf.shape), checksums.Checksum()
