"""Token embeddings and logits of a table that may be sharded by rows.

Axes: B batch, T tokens, D width, V vocabulary (257,152).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float, Int

from pgjax.layers import placement


class TableLayout(NamedTuple):
  """The mesh axes that shard tokens, and those that shard the table's rows."""

  mesh: Mesh
  batch_axes: tuple[str, ...]
  vocab_axes: tuple[str, ...]  # Empty: every device has all rows.
  sequence_axes: tuple[str, ...] = ()  # Those that split T; none of them is in vocab_axes.

  def of(self, tokens_BT: Int[Array, "B T"]) -> "TableLayout":
    """The layout of these tokens, whole along axes that do not divide T."""
    axes = placement.split_axes(self.mesh, "T", tokens_BT.shape[1])
    free = axes and not set(axes) & set(self.vocab_axes)
    return self._replace(sequence_axes=axes if free else ())

  @property
  def token_axes(self) -> tuple[str, ...]:
    """Along them, devices have other tokens."""
    return self.batch_axes + self.sequence_axes

  @property
  def gathered_axes(self) -> tuple[str, ...]:
    """Along them, devices have other rows of the table and other examples."""
    return tuple(axis for axis in self.vocab_axes if axis in self.batch_axes)

  @property
  def summed_axes(self) -> tuple[str, ...]:
    """Along them, devices have other rows of the table and the same examples."""
    return tuple(axis for axis in self.vocab_axes if axis not in self.batch_axes)

  @property
  def batch(self) -> PartitionSpec:
    """How tokens are sharded."""
    return PartitionSpec(self.batch_axes or None, self.sequence_axes or None)

  @property
  def rows(self) -> PartitionSpec:
    """How the table is sharded."""
    return PartitionSpec(self.vocab_axes or None)

  def sharded(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`function` applied to each device's shards."""
    specs = dict(in_specs=in_specs, out_specs=out_specs)
    return jax.shard_map(function, mesh=self.mesh, check_vma=False, **specs)


def table_layout(mesh: Mesh, table_sharding: Sharding) -> TableLayout | None:
  """The layout of a table; None on one device. Unless whole rows are sharded, it is gathered."""
  if mesh.size == 1 or not isinstance(table_sharding, NamedSharding):
    return None
  rows, *rest = (*table_sharding.spec, None, None)
  axes = (rows,) if isinstance(rows, str) else tuple(rows or ())
  if any(rest):
    axes = ()
  return TableLayout(mesh, placement.batch_axes(mesh), axes)


def embed(
  table_VD: Float[Array, "V D"], tokens_BT: Int[Array, "B T"], layout: TableLayout | None = None
) -> Float[Array, "B T D"]:
  """Rows of the table times sqrt(D), formed in float32."""
  layout = layout and layout.of(tokens_BT)
  lookup = functools.partial(_lookup, layout=layout)
  if layout:
    lookup = layout.sharded(lookup, (layout.rows, layout.batch), layout.batch)
  return lookup(table_VD, tokens_BT)


def _lookup(table_VD, tokens_BT, layout):
  scale = table_VD.shape[-1] ** 0.5
  if not layout or not layout.vocab_axes:
    return table_VD[tokens_BT].astype(jnp.float32) * scale
  tokens = gathered(tokens_BT, layout)
  local, mine = local_ids(tokens, table_VD.shape[0], layout.vocab_axes)
  x = jnp.where(mine[..., None], table_VD[local].astype(jnp.float32), 0.0) * scale
  return summed(x, layout)  # One summand is not zero: exact.


def gathered(tree: Any, layout: TableLayout | None) -> Any:
  """Of arrays by example: those of all devices with other rows of the table. In a shard_map."""
  axes = layout.gathered_axes if layout else ()
  return jax.lax.all_gather(tree, axes, tiled=True) if axes else tree


def summed(x: jax.Array, layout: TableLayout | None) -> jax.Array:
  """The sum over all rows of the table, for this device's own of the `gathered` examples."""
  if layout and layout.gathered_axes:  # First: it leaves less to sum.
    x = jax.lax.psum_scatter(x, layout.gathered_axes, tiled=True)
  if layout and layout.summed_axes:
    x = jax.lax.psum(x, layout.summed_axes)
  return x


def local_ids(tokens, rows, axes):
  """Row numbers within this device's shard of the table, and which tokens are in it."""
  local = tokens - (jax.lax.axis_index(axes) * rows if axes else 0)
  mine = (local >= 0) & (local < rows)
  return jnp.clip(local, 0, rows - 1), mine


def add_embed_gradient(
  dtable_VD: Float[Array, "V D"],
  tokens_BT: Int[Array, "B T"],
  dx_BTD: Float[Array, "B T D"],
  layout: TableLayout | None = None,
) -> Float[Array, "V D"]:
  """The gradient of `embed`, added to the loss's gradient of the same table."""
  layout = layout and layout.of(tokens_BT)
  add = functools.partial(_scatter_add, layout=layout)
  if layout:
    add = layout.sharded(add, (layout.rows, layout.batch, layout.batch), layout.rows)
  return add(dtable_VD, tokens_BT, dx_BTD)


def add_narrow_embed_gradient(
  dtable_VD: Float[Array, "V D"], tokens_BT: Int[Array, "B T"], dx_BTD: Float[Array, "B T D"]
) -> Float[Array, "V D"]:
  """As add_embed_gradient on one device, for a table's gradient in bfloat16.

  The gradients of a token are added up in float32, and each row that they touch is rounded once.
  """
  V, D = dtable_VD.shape
  N = tokens_BT.size
  rows_N, where_N = jnp.unique(
    tokens_BT.reshape(N), return_inverse=True, size=N, fill_value=V
  )  # After the last token V, which is no row.
  dx_ND = dx_BTD.reshape(N, D).astype(jnp.float32) * D**0.5
  sums_ND = jnp.zeros((N, D), jnp.float32).at[where_N].add(dx_ND)
  old_ND = dtable_VD.at[rows_N].get(mode="fill", fill_value=0)
  new_ND = (old_ND.astype(jnp.float32) + sums_ND).astype(dtable_VD.dtype)
  # As integers: XLA would widen a whole table of bfloat16 for it.
  bits_VD, new_ND = (jax.lax.bitcast_convert_type(a, jnp.uint16) for a in (dtable_VD, new_ND))
  bits_VD = bits_VD.at[rows_N].set(new_ND, mode="drop", indices_are_sorted=True)
  return jax.lax.bitcast_convert_type(bits_VD, dtable_VD.dtype)


def _scatter_add(dtable_VD, tokens_BT, dx_BTD, layout):
  scale = dtable_VD.shape[-1] ** 0.5
  for axes, dim in ((layout.batch_axes, 0), (layout.sequence_axes, 1)) if layout else ():
    if axes:  # Every device gathers all tokens and adds those of its rows.
      tokens_BT, dx_BTD = jax.lax.all_gather((tokens_BT, dx_BTD), axes, axis=dim, tiled=True)
  local, mine = local_ids(tokens_BT, dtable_VD.shape[0], layout.vocab_axes if layout else ())
  dx = jnp.where(mine[..., None], dx_BTD.astype(jnp.float32), 0.0) * scale
  return dtable_VD.at[local].add(dx.astype(dtable_VD.dtype))


def logits(
  h_BTD: Float[Array, "*B D"],
  table_VD: Float[Array, "V D"],
  softcap: float = 0.0,
  *,
  columns: bool = False,
) -> Float[Array, "*B V"]:
  """All logits in float32, soft-capped where `softcap` is set. For inference.

  columns: the product is the table times columns, which is faster on CPUs for a few of them.
  """
  multiply = _times_columns if columns else product
  return cap(multiply(h_BTD, table_VD.astype(h_BTD.dtype)), softcap)


def product(h, table_VD):
  """Logits in float32, before the soft-cap."""
  return jnp.einsum("...D,VD->...V", h, table_VD, preferred_element_type=jnp.float32)


def _times_columns(h, table_VD):
  y = jnp.einsum("VD,...D->V...", table_VD, h, preferred_element_type=jnp.float32)
  y = jax.lax.optimization_barrier(y)  # Else XLA transposes the product, not the result.
  return jax.lax.optimization_barrier(jnp.moveaxis(y, 0, -1))


def cap(x, softcap):
  """The soft-cap; 0 is off."""
  return softcap * jnp.tanh(x / softcap) if softcap else x
