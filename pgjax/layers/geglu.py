"""Gemma's MLP, (gelu(x gate) * (x up)) linear, with its backward pass; gelu in its tanh form.

[B, T, F] arrays are the widest of a layer at 224 px; this file limits how many exist at once.
Axes: B batch, T tokens, C tokens of one chunk, D width, F hidden size.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pgjax.kernels import choice
from pgjax.layers import quantization
from pgjax.layers.lora import Linear, dropped, is_by_rows, parts, product
from pgjax.layers.placement import NO_MESH, Placement
from pgjax.layers.quantization import Rows


@jax.custom_vjp
def gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
  """gelu in its tanh form, in float32 inside; its backward pass reads x in its own dtype."""
  return jax.nn.gelu(x.astype(jnp.float32)).astype(x.dtype)


def _gelu_backward(x, dy):
  # Without the barrier XLA shares tanh with a recomputed forward pass, by a float32 array.
  x, dy = jax.lax.optimization_barrier((x, dy))
  _, vjp = jax.vjp(jax.nn.gelu, x.astype(jnp.float32))
  return (vjp(dy.astype(jnp.float32))[0].astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def geglu(
  x_BTD: Float[Array, "B T D"],
  gating_2DF: Linear,
  linear_FD: Linear,
  constrain: Placement = NO_MESH,
) -> Float[Array, "B T D"]:
  """(gelu(x gate) * (x up)) linear; gate and up are the two parts of `gating_2DF`.

  The hand-written backward pass computes everything between the products in one pass over
  [B, T, F] arrays of the compute dtype; autodiff stores one of them in float32.
  """
  return _forward(x_BTD, gating_2DF, linear_FD, constrain)[0]


def _forward(x_BTD, gating_2DF, linear_FD, constrain):
  place = constrain.inside
  if is_by_rows(gating_2DF):  # While decoding.
    if isinstance(gating_2DF.w, Rows) and gating_2DF.a is None:
      hidden_BTF = quantization.multiply(x_BTD, gating_2DF.w, gated=True)
    else:
      both = (place(a, "BTF") for a in parts("BTD,CDF->BTCF", x_BTD, gating_2DF))
      hidden_BTF = _hidden(*both)
    return place(_product(hidden_BTF, linear_FD), "BTD"), None
  gate_BTF = checkpoint_name(place(_product(x_BTD, gating_2DF[0]), "BTF"), "mlp_gate")
  # Without the barrier XLA fuses the two products where x is small, and copies both weights.
  again_BTD, _ = jax.lax.optimization_barrier((x_BTD, gate_BTF))
  up_BTF = checkpoint_name(place(_product(again_BTD, gating_2DF[1]), "BTF"), "mlp_up")
  # Without the barrier XLA shares gelu with the backward pass, by a float32 array. One over there
  # would make a copy of stored arrays.
  hidden_BTF = _hidden(*jax.lax.optimization_barrier((gate_BTF, up_BTF)))
  out_BTD = checkpoint_name(place(_product(hidden_BTF, linear_FD), "BTD"), "mlp_out")
  return out_BTD, (x_BTD, gating_2DF, linear_FD, gate_BTF, up_BTF)


def _hidden(gate_BTF, up_BTF):
  f32 = jnp.float32
  return (jax.nn.gelu(gate_BTF.astype(f32)) * up_BTF.astype(f32)).astype(gate_BTF.dtype)


_product = functools.partial(product, "BTX,XY->BTY")  # x w + dropout(x) a b.


def _transposed(dy, linear, dtype=None):
  """The gradient of x, from that of `_product`'s result."""
  einsum = functools.partial(jnp.einsum, preferred_element_type=dtype)
  dx = einsum("BTY,XY->BTX", dy, linear.w)
  if linear.a is None:
    return dx
  dlow_BTR = jnp.einsum("BTY,RY->BTR", dy, linear.b)
  return dx + dropped(einsum("BTR,XR->BTX", dlow_BTR, linear.a), linear)


def _gradients(x, dy, linear):
  """Those of the matrix and its factors; XLA skips those that nothing reads."""
  gradient = functools.partial(jnp.einsum, "BTX,BTY->XY")
  dw = gradient(x, dy)
  if linear.a is None:
    return Linear(dw)
  x = dropped(x, linear)
  low_BTR = jnp.einsum("BTX,XR->BTR", x, linear.a)
  dlow_BTR = jnp.einsum("BTY,RY->BTR", dy, linear.b)
  return Linear(dw, gradient(x, dlow_BTR), gradient(low_BTR, dy), dropout=linear.dropout)


