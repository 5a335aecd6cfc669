import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import pgjax
from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.errors import UserError


def shape(*sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype)


def spec_of(tactic, leaf, mesh_spec=(("replica", 2), ("data", -1))):
  mesh = mesh_lib.make_mesh(mesh_spec, jax.devices())
  return sharding.shardings([(".*", tactic)], {"params": {"w": leaf}}, mesh)["params"]["w"].spec


def padded(spec, ndim):
  axes = [a[0] if isinstance(a, tuple) and len(a) == 1 else a for a in spec]
  return axes + [None] * (ndim - len(axes))


@pytest.mark.parametrize(
  ("mesh_spec", "sizes"),
  [
    ([("data", -1)], {"data": 8}),
    ([("replica", 2), ("data", -1)], {"replica": 2, "data": 4}),
    ([("replica", -1), ("data", 2)], {"replica": 4, "data": 2}),
    ([("tensor", 2), ("sequence", 4)], {"tensor": 2, "sequence": 4}),
  ],
)
def test_minus_one_takes_the_rest_of_the_devices(mesh_spec, sizes):
  assert dict(mesh_lib.make_mesh(mesh_spec, jax.devices()).shape) == sizes


@pytest.mark.parametrize(
  "mesh_spec", [[("data", 3)], [("a", 3), ("b", -1)], [("a", -1), ("b", -1)], [("a", 0)], []]
)
def test_a_mesh_that_does_not_fit_is_refused(mesh_spec):
  with pytest.raises(UserError, match=r"config\.mesh"):
    mesh_lib.make_mesh(mesh_spec, jax.devices())


@pytest.mark.parametrize(
  ("tactic", "leaf", "want"),
  [
    # 4 MiB exactly stays whole, one element row more is split; the size counts in bytes.
    ('fsdp(axis="data")', shape(1024, 1024), [None, None]),
    ('fsdp(axis="data")', shape(1028, 1024), ["data", None]),
    ('fsdp(axis="data")', shape(1028, 1024, dtype=jnp.bfloat16), [None, None]),
    # Largest first, ties to the later one, the next if it does not divide, whole if none does.
    ('fsdp("data", min_size_to_shard_mb=0)', shape(8, 16), [None, "data"]),
    ('fsdp("data", min_size_to_shard_mb=0)', shape(16, 16), [None, "data"]),
    ('fsdp("data", min_size_to_shard_mb=0)', shape(8, 17), ["data", None]),
    ('fsdp("data", min_size_to_shard_mb=0)', shape(9, 17), [None, None]),
    ('fsdp(["replica", "data"], 0)', shape(4, 16), [None, ("replica", "data")]),
    ('shard_dim("replica", -1) | fsdp("data", 0)', shape(8, 16), ["data", "replica"]),
    ('shard_dim("replica", -2)', shape(8, 16), ["replica", None]),
    ('shard_dim("replica", 2, ignore_ndim_error=True)', shape(8, 16), [None, None]),
    ("replicate", shape(4096, 4096), [None, None]),
    ("replicate()", shape(4096, 4096), [None, None]),
  ],
)
def test_tactics(tactic, leaf, want):
  assert padded(spec_of(tactic, leaf), 2) == want


@pytest.mark.parametrize(
  ("tactic", "message"),
  [
    ('fsdp("dta")', "mesh has no axis 'dta'"),
    ("fsdp()", r"fsdp\(axis: str or .*: missing a required argument: 'axis'"),
    ('fspd("data")', "no 'fspd'. Did you mean 'fsdp'"),
    ("", "cannot be read"),
    ('fsdp(["data", "data"])', "names an axis of the mesh twice"),
    ('fsdp("data"', "cannot be read"),
    ('shard_dim("data", 0) | replicate', "already sharded"),
    ('shard_dim("data", 0) | shard_dim("replica", 0)', "already sharded"),
    ('shard_dim("data", 5)', "no dimension 5"),
    ('shard_dim("data", 1)', "does not divide by 4"),
    ("__import__('os').getcwd()", "cannot be read"),
  ],
)
def test_a_bad_tactic_raises(tactic, message):
  with pytest.raises(UserError, match=message):
    spec_of(tactic, shape(8, 15))


