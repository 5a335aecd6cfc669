"""Gemma's MLP, (gelu(x gate) * (x up)) linear, with its backward pass; gelu in its tanh form.

Axes: B batch, T tokens, C tokens of one chunk, D width, F hidden size. [B, T, F] arrays are the
widest of a layer at 224 px; this file is about how many of them exist, and for how long.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float


@jax.custom_vjp
def geglu(
  x_BTD: Float[Array, "B T D"], gating_2DF: Float[Array, "2 D F"], linear_FD: Float[Array, "F D"]
) -> Float[Array, "B T D"]:
  """(gelu(x gate) * (x up)) linear.

  The backward pass is written by hand so that what is between the products is made in one pass
  over [B, T, F] arrays of the compute dtype; left alone, XLA keeps one of them in float32.
  """
  return _forward(x_BTD, gating_2DF, linear_FD)[0]


def _forward(x_BTD, gating_2DF, linear_FD):
  gate_BTF = checkpoint_name(jnp.einsum("BTD,DF->BTF", x_BTD, gating_2DF[0]), "mlp_gate")
  # Else XLA makes one product of the two where x is small, and a copy of both weights for it.
  again_BTD, gate_BTF = jax.lax.optimization_barrier((x_BTD, gate_BTF))
  up_BTF = checkpoint_name(jnp.einsum("BTD,DF->BTF", again_BTD, gating_2DF[1]), "mlp_up")
  f32 = jnp.float32
  hidden_BTF = (jax.nn.gelu(gate_BTF.astype(f32)) * up_BTF.astype(f32)).astype(x_BTD.dtype)
  out_BTD = checkpoint_name(jnp.einsum("BTF,FD->BTD", hidden_BTF, linear_FD), "mlp_out")
  return out_BTD, (x_BTD, gating_2DF, linear_FD, gate_BTF, up_BTF)


def _backward(kept, dout_BTD):
  x_BTD, gating_2DF, linear_FD, gate_BTF, up_BTF = kept
  dtype, f32 = x_BTD.dtype, jnp.float32
  dhidden_BTF = jnp.einsum("BTD,FD->BTF", dout_BTD, linear_FD)
  # Without the barrier XLA shares gelu with the recomputed forward pass, by a float32 array.
  gate_BTF, up_BTF, dhidden_BTF = jax.lax.optimization_barrier((gate_BTF, up_BTF, dhidden_BTF))
  gelu_BTF, gelu_vjp = jax.vjp(jax.nn.gelu, gate_BTF.astype(f32))
  up, dhidden = up_BTF.astype(f32), dhidden_BTF.astype(f32)
  hidden_BTF = (gelu_BTF * up).astype(dtype)
  dgate_BTF = gelu_vjp(dhidden * up)[0].astype(dtype)
  dup_BTF = (dhidden * gelu_BTF).astype(dtype)
  weight_gradient = functools.partial(jnp.einsum, "BTD,BTF->DF", x_BTD)
  dgating_2DF = jnp.stack([weight_gradient(dgate_BTF), weight_gradient(dup_BTF)])
  dlinear_FD = jnp.einsum("BTF,BTD->FD", hidden_BTF, dout_BTD)
  dx_BTD = jnp.einsum("BTF,DF->BTD", dgate_BTF, gating_2DF[0], preferred_element_type=f32)
  dx_BTD += jnp.einsum("BTF,DF->BTD", dup_BTF, gating_2DF[1], preferred_element_type=f32)
  return dx_BTD.astype(dtype), dgating_2DF, dlinear_FD


geglu.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunked(
  x_BTD: Float[Array, "B T D"],
  gating_2DF: Float[Array, "2 D F"],
  linear_FD: Float[Array, "F D"],
  chunks: int,
) -> Float[Array, "B T D"]:
  """`geglu` for T / chunks tokens at a time, forwards and backwards; keeps x alone."""
  gating, C = _two(gating_2DF), x_BTD.shape[1] // chunks

  def body(i, out_BTD):
    out_BCD, _ = _forward(_take(x_BTD, i, C), gating, linear_FD)
    return _put(out_BTD, out_BCD, i)

  return jax.lax.fori_loop(0, chunks, body, jnp.zeros_like(x_BTD))


def _two(gating_2DF):
  """Sliced before a loop over chunks, which would copy the slices each time."""
  return jax.lax.optimization_barrier((gating_2DF[0], gating_2DF[1]))


def _take(x_BTD, i, size):
  return jax.lax.dynamic_slice_in_dim(x_BTD, i * size, size, axis=1)


def _put(x_BTD, piece_BCD, i):
  return jax.lax.dynamic_update_slice_in_dim(x_BTD, piece_BCD, i * piece_BCD.shape[1], axis=1)


def _chunked_forward(x_BTD, gating_2DF, linear_FD, chunks):
  return chunked(x_BTD, gating_2DF, linear_FD, chunks), (x_BTD, gating_2DF, linear_FD)


def _chunked_backward(chunks, kept, dout_BTD):
  x_BTD, gating_2DF, linear_FD = kept

  gating, C = _two(gating_2DF), x_BTD.shape[1] // chunks

  def body(i, carry):
    dx_BTD, *weight_gradients = carry
    _, operands = _forward(_take(x_BTD, i, C), gating, linear_FD)
    dx_BCD, *new = _backward(operands, _take(dout_BTD, i, C))
    return _put(dx_BTD, dx_BCD, i), *(a + b for a, b in zip(weight_gradients, new, strict=True))

  zeros = (jnp.zeros(w.shape, jnp.float32) for w in (gating_2DF, linear_FD))
  dx_BTD, dgating, dlinear = jax.lax.fori_loop(0, chunks, body, (jnp.zeros_like(x_BTD), *zeros))
  return dx_BTD, dgating.astype(gating_2DF.dtype), dlinear.astype(linear_FD.dtype)


chunked.defvjp(_chunked_forward, _chunked_backward)
