"""Token embeddings and logits of a table that may be sharded by rows.

Axes: B batch, T tokens, D width, V vocabulary (257,152).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float, Int


class TableLayout(NamedTuple):
  """Where batch and table lie on a mesh: the axes that shard the batch, and the table's rows."""

  mesh: Mesh
  batch_axes: tuple[str, ...]
  vocab_axes: tuple[str, ...]  # A subset of batch_axes; empty: every device has all rows.


def table_layout(mesh: Mesh, table_sharding: Sharding) -> TableLayout | None:
  """How to work with a table of that sharding; None on one device.

  A table that is sharded by anything but whole rows is gathered where it is used.
  """
  if mesh.size == 1 or not isinstance(table_sharding, NamedSharding):
    return None
  rows, *rest = (*table_sharding.spec, None, None)
  axes = (rows,) if isinstance(rows, str) else tuple(rows or ())
  if any(rest):
    axes = ()
  return TableLayout(mesh, tuple(mesh.axis_names), axes)


def embed(
  table_VD: Float[Array, "V D"], tokens_BT: Int[Array, "B T"], layout: TableLayout | None = None
) -> Float[Array, "B T D"]:
  """Rows of the table times sqrt(D), formed in float32."""
  lookup = functools.partial(_lookup, axes=layout.vocab_axes if layout else ())
  if layout:
    batch = PartitionSpec(layout.batch_axes)
    lookup = jax.shard_map(
      lookup,
      mesh=layout.mesh,
      in_specs=(rows_spec(layout), batch),
      out_specs=batch,
      check_vma=False,
    )
  return lookup(table_VD, tokens_BT)


def rows_spec(layout: TableLayout) -> PartitionSpec:
  """How the table's rows are sharded."""
  return PartitionSpec(layout.vocab_axes or None)


def _lookup(table_VD, tokens_BT, axes):
  scale = table_VD.shape[-1] ** 0.5
  if not axes:
    return table_VD[tokens_BT].astype(jnp.float32) * scale
  tokens = jax.lax.all_gather(tokens_BT, axes, tiled=True)
  local, mine = local_ids(tokens, table_VD.shape[0], axes)
  x = jnp.where(mine[..., None], table_VD[local].astype(jnp.float32), 0.0) * scale
  return jax.lax.psum_scatter(x, axes, tiled=True)  # One summand is not zero: exact.


def local_ids(tokens, rows, axes):
  """Row numbers within this device's part of the table, and which tokens are in it."""
  local = tokens - (jax.lax.axis_index(axes) * rows if axes else 0)
  mine = (local >= 0) & (local < rows)
  return jnp.clip(local, 0, rows - 1), mine


def add_embed_gradient(
  dtable_VD: Float[Array, "V D"],
  tokens_BT: Int[Array, "B T"],
  dx_BTD: Float[Array, "B T D"],
  layout: TableLayout | None = None,
) -> Float[Array, "V D"]:
  """The gradient of `embed`, added into the buffer that the loss made for the same table."""
  add = functools.partial(_scatter_add, layout=layout)
  if layout:
    batch = PartitionSpec(layout.batch_axes)
    add = jax.shard_map(
      add,
      mesh=layout.mesh,
      in_specs=(rows_spec(layout), batch, batch),
      out_specs=rows_spec(layout),
      check_vma=False,
    )
  return add(dtable_VD, tokens_BT, dx_BTD)


def _scatter_add(dtable_VD, tokens_BT, dx_BTD, layout):
  scale = dtable_VD.shape[-1] ** 0.5
  if layout:  # Every device sees all tokens, and adds those whose rows it has.
    tokens_BT, dx_BTD = jax.lax.all_gather((tokens_BT, dx_BTD), layout.batch_axes, tiled=True)
  local, mine = local_ids(tokens_BT, dtable_VD.shape[0], layout.vocab_axes if layout else ())
  dx = jnp.where(mine[..., None], dx_BTD.astype(jnp.float32), 0.0) * scale
  return dtable_VD.at[local].add(dx.astype(dtable_VD.dtype))


def logits(
  h_BTD: Float[Array, "*B D"], table_VD: Float[Array, "V D"], softcap: float = 0.0
) -> Float[Array, "*B V"]:
  """All logits in float32, soft-capped where `softcap` is set. For inference."""
  return cap(product(h_BTD, table_VD.astype(h_BTD.dtype)), softcap)


def product(h, table_VD):
  """Logits in float32, before the soft-cap."""
  return jnp.einsum("...D,VD->...V", h, table_VD, preferred_element_type=jnp.float32)


def cap(x, softcap):
  """The soft-cap; 0 is off."""
  return softcap * jnp.tanh(x / softcap) if softcap else x
