"""Which copy of the weights makes decoding fast, and does it fit?

Each token reads all weights of the text tower and little else. So they are copied once, before the
first token: cast to the compute dtype, gathered on every device of the mesh (of its part along the
axis `tensor`), unstacked into layers,
the matrices transposed (lora.Transposed). Otherwise XLA repeats a part of that for each token: it
writes a slice of a stack and reads it again before the product (compiled for an H200, a token of
the 3B model at batch 64 moves 10.3 GB with the copy and 19.0 without).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from pgjax.distributed import mesh as mesh_lib, processes, sharding
from pgjax.layers import lora
from pgjax.models import paligemma
from pgjax.params import names as param_names, tree as param_tree

SHARE = 0.25  # The largest share of a device's memory that the copy may take.
_TEXT_TOWER = ("llm/", f"{param_names.LORA}llm/")


def byte_budget(mesh: Any) -> int | float:
  """Bytes a device that the copy may take: the same on all processes; unlimited on a CPU."""
  limits = processes.gather_objects(mesh_lib.memory_limit(mesh))
  return min((SHARE * limit for limit in limits if limit), default=math.inf)


def size(flat: dict[str, Any], dtype: str, mesh: Any = None) -> int:
  """Bytes of the copy on a device."""

  def shape(name, leaf):
    if mesh is None or mesh.size == 1:
      return leaf.shape
    return sharding.for_products(name, leaf.shape, mesh).shard_shape(leaf.shape)

  return sum(
    math.prod(shape(name, leaf)) * _copy_dtype(name, leaf, dtype).itemsize
    for name, leaf in flat.items()
    if name.startswith(_TEXT_TOWER)
  )


def gather_and_cast(flat: dict[str, Any], dtype: str, mesh: Any = None) -> dict[str, Any]:
  """`flat` with the text tower in the compute dtype, as every device of the mesh needs it."""
  copied = dict(flat)
  for name in filter(lambda name: name.startswith(_TEXT_TOWER), flat):
    copied[name] = flat[name].astype(_copy_dtype(name, flat[name], dtype))
    if mesh is not None and mesh.size > 1:
      place = sharding.for_products(name, flat[name].shape, mesh)
      copied[name] = jax.lax.with_sharding_constraint(copied[name], place)
  return copied


def fuse(layer: dict[str, Any], tensor: int = 1) -> dict[str, Any]:
  """The parameters of a layer, nested, for products with a few rows of x.

  Plain matrices are lora.Transposed. Those of queries, keys and values, `attn/qkv`, are one with
  axes [K, G + 2, H, D]: each key/value head after its G query heads. `tensor`: devices that share
  the heads; where they do not share those of keys, all three stay apart.
  """
  flat = param_tree.flatten(layer)
  for name, leaf in flat.items():
    matrix = param_names.matrix(f"llm/layers/{name}")
    if matrix and isinstance(leaf, jax.Array):
      fused = matrix.shared.removeprefix("L")
      order = [matrix.axes.index(a) - 1 for a in fused + matrix.new + matrix.summed]
      flat[name] = lora.Transposed(jnp.transpose(leaf, order))
  q, kv, both = (flat.get(f"attn/{name}_einsum/w") for name in ("q", "kv", "qkv"))
  if isinstance(both, lora.Transposed):
    fused = jnp.swapaxes(flat.pop("attn/qkv_einsum/w").w, 0, 1)
  elif isinstance(q, lora.Transposed) and isinstance(kv, lora.Transposed):
    K, H, D = kv.w.shape[1:]
    if K % tensor:
      return param_tree.unflatten(flat)
    q_KGHD, kv_K2HD = q.w.reshape(K, -1, H, D), jnp.swapaxes(kv.w, 0, 1)
    fused = jnp.concatenate([q_KGHD, kv_K2HD], axis=1)
    del flat["attn/q_einsum/w"], flat["attn/kv_einsum/w"]
  else:
    return param_tree.unflatten(flat)
  flat["attn/qkv"] = lora.Transposed(fused)
  return param_tree.unflatten(flat)


def _copy_dtype(name: str, leaf: Any, dtype: str) -> Any:
  """The compute dtype for operands of matrix products, else the leaf's own."""
  is_operand = name == paligemma.TOKEN_TABLE or param_names.matrix(name)
  return jnp.dtype(dtype if is_operand else leaf.dtype)
