"""Adam with one byte per moment: the map, the blocks, and how near it stays to Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from pgjax.errors import UserError
from pgjax.params import tree as param_tree
from pgjax.training import adam8bit

MAPS = {"signed": adam8bit.SIGNED, "unsigned": adam8bit.UNSIGNED}


@pytest.fixture(params=MAPS)
def a_map(request):
  return MAPS[request.param]


def test_the_maps_are_those_of_the_paper():
  """From arXiv:2110.02861 by hand: decade k of 7 has 2^k cells (2^(k+1) without a sign)."""
  signed, unsigned = adam8bit.SIGNED.values, adam8bit.UNSIGNED.values
  for values in (signed, unsigned):
    assert len(values) == 256
    assert (np.diff(values) > 0).all()
    assert values[-1] == 1.0
  assert signed[127] == unsigned[0] == 0.0
  np.testing.assert_allclose(signed[[0, 126, 128, 129, 130, 254]],
    [-(0.1 + 0.9 * 127 / 128), -0.55e-6, 0.55e-6, 3.25e-6, 7.75e-6, 0.1 + 0.9 * 127 / 128]
  )  # fmt: skip
  np.testing.assert_allclose(unsigned[[1, 2, 3, 254]], [3.25e-7, 7.75e-7, 2.125e-6, 0.99648438])
  np.testing.assert_array_equal(signed[:127], -signed[254:127:-1])


@pytest.mark.parity
def test_the_maps_are_bitsandbytes(a_map):
  functional = pytest.importorskip(
    "bitsandbytes.functional", reason="bitsandbytes is not installed"
  )
  theirs = functional.create_dynamic_map(a_map.signed, 7, 8).numpy()
  np.testing.assert_allclose(a_map.values.astype(np.float32), theirs, rtol=1e-6, atol=0)


def test_codes_and_values_are_inverse_and_the_nearest(a_map):
  codes = jnp.arange(256, dtype=jnp.uint8)
  values = jax.jit(a_map.value)(codes)
  np.testing.assert_allclose(values, a_map.values, rtol=1e-6, atol=0)
  np.testing.assert_array_equal(a_map.nearest(values), codes)
  rng = np.random.default_rng(0)
  x = rng.choice([-1, 1], 20_000) * 10 ** rng.uniform(-9, 0, 20_000)
  x = (x if a_map.signed else np.abs(x)).astype(np.float32)
  error = np.abs(x - a_map.values[np.asarray(a_map.nearest(x))])
  best = np.abs(x[:, None] - a_map.values).min(1)
  if not a_map.signed:  # Not to zero: see Map.nearest.
    x = np.maximum(x, a_map.values[1])
    error, best = error[x > a_map.values[1]], best[x > a_map.values[1]]
  assert (error <= best * 1.001).all()


def test_a_small_second_moment_is_not_rounded_to_zero():
  codes = adam8bit.UNSIGNED.nearest(jnp.array([0.0, 1e-30, 1e-9, 1.0]))
  np.testing.assert_array_equal(codes, [0, 1, 1, 255])


@pytest.mark.parametrize(
  ("shape", "axis", "size"),
  [
    ((26, 8, 2304, 256), 3, 256),
    ((26, 2, 2304, 9216), 2, 256),  # Not along 9216, which fsdp splits.
    ((26, 9216, 2304), 2, 256),
    ((257_152, 2304), 1, 256),
    ((27, 1152, 4304), 1, 192),  # 1152 is no multiple of 256; equal blocks are.
    ((26, 2304), 1, 256),  # No other axis is long enough.
    ((46, 32, 4608, 128), 3, 128),
  ],
)
def test_the_axis_and_size_of_blocks(shape, axis, size):
  assert adam8bit.blocks_of(shape, 256) == adam8bit.Blocks(axis, size)


@pytest.mark.parametrize("shape", [(63, 65), (2304,), (27, 4304)])
def test_small_leaves_and_those_without_equal_blocks_stay_float32(shape):
  assert adam8bit.blocks_of(shape, 256) is None
  state = adam8bit.adam8bit().init({"w": jnp.ones(shape)})
  assert state.m["w"].dtype == state.v["w"].dtype == jnp.float32
  assert not state.m_scale


def test_each_block_has_its_own_scale():
  """A block of large numbers takes no digits from the next, along any axis."""
  x = jnp.ones((64, 200)).at[:, :100].set(1e-6) * jax.random.normal(jax.random.key(0), (64, 200))
  blocks, across = adam8bit.Blocks(1, 100), adam8bit.Blocks(0, 100)
  scale = adam8bit.scale_of(x, blocks)
  codes = adam8bit.encode(adam8bit.SIGNED, x, scale, blocks)
  assert codes.shape == (64, 200)
  assert codes.dtype == jnp.uint8
  np.testing.assert_array_equal(scale, jnp.abs(x).reshape(64, 2, 100).max(2))
  back = adam8bit.decode(adam8bit.SIGNED, codes, scale, blocks)
  # The widest cell, of the decade below 1, is 0.9 / 64.
  assert (jnp.abs(back - x) <= jnp.repeat(scale, 100, axis=1) * 0.9 / 128 * 1.001).all()
  scale_down = adam8bit.scale_of(x.T, across)
  down = adam8bit.encode(adam8bit.SIGNED, x.T, scale_down, across)
  np.testing.assert_array_equal(down, codes.T)
  np.testing.assert_array_equal(scale_down, scale.T)


def test_zero_gradients_stay_zero():
  tx, leaves = adam8bit.adam8bit(), {"w": jnp.zeros((64, 64))}
  updates, state = tx.update(leaves, tx.init(leaves))
  np.testing.assert_array_equal(updates["w"], 0)
  np.testing.assert_array_equal(state.m["w"], 127)
  np.testing.assert_array_equal(state.v["w"], 0)


def test_the_first_update_is_adams_and_later_ones_stay_near():
  leaves = {"w": jnp.zeros((64, 128)), "b": jnp.zeros(64)}
  ours, adam = adam8bit.adam8bit(b2=0.95), optax.scale_by_adam(b2=0.95)
  states = ours.init(leaves), adam.init(leaves)
  assert states[0].m["w"].dtype == jnp.uint8
  for i in range(30):
    keys = jax.random.split(jax.random.key(i), 2)
    grads = {
      n: 0.3 + jax.random.normal(k, leaves[n].shape) for n, k in zip("wb", keys, strict=True)
    }
    got, mine = ours.update(grads, states[0])
    want, theirs = adam.update(grads, states[1])
    states = mine, theirs
    np.testing.assert_allclose(got["b"], want["b"], rtol=1e-5, atol=1e-6)
    if i == 0:  # The update uses the moments before they are rounded.
      np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5)
  difference = np.sqrt(np.mean((got["w"] - want["w"]) ** 2) / np.mean(want["w"] ** 2))
  assert 1e-4 < difference < 0.05


def test_the_state_is_two_bytes_per_element_and_scales():
  leaf = jax.ShapeDtypeStruct((26, 2, 2304, 9216), jnp.float32)
  state = jax.eval_shape(adam8bit.adam8bit().init, {"w": leaf})
  per_element = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state)) / leaf.size
  assert per_element == pytest.approx(2 + 2 * 4 / 256, rel=1e-6)


@pytest.mark.parametrize("block", [32, 64.0, None])
def test_an_invalid_block_is_refused(block):
  with pytest.raises(UserError, match=r"config.optax.block=.* must be a whole number >= 64"):
    adam8bit.adam8bit(block=block)


@pytest.mark.long
def test_eight_devices_take_the_same_steps_as_one():
  """The tiny model's table and MLPs have codes; blocks across devices would show here."""
  config = tiny.config(optax_name="pgjax.adam8bit", optax=dict(eps=1e-5))
  model = tiny.model(llm=dict(width=64, mlp_dim=128))
  values, batches = tiny.parameters(model), [tiny.batch(seed=i) for i in range(3)]
  one, eight = (tiny.Run(config, model, tiny.mesh(devices=n)) for n in (1, 8))
  state_1, log_1 = one.steps(values, batches)
  state_8, log_8 = eight.steps(values, batches)
  coded = [name for name, leaf in state_8.opt_state[1].m.items() if leaf.dtype == jnp.uint8]
  assert "llm/embedder/input_embedding" in coded
  assert not state_8.opt_state[1].m["llm/embedder/input_embedding"].sharding.is_fully_replicated
  np.testing.assert_allclose(log_1[-1]["training_loss"], log_8[-1]["training_loss"], rtol=1e-5)
  for name, leaf in param_tree.flatten(state_1.params).items():
    moved = np.abs(leaf - param_tree.flatten(values)[name]).max()
    other = np.asarray(param_tree.flatten(state_8.params)[name])
    # Gradients differ in their last digits, and so does now and then a code.
    if not name.endswith("key/bias"):  # Its gradient is nothing but rounding noise.
      assert np.mean(np.abs(leaf - other) > 0.01 * moved) < 0.01, name


