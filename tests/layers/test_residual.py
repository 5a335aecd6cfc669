"""A residual sum with its norms in kernels equals that of single steps, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.distributed import mesh as mesh_lib
from pgjax.layers import placement, residual

CASES = [  # Width, whether there is a branch, and a norm of it, and the norm of the sum.
  (48, True, True, "rms"),
  (24, False, False, "rms"),
  (40, True, True, None),
  (72, True, False, "layer"),
  (16, True, False, "rms"),
]
B, T = 4, 6


def inputs(width, branch, post, norm, dtype):
  rng = np.random.default_rng(0)
  rows = lambda: jnp.asarray(rng.normal(size=(B, T, width)), dtype)  # noqa: E731
  vector = lambda: jnp.asarray(rng.normal(size=width), jnp.float32)  # noqa: E731
  norms = residual.Norm(vector(), vector() if norm == "layer" else None) if norm else None
  post = residual.Norm(vector(), None) if post else None
  return (rows(), rows() if branch else None, post, norms), (rows(), rows() if norm else None)


def assert_kernels_equal_single_steps(case, dtype, constrain=placement.NO_MESH):
  arguments, cotangents = inputs(*case, dtype)

  @functools.partial(jax.jit, static_argnums=0)
  def run(kernels, arguments):
    how = dict(eps=1e-6, kernels=kernels, constrain=constrain, interpret=True)
    results, pull = jax.vjp(functools.partial(residual.added, **how), *arguments)
    return jax.tree.leaves((results, pull(cotangents)))

  for ours, right in zip(run(True, arguments), run(False, arguments), strict=True):
    ours, right = (np.asarray(a, np.float32) for a in (ours, right))
    error = np.linalg.norm(ours - right) / np.linalg.norm(right)
    assert error <= (1e-6 if dtype == "float32" else 1e-2), (case, error)


def test_kernels_equal_single_steps():
  assert_kernels_equal_single_steps(CASES[0], "float32")


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_of_every_kind_equal_single_steps(dtype):
  for case in CASES:
    assert_kernels_equal_single_steps(case, dtype)


@pytest.mark.long
def test_devices_of_a_mesh_compute_their_own_rows():
  mesh = mesh_lib.make_mesh([("data", 4), ("sequence", 2)], jax.devices())
  for case in CASES[:1] + CASES[3:4]:
    assert_kernels_equal_single_steps(case, "float32", placement.Placement(mesh))