def test_an_axis_of_the_mesh_splits_one_dimension_only():
  with pytest.raises(UserError, match="splits two dimensions of params/w over one axis"):
    spec_of('shard_dim("data", 0) | shard_dim("data", 1)', shape(8, 16))


def test_the_first_matching_pattern_decides_and_unmatched_leaves_are_replicated():
  mesh = mesh_lib.make_mesh([("data", -1)], jax.devices())
  state = {"params": {"a": shape(8), "b": shape(8)}, "opt": ({"a": shape(8)},)}
  strategy = [("params/a", "replicate"), ("params/.*", 'fsdp("data", 0)')]
  got = sharding.shardings(strategy, state, mesh)
  assert padded(got["params"]["a"].spec, 1) == [None]
  assert padded(got["params"]["b"].spec, 1) == ["data"]
  assert padded(got["opt"][0]["a"].spec, 1) == [None]


def test_a_batch_is_split_over_all_axes_and_rows_come_back_in_order():
  mesh = mesh_lib.make_mesh([("replica", 2), ("data", -1)], jax.devices())
  rows = np.arange(48.0).reshape(16, 3)
  array = mesh_lib.global_batch({"x": rows}, mesh)["x"]
  assert {s.data.shape for s in array.addressable_shards} == {(2, 3)}
  np.testing.assert_array_equal(np.asarray(array), rows)
  np.testing.assert_array_equal(mesh_lib.local_rows(array), rows)
  assert array.sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh), 2)
  assert array.sharding.spec == P(("replica", "data"))


def test_a_batch_that_the_devices_do_not_divide_is_refused():
  mesh = mesh_lib.make_mesh([("data", -1)], jax.devices())
  with pytest.raises(UserError, match=r"=12 cannot be divided among 8 devices; try 8 or 16"):
    mesh_lib.global_batch({"x": np.ones((12, 3))}, mesh)


def test_half_an_environment_is_refused(monkeypatch):
  monkeypatch.setenv("PGJAX_COORDINATOR", "127.0.0.1:1234")
  with pytest.raises(UserError, match="not PGJAX_NUM_PROCESSES, PGJAX_PROCESS_ID"):
    mesh_lib.start([("data", -1)])


TWO = """
import numpy as np
from pgjax.distributed import mesh as mesh_lib, processes
mesh = mesh_lib.start([("data", -1)])
index = processes.process_index()
batch = mesh_lib.global_batch({"x": np.arange(4.0) + 10 * index}, mesh)
assert batch["x"].shape == (8,) and mesh.size == 4, (batch, mesh)
assert list(mesh_lib.local_rows(batch["x"])) == list(np.arange(4.0) + 10 * index)
assert processes.gather_objects({"i": "x" * (index + 1)}) == [{"i": "x"}, {"i": "xx"}]
assert processes.is_main() == (index == 0) and processes.process_count() == 2
print("ok", float(batch["x"].sum()))
"""


def test_two_processes_form_one_mesh():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  root = pathlib.Path(pgjax.__path__[0]).parent
  env = os.environ | {
    "PGJAX_COORDINATOR": f"127.0.0.1:{port}",
    "PGJAX_NUM_PROCESSES": "2",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "PYTHONPATH": str(root),
  }
  command = [sys.executable, "-c", TWO]
  pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  started = [
    subprocess.Popen(command, env=env | {"PGJAX_PROCESS_ID": str(i)}, **pipe) for i in range(2)
  ]
  for process in started:
    out, err = process.communicate(timeout=120)
    assert "ok 52.0" in out.splitlines(), err  # Gloo prints lines of its own.
