"""Which copy of the weights makes decoding fast, and does it fit?

Each token reads all weights of the text tower and little else. So they are copied once, before the
first token: cast to the compute dtype, gathered on every device of the mesh (of its part along the
axis `tensor`), unstacked into layers, the matrices by rows (`fuse`), one for queries, keys and
values. Otherwise XLA repeats a part of that for each token: it writes a slice of a stack, or a
joined matrix, and reads it again before the product (compiled for an H200, a token of the 3B model
at batch 64 moves 8.3 GB with the copy and 19.0 without).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from pgjax.distributed import mesh as mesh_lib, processes, sharding
from pgjax.kernels import choice
from pgjax.layers import lora, quantization
from pgjax.models import paligemma
from pgjax.params import names as param_names, tree as param_tree

# XLA's CPU multiplies the token table by up to so many columns faster than rows by its transpose.
MAX_COLUMNS = 48
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


def fuse(layer: dict[str, Any], dtype: str, constrain: Any, kernels: bool) -> dict[str, Any]:
  """The parameters of a layer, nested, for products with a few rows of x.

  Matrices are by rows, with their adapters in the compute dtype: lora.Transposed, or
  quantization.Rows where `kernels` may multiply quantized ones (others stay as they are). Those of
  queries, keys and values are one, `attn/qkv` [K, G + 2, H, D], where each key/value head comes
  after its G query heads, unless devices that share the heads do not share those of keys.
  """
  flat = param_tree.flatten(layer)
  for name, leaf in flat.items():
    if matrix := param_names.matrix(f"llm/layers/{name}"):
      flat[name] = _by_rows(matrix, leaf, dtype, constrain.mesh, kernels)
  names = ["attn/qkv_einsum/w"]
  if names[0] not in flat:
    names = ["attn/q_einsum/w", "attn/kv_einsum/w"]
  linears = [flat[name] for name in names]
  if _alike(linears) and (len(names) == 1 or _shared(linears[-1], constrain)):
    flat = {name: leaf for name, leaf in flat.items() if name not in names}
    flat["attn/qkv"] = _one_matrix(*linears)
  return param_tree.unflatten(flat)


def multiplies_codes(rows: int, dtype: str, constrain: Any) -> bool:
  """Whether `rows` branches of a batch are multiplied with quantized matrices by a kernel."""
  devices = 1 if constrain.mesh is None else mesh_lib.batch_devices(constrain.mesh)
  device = choice.device_of(constrain.mesh)
  return choice.multiplies_codes(rows // devices, dtype, device, constrain.tensor)


def are_few(rows: int, constrain: Any) -> bool:
  """Whether each device has at most MAX_COLUMNS of these rows."""
  devices = 1 if constrain.mesh is None else mesh_lib.batch_devices(constrain.mesh)
  return rows <= MAX_COLUMNS * devices


def _by_rows(matrix, leaf, dtype, mesh, kernels):
  """A lora.Linear by rows, or the leaf itself if its matrix cannot be."""
  base = leaf.base if isinstance(leaf, lora.Adapted) else leaf
  fused = matrix.shared.removeprefix("L")
  if isinstance(base, quantization.Quantized):
    w = quantization.by_rows(base, len(matrix.summed), mesh) if kernels else None
  else:
    order = [matrix.axes.index(a) - 1 for a in fused + matrix.new + matrix.summed]
    w = jnp.transpose(base.astype(dtype), order)
    w = lora.Transposed(w.reshape(*w.shape[: -len(matrix.summed)], -1))
  if w is None:
    return leaf
  if not isinstance(leaf, lora.Adapted):
    return lora.Linear(w)
  linear = lora.adapted(w, leaf, dtype)
  return lora.one_adapter(linear) if fused else linear


def _alike(linears):
  """Whether all are by rows and stored in the same way."""

  def kind(linear):
    if not isinstance(linear, lora.Linear):
      return None
    return type(linear.w), [(a.dtype, a.shape[-1]) for a in jax.tree.leaves(linear.w)]

  return kind(linears[0]) is not None and all(kind(a) == kind(linears[0]) for a in linears)


def _shared(kv, constrain):
  """Whether the devices along `tensor` share the key/value heads, each with its queries."""
  return jax.tree.leaves(kv.w)[0].shape[1] % constrain.tensor == 0


def _one_matrix(*linears):
  """Queries, keys and values as one Linear, its heads in the order [K, G + 2]."""
  heads = [jax.tree.leaves(linear.w)[0].shape[:-1] for linear in linears]
  join = functools.partial(_joined, kv_heads=heads[-1][1])
  w = jax.tree.map(lambda *parts: join(parts), *(linear.w for linear in linears))
  adapted = [i for i, linear in enumerate(linears) if linear.a is not None]
  if not adapted:
    return lora.Linear(w)

  def to_all(i, b):  # A row of b: 0 for the heads of other leaves.
    return join([b if i == j else jnp.zeros(shape, b.dtype) for j, shape in enumerate(heads)])

  b = [jax.vmap(functools.partial(to_all, i))(linears[i].b) for i in adapted]
  return lora.Linear(w, jnp.concatenate([linears[i].a for i in adapted], -1), jnp.concatenate(b))


def _joined(parts, kv_heads):
  """[N, H, ...] and [2, K, H, ...], or [3, K, H, ...] alone, as [K, G + 2, H, ...]."""
  *q, kv = parts
  by_head = [part.reshape(kv_heads, -1, *part.shape[1:]) for part in q] + [jnp.swapaxes(kv, 0, 1)]
  return jnp.concatenate(by_head, axis=1)


def _copy_dtype(name: str, leaf: Any, dtype: str) -> Any:
  """The compute dtype for operands of matrix products, else the leaf's own."""
  is_operand = name == paligemma.TOKEN_TABLE or param_names.matrix(name)
  return jnp.dtype(dtype if is_operand else leaf.dtype)
