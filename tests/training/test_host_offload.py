"""An optimizer's state on the host: the same run, whatever the optimizer."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError

BATCHES = [tiny.batch(seed=i) for i in range(3)]
ADAM8 = dict(optax_name="pgjax.adam8bit")
ADAFACTOR = dict(optax_name="big_vision.scale_by_adafactor", optax={})


def kinds(tree):
  return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
  ("devices", "fields"),
  [
    pytest.param(8, {}, marks=pytest.mark.slow),
    pytest.param(1, ADAM8, marks=pytest.mark.long),
    *(
      pytest.param(1, fields, marks=pytest.mark.long)
      for fields in (dict(ema_decay=0.9), ADAFACTOR, dict(grad_clip_norm=None))
    ),
  ],
)
def test_the_run_is_the_same(devices, fields):
  model = tiny.model(llm=dict(width=64))
  values, states, logs = tiny.parameters(model), [], []
  for memory in ("device", "host"):
    config = tiny.config(opt_state_memory=memory, **fields)
    state, log = tiny.Run(config, model, tiny.mesh(devices=devices)).steps(values, BATCHES)
    assert kinds(state.opt_state) == {"device" if memory == "device" else "pinned_host"}
    assert kinds(state.params) == {"device"}
    states.append(state._replace(opt_state=jax.device_get(state.opt_state)))
    logs.append(log)
  for one, two in zip(*logs, strict=True):
    assert one == pytest.approx(two, rel=1e-3)
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
  for (path, one), two in zip(
    jax.tree_util.tree_leaves_with_path(states[0]), jax.tree.leaves(states[1]), strict=True
  ):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name.endswith("key/bias"):  # Its gradient is nothing but rounding noise.
      continue
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    # Where a moment is rounded its last digit decides now and then.
    assert np.mean(np.abs(one - two) > 1e-3 * np.abs(two).max() + 2e-6) < 5e-3, name


def test_a_device_without_pinned_memory_raises():
  device = SimpleNamespace(
    addressable_memories=lambda: [SimpleNamespace(kind="device")], device_kind="toaster"
  )
  mesh = SimpleNamespace(local_devices=[device])
  mesh_lib.check_opt_state_memory("device", mesh)
  with pytest.raises(UserError, match="needs pinned host memory, and toaster has only device"):
    mesh_lib.check_opt_state_memory("host", mesh)