def _backward(constrain, residuals, dout_BTD):
  x_BTD, gating_2DF, linear_FD, gate_BTF, up_BTF = residuals
  dtype, f32 = x_BTD.dtype, jnp.float32
  place = constrain.inside
  dhidden_BTF = place(_transposed(dout_BTD, linear_FD), "BTF")
  gelu_BTF, gelu_vjp = jax.vjp(jax.nn.gelu, gate_BTF.astype(f32))
  up, dhidden = up_BTF.astype(f32), dhidden_BTF.astype(f32)
  hidden_BTF = (gelu_BTF * up).astype(dtype)
  dgate_BTF = gelu_vjp(dhidden * up)[0].astype(dtype)
  dup_BTF = (dhidden * gelu_BTF).astype(dtype)
  gate, up = gating_2DF[0], gating_2DF[1]
  dgate, dup = _gradients(x_BTD, dgate_BTF, gate), _gradients(x_BTD, dup_BTF, up)
  dgating_2DF = jax.tree.map(lambda *parts: jnp.stack(parts), dgate, dup)
  dlinear_FD = _gradients(hidden_BTF, dout_BTD, linear_FD)
  # On GPUs one product adds to the other's rounded result, and nothing is left to convert.
  on_gpu = choice.runs_triton(dtype.name, choice.device_of(constrain.mesh))
  wide = None if on_gpu else f32
  dx_BTD = _transposed(dgate_BTF, gate, wide) + _transposed(dup_BTF, up, wide)
  return place(dx_BTD.astype(dtype), "BTD"), dgating_2DF, dlinear_FD


geglu.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def chunked(
  x_BTD: Float[Array, "B T D"],
  gating_2DF: Linear,
  linear_FD: Linear,
  chunks: int,
  constrain: Placement = NO_MESH,
) -> Float[Array, "B T D"]:
  """`geglu` on T / chunks tokens at a time, forwards and backwards; stores only x."""
  matrices, C = (_two(gating_2DF), linear_FD), x_BTD.shape[1] // chunks

  def body(i, x_BTD):  # The output takes the place of the input.
    out_BCD, _ = _forward(_take(x_BTD, i, C), *_of_chunk(matrices, i), constrain)
    return _put(x_BTD, out_BCD, i)

  return jax.lax.fori_loop(0, chunks, body, x_BTD)


def _two(gating_2DF):
  """Both parts, sliced outside the loop over chunks, which would copy them each time."""
  return jax.lax.optimization_barrier((gating_2DF[0], gating_2DF[1]))


def _of_chunk(matrices, i):
  """The same matrices with a dropout key for chunk i."""
  (gate, up), linear = matrices
  return (gate.with_key_of(i), up.with_key_of(i)), linear.with_key_of(i)


def _take(x_BTD, i, size):
  return jax.lax.dynamic_slice_in_dim(x_BTD, i * size, size, axis=1)


def _put(x_BTD, piece_BCD, i):
  return jax.lax.dynamic_update_slice_in_dim(x_BTD, piece_BCD, i * piece_BCD.shape[1], axis=1)


def _chunked_forward(x_BTD, gating_2DF, linear_FD, chunks, constrain):
  return chunked(x_BTD, gating_2DF, linear_FD, chunks, constrain), (x_BTD, gating_2DF, linear_FD)


def _chunked_backward(chunks, constrain, residuals, dout_BTD):
  x_BTD, gating_2DF, linear_FD = residuals
  matrices, C = (_two(gating_2DF), linear_FD), x_BTD.shape[1] // chunks

  def body(i, carry):  # The input's gradient takes the place of the output's.
    dout_BTD, *gradients = carry
    _, operands = _forward(_take(x_BTD, i, C), *_of_chunk(matrices, i), constrain)
    dx_BCD, *new = _backward(constrain, operands, _take(dout_BTD, i, C))
    return _put(dout_BTD, dx_BCD, i), *jax.tree.map(jnp.add, gradients, new)

  weights = [dataclasses.replace(m, key=None) for m in (gating_2DF, linear_FD)]
  zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
  dx_BTD, *gradients = jax.lax.fori_loop(0, chunks, body, (dout_BTD, *zeros))
  gradients = jax.tree.map(lambda g, w: g.astype(w.dtype), gradients, weights)
  # Without the barrier XLA holds the float32 sums until the layer's end.
  dx_BTD, gradients = jax.lax.optimization_barrier((dx_BTD, gradients))
  return dx_BTD, *gradients


chunked.defvjp(_chunked_forward, _chunked_backward)
