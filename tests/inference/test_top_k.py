"""The largest of sharded rows, against jax.lax.top_k, ties included."""

import jax
import numpy as np
import pytest

from pgjax.distributed import mesh as mesh_lib
from pgjax.inference import top_k
from pgjax.planning import hlo

X_BNV = np.random.default_rng(0).integers(0, 9, size=(4, 3, 32)).astype(np.float32)  # With ties.


@pytest.mark.parametrize("spec", [[("data", 4), ("tensor", 2)], [("data", 1), ("tensor", 8)], None])
def test_values_and_indices_are_those_of_top_k(spec):
  assert_as_top_k(X_BNV, 6, spec and mesh_lib.make_mesh(spec, jax.devices()))


@pytest.mark.parametrize("values", [3, 1000, 0])  # 0: all different.
@pytest.mark.parametrize("k", [1, 3, 17])
def test_the_largest_are_found_by_blocks(values, k):
  rng = np.random.default_rng(values)
  size = (2, 3, 64 * 75)  # 17 of them are too many for blocks.
  x_BNV = rng.integers(0, values, size) if values else rng.permuted(np.indices(size)[2], axis=2)
  x_BNV = x_BNV.astype(np.float32)
  x_BNV[0, 0, :] = -np.inf
  x_BNV[0, 0, 70] = 1.0
  assert_as_top_k(x_BNV, k, None)


def test_blocks_are_those_of_each_device():
  x_BNV = np.random.default_rng(0).integers(0, 50, (4, 1, 64 * 256)).astype(np.float32)
  assert_as_top_k(x_BNV, 3, mesh_lib.make_mesh([("data", 4), ("tensor", 2)], jax.devices()))


def test_rows_of_a_vocabulary_are_not_sorted():
  x_BNV = jax.ShapeDtypeStruct((2, 3, 64 * 256), np.float32)
  taken = [
    e.invars[0].aval.shape
    for e in top_ks(jax.make_jaxpr(lambda x: top_k.of_rows(x, 3))(x_BNV).jaxpr)
  ]
  assert taken == [(2, 3, 256), (2, 3, 3 * 64)]


def top_ks(jaxpr):
  return [e for e in jaxpr.eqns if e.primitive.name == "top_k"]


def assert_as_top_k(x_BNV, k, mesh):
  run = jax.jit(lambda x: top_k.of_rows(x, k, mesh))
  for ours, theirs in zip(run(x_BNV), jax.lax.top_k(x_BNV, k), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_rows_stay_on_their_devices():
  mesh = mesh_lib.make_mesh([("data", 4), ("tensor", 2)], jax.devices())
  run = jax.jit(lambda x: top_k.of_rows(x, 6, mesh), in_shardings=mesh_lib.batch_sharding(mesh))
  sent = hlo.collectives(run.lower(X_BNV).compile().as_text(), mesh.shape)
  assert {c.axes for c in sent} == {"tensor"}
  assert sum(c.bytes for c in sent) == 2 * 4 * 3 * 2 * 6  # Six candidates a device, and indices.