@pytest.mark.long
def test_given_the_same_gradients_eight_devices_have_the_same_codes():
  leaves = {"a": jnp.zeros((16, 64, 128)), "b": jnp.zeros((512, 64)), "c": jnp.zeros((4, 1024))}
  grads = {n: jax.random.normal(jax.random.key(len(n)), x.shape) for n, x in leaves.items()}
  tx, results = adam8bit.adam8bit(), []
  for devices in (1, 8):
    mesh = tiny.mesh(devices=devices)
    abstract = jax.eval_shape(tx.init, leaves)
    places = tiny.sharding.shardings(tiny.FSDP, dict(opt=abstract, params=leaves), mesh)
    update = jax.jit(tx.update, out_shardings=(places["params"], places["opt"]))
    state = jax.device_put(tx.init(leaves), places["opt"])
    for _ in range(3):
      updates, state = update(jax.device_put(grads, places["params"]), state)
    results.append([np.asarray(x) for x in jax.tree.leaves((updates, state))])
  assert state.m["a"].sharding.shard_shape((16, 64, 128)) == (16, 64, 16)
  for one, eight in zip(*results, strict=True):
    if one.dtype == np.uint8:  # Off by one where the last digit of a moment decides.
      assert np.mean(one != eight) < 1e-3
      assert np.abs(one.astype(int) - eight).max() <= 1
    else:
      np.testing.assert_allclose(one, eight, rtol=1e-6, atol=1e-9)
