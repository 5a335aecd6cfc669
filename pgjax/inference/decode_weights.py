"""Which copy of the weights makes decoding fast, and is there room for one?

All weights of the text tower are read for every token, and little else. So they are copied once,
before the first token: cast to the compute dtype, on every device of the mesh, the layers taken out
of their stack, the matrices turned (lora.Turned). XLA would do a part of that at every token again:
a slice of a stack is written and read again before it is multiplied (compiled for an H200, a token
of the 3B model at batch 64 moves 10.3 GB from the copy and 19.0 without).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from pgjax.distributed import mesh as mesh_lib, processes
from pgjax.layers import lora
from pgjax.models import paligemma
from pgjax.params import names as param_names, tree as param_tree

SHARE = 0.25  # Of a device's memory, at most.
_PREFIXES = ("llm/", f"{param_names.LORA}llm/")


def byte_budget(mesh: Any) -> int | float:
  """Bytes that such a copy may take of a device: the same on all processes; a CPU has no limit."""
  limits = processes.gather_objects(mesh_lib.memory_limit(mesh))
  return min((SHARE * limit for limit in limits if limit), default=math.inf)


def size(flat: dict[str, Any], dtype: str) -> int:
  """Bytes of the copy."""
  text = {name: leaf for name, leaf in flat.items() if _is_text(name)}
  return sum(
    math.prod(leaf.shape) * _dtype(name, leaf, dtype).itemsize for name, leaf in text.items()
  )


def gather_and_cast(flat: dict[str, Any], dtype: str, mesh: Any = None) -> dict[str, Any]:
  """`flat` with the text tower in the compute dtype, whole on every device of the mesh."""
  place = mesh_lib.replicated(mesh) if mesh is not None and mesh.size > 1 else None
  made = dict(flat)
  for name, leaf in flat.items():
    if _is_text(name):
      made[name] = leaf.astype(_dtype(name, leaf, dtype))
      if place is not None:
        made[name] = jax.lax.with_sharding_constraint(made[name], place)
  return made


def transpose_for_gemv(layer: dict[str, Any]) -> dict[str, Any]:
  """The parameters of a layer, nested, with its plain matrices as lora.Turned."""
  flat = param_tree.flatten(layer)
  for name, leaf in flat.items():
    matrix = param_names.matrix(f"llm/layers/{name}")
    if matrix and isinstance(leaf, jax.Array):
      fused = matrix.shared.removeprefix("L")
      order = [matrix.axes.index(a) - 1 for a in fused + matrix.new + matrix.summed]
      leaf = jnp.transpose(leaf, order)
      flat[name] = lora.Transposed(tuple(leaf)) if fused else lora.Transposed(leaf)
  return param_tree.unflatten(flat)


def _is_text(name: str) -> bool:
  return name.startswith(_PREFIXES)


def _dtype(name: str, leaf: Any, dtype: str) -> Any:
  """What a leaf is copied to: what products read is cast."""
  is_read = name == paligemma.TOKEN_TABLE or param_names.matrix(name)
  return jnp.dtype(dtype if is_read else leaf.dtype)
