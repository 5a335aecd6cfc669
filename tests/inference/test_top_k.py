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
  mesh = spec and mesh_lib.make_mesh(spec, jax.devices())
  run = jax.jit(lambda x: top_k.of_rows(x, 6, mesh))
  for ours, theirs in zip(run(X_BNV), jax.lax.top_k(X_BNV, 6), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_rows_stay_on_their_devices():
  mesh = mesh_lib.make_mesh([("data", 4), ("tensor", 2)], jax.devices())
  run = jax.jit(lambda x: top_k.of_rows(x, 6, mesh), in_shardings=mesh_lib.batch_sharding(mesh))
  sent = hlo.collectives(run.lower(X_BNV).compile().as_text(), mesh.shape)
  assert {c.axes for c in sent} == {"tensor"}
  assert sum(c.bytes for c in sent) == 2 * 4 * 3 * 2 * 6  # Six candidates a device, and indices.
