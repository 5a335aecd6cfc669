"""log(sum(exp)) of long rows in one pass over memory: Triton, for NVIDIA GPUs.

XLA reads the rows twice, for the largest number and for the sum. Axes: C rows, V numbers of a row.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from pgjax.kernels.chunked import MASKED

_BLOCK = 4096  # Numbers of a step.


def of_rows(x_CV: Float[Array, "C V"], *, interpret: bool = False) -> Float[Array, " C"]:
  """The logarithm of the sum of exponentials of each row, float32."""
  C, V = x_CV.shape
  return pl.pallas_call(
    _kernel,
    grid=(C,),
    in_specs=[pl.BlockSpec((None, V), lambda i: (i, 0))],
    out_specs=pl.BlockSpec((1,), lambda i: (i,)),
    out_shape=jax.ShapeDtypeStruct((C,), jnp.float32),
    compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=3),
    interpret=interpret,
    name="logsumexp",
  )(x_CV)


def _kernel(x_ref, out_ref):
  V = x_ref.shape[0]

  def step(i, carry):  # Each lane has its own largest number and sum.
    largest, total = carry
    v = i * _BLOCK + jnp.arange(_BLOCK)
    x = plgpu.load(x_ref.at[v], mask=v < V, other=MASKED).astype(jnp.float32)
    new = jnp.maximum(largest, x)
    return new, total * jnp.exp(largest - new) + jnp.exp(x - new)

  start = jnp.full((_BLOCK,), MASKED, jnp.float32), jnp.zeros((_BLOCK,), jnp.float32)
  largest, total = jax.lax.fori_loop(0, pl.cdiv(V, _BLOCK), step, start)
  most = jnp.max(largest)
  out_ref[0] = most + jnp.log(jnp.sum(total * jnp.exp(largest - most)))
