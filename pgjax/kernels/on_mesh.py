"""Attention by a kernel with a backward pass of its own, on every device of a mesh.

A fused kernel cannot be partitioned by the compiler, and a loop over blocks of tokens must not be:
each device runs the kernel on its own examples, heads and queries, with all keys. Axes: as in
chunked.py.
"""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from pgjax.kernels import chunked, flash, triton
from pgjax.kernels.visible_keys import VisibleKeys

KERNELS: dict[str, ModuleType] = {"chunked": chunked, "flash": flash, "triton": triton}


class Places(NamedTuple):
  """The axes of a mesh that split examples, queries and key/value heads."""

  mesh: Any
  batch: tuple[str, ...]
  tokens: tuple[str, ...]
  heads: tuple[str, ...]


class Kernel(NamedTuple):
  """Which kernel, and its static arguments."""

  name: str  # Of KERNELS.
  softcap: float
  score_dtype: str
  capability: float | None = None  # Of the GPU that is compiled for; not for chunked.
  places: Places | None = None  # None: one device.

  def arguments(self) -> dict[str, Any]:
    """For `forward` and `backward`."""
    also = {} if self.capability is None else dict(capability=self.capability)
    return dict(softcap=self.softcap, score_dtype=self.score_dtype, **also)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  visible: VisibleKeys | None,
  kernel: Kernel,
) -> Float[Array, "B T K G H"]:
  """As layers/attention.attend."""
  return _forward(q_BTKGH, k_BSKH, v_BSKH, visible, kernel)[0]


def _forward(q_BTKGH, k_BSKH, v_BSKH, visible, kernel):
  # Without the barriers JAX and XLA share work between layers, or between the passes, and hold it.
  q_BTKGH, visible = jax.lax.optimization_barrier((q_BTKGH, visible))
  run = functools.partial(KERNELS[kernel.name].forward, **kernel.arguments())
  specs = _specs(kernel.places, visible)
  if specs:
    inputs = (specs["q"], specs["k"], specs["k"], specs["visible"])
    run = _on_each(kernel, run, inputs, (specs["q"], specs["lse"]))
  out_BTKGH, lse_BKGT = run(q_BTKGH, k_BSKH, v_BSKH, visible)
  return checkpoint_name(out_BTKGH, "attn_out"), checkpoint_name(lse_BKGT, "attn_lse")


def _forward_rule(q_BTKGH, k_BSKH, v_BSKH, visible, kernel):
  out_BTKGH, lse_BKGT = _forward(q_BTKGH, k_BSKH, v_BSKH, visible, kernel)
  return out_BTKGH, (q_BTKGH, k_BSKH, v_BSKH, visible, out_BTKGH, lse_BKGT)


def _backward_rule(kernel, residuals, dout_BTKGH):
  q_BTKGH, k_BSKH, v_BSKH, visible, *rest = residuals
  barrier = jax.lax.optimization_barrier((q_BTKGH, visible, dout_BTKGH))
  q_BTKGH, visible, dout_BTKGH = barrier

  def run(*arrays):
    dq, dk, dv = KERNELS[kernel.name].backward(*arrays, **kernel.arguments())
    if kernel.places and kernel.places.tokens:
      dk, dv = jax.lax.psum((dk, dv), kernel.places.tokens)
    return dq, dk.astype(k_BSKH.dtype), dv.astype(v_BSKH.dtype)

  if specs := _specs(kernel.places, visible):
    q, k = specs["q"], specs["k"]
    run = _on_each(kernel, run, (q, k, k, specs["visible"], q, specs["lse"], q), (q, k, k))
  dq, dk, dv = run(q_BTKGH, k_BSKH, v_BSKH, visible, *rest, dout_BTKGH)
  return dq.astype(q_BTKGH.dtype), dk, dv, None


attend.defvjp(_forward_rule, _backward_rule)


def _specs(places, visible):
  """How the arrays are split; None on one device."""
  if places is None:
    return None
  batch, tokens, heads = (axes or None for axes in places[1:])
  seen = visible and VisibleKeys(P(batch, tokens), None if visible.valid_BS is None else P(batch))
  return dict(q=P(batch, tokens, heads), k=P(batch, None, heads), visible=seen,
              lse=P(batch, heads, None, tokens))  # fmt: skip


def _on_each(kernel, run, inputs, outputs):
  return jax.shard_map(
    run, mesh=kernel.places.mesh, in_specs=inputs, out_specs=outputs, check_vma=False
  )
