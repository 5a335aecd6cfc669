"""How are arrays stored in Orbax's items of a step folder, and read back onto a mesh?

saver.py decides what is stored where; orbax_params.py reads parameters by rows.
"""

import functools
import logging
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from pgjax import disk
from pgjax.checkpoints import workdir as workdir_lib
from pgjax.formats.lazy_array import CHUNK_BYTES
from pgjax.params.names import STACKED
from pgjax.params.tree import unflatten


def in_pieces(params: Mapping[str, Any]) -> Any:
  """Orbax's save_args, nested: stores large arrays by layer or by blocks of rows.

  Then a conversion holds only one layer in memory, and another mesh reads little in vain.
  """

  def pieces(name, leaf):
    if leaf.nbytes <= CHUNK_BYTES:
      return ocp.SaveArgs()
    by_layer = name.startswith(STACKED)
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if by_layer else ())

  return unflatten({name: pieces(name, leaf) for name, leaf in params.items()})


def read_item(path: pathlib.Path, abstract: Any) -> Any:
  """One Orbax item of a step folder, restored to the shardings of `abstract`."""
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(path, abstract)
  except Exception as error:
    if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
      raise  # Too little memory is not damage.
    if reason := disk.disk_trouble(error):
      raise workdir_lib.UnreadableError(f"{path} cannot be read ({reason}).") from error
    first = (str(error).splitlines() or [type(error).__name__])[0]
    raise workdir_lib.DamagedError(f"{path.name}: {first}") from error


def check_sums(ckpt: workdir_lib.Checkpoint, sums: Mapping[str, jax.Array]) -> None:
  """Raises DamagedError if an array is not the one that was saved."""
  for name, value in jax.device_get(sums).items():
    if int(value) != ckpt.sums[name]:
      raise workdir_lib.DamagedError(f"the content of {name} has changed since it was written")


def named(tree: Any) -> dict[str, Any]:
  """{"params/llm/layers/attn/q_einsum/w": leaf}, in the order of the tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def under(leaves: Mapping[str, Any], folder: str) -> dict[str, Any]:
  """{"a/b": leaf} of each leaf named "folder/a/b"."""
  start = f"{folder}/"
  return {n.removeprefix(start): leaf for n, leaf in leaves.items() if n.startswith(start)}


@functools.cache
def drop_traces_of_other_arrays() -> None:
  """One array that cannot be written or read raises; each of the others would print a trace."""
  report = sys.unraisablehook

  def unless_of_orbax(raised):
    code = getattr(raised.object, "cr_code", None)
    of_orbax = code is not None and "orbax" in code.co_filename
    if not of_orbax and str(raised.exc_value) != "Event loop is closed":
      report(raised)

  sys.unraisablehook = unless_of_orbax
  pattern = re.compile("never retrieved.*(orbax|tensorstore)", re.DOTALL)
  logging.getLogger("asyncio").addFilter(lambda record: not pattern.search(record.getMessage()))


def is_worth_logging(record: logging.LogRecord) -> bool:
  """False for tracebacks of Orbax's threads, which raise here, and for replaced handlers."""
  overriding = re.search("Type handler registry|TypeHandlerRegistry", record.getMessage())
  return "orbax" not in record.pathname or not (record.exc_info or overriding)
