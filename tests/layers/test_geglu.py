"""The MLP and its backward pass by hand, whole and in chunks of the sequence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.layers import geglu, remat
from pgjax.layers.lora import Linear

B, T, D, F = 2, 12, 8, 24


def whole(x, gating, linear):
  return geglu.geglu(x, Linear(gating), Linear(linear))


def chunked(chunks, x, gating, linear):
  return geglu.chunked(x, Linear(gating), Linear(linear), chunks)


MLPS = {
  "whole": whole,
  "chunks of 4": functools.partial(chunked, 3),
  "chunks of 1": functools.partial(chunked, 12),
}


def inputs(dtype=np.float32):
  """x, gating, linear and a cotangent."""
  rng = np.random.default_rng(0)
  shapes = (B, T, D), (2, D, F), (F, D), (B, T, D)
  return [jnp.asarray(rng.normal(size=shape) / shape[-2] ** 0.5, dtype) for shape in shapes]


def value_and_gradients(mlp, arguments):
  @jax.jit
  def run(x, gating, linear, dout):
    out, vjp = jax.vjp(mlp, x, gating, linear)
    return out, *vjp(dout)

  return [np.asarray(a, np.float32) for a in run(*arguments)]


def formula(x, gating, linear):
  gate, up = x @ gating[0], x @ gating[1]
  gelu = 0.5 * gate * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
  return (gelu * up) @ linear


@pytest.fixture(scope="module")
def expected():
  """By the formula and autodiff, from float32 inputs and from those rounded to bfloat16."""
  return {
    dtype: value_and_gradients(formula, [a.astype(np.float32) for a in inputs(dtype)])
    for dtype in ("float32", "bfloat16")
  }


@pytest.mark.parametrize("mlp", MLPS.values(), ids=MLPS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_output_and_gradients_equal_the_formula(mlp, dtype, tolerance, expected):
  ours = value_and_gradients(mlp, inputs(dtype))
  names = ("out", "dx", "dgating", "dlinear")
  for name, a, b in zip(names, ours, expected[dtype], strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_and_its_gradient_are_those_of_its_formula(dtype):
  x, *_, dy = inputs(dtype)
  x = 3 * x
  out, vjp = jax.vjp(geglu.gelu, x)
  expected, expected_vjp = jax.vjp(jax.nn.gelu, x.astype(jnp.float32))
  (dx,), (expected_dx,) = vjp(dy), expected_vjp(dy.astype(jnp.float32))
  assert out.dtype == dx.dtype == x.dtype
  np.testing.assert_array_equal(out, expected.astype(dtype))
  np.testing.assert_array_equal(dx, expected_dx.astype(dtype))


def test_chunks_never_hold_the_whole_hidden_layer():
  """The reason for chunks: no array of [B, T, F], forwards or backwards."""

  def largest(mlp):
    *arguments, dout = inputs()
    return max(sizes(jax.make_jaxpr(lambda *a: jax.vjp(mlp, *a)[1](dout))(*arguments).jaxpr))

  assert largest(MLPS["whole"]) == B * T * F
  assert largest(MLPS["chunks of 1"]) < B * T * F


def sizes(jaxpr):
  """Sizes of all arrays of a jaxpr and of its inner ones."""
  for equation in jaxpr.eqns:
    yield from (out.aval.size for out in equation.outvars)
    for value in jax.tree.leaves(tuple(equation.params.values())):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from sizes(inner)


def test_least_memory_has_more_chunks_of_long_sequences():
  """Short ones are computed in four, as under every policy in chunks."""
  chunks = {tokens: remat.mlp_chunks("least_memory", tokens) for tokens in (33, 384, 1536, 4608)}
  assert chunks == {33: 1, 384: 4, 1536: 8, 4608: 16}
  assert remat.mlp_chunks("mlp_out_saveable_chunked", 4608) == 4
  assert remat.mlp_chunks("nothing_saveable", 4608) == 1
