"""Weights and moments in bfloat16: what rounding to nearest loses, and stochastic rounding."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
import tiny

from pgjax.errors import UserError
from pgjax.params import tree as param_tree
from pgjax.training import stochastic_rounding

BF16 = [(".*", 'train("bfloat16")')]


def test_stochastic_rounding_is_right_on_average():
  """Each of 2^16 draws is one of the two neighbours; their mean is x to within 5 sigma."""
  x = np.array([1.0, 1.001, -1.001, 3.14159, 1e-30, -7.7e10, 0.0, 1.0078125], np.float32)
  draws = jax.vmap(lambda k: stochastic_rounding.round_stochastically(x, k))(
    jax.random.split(jax.random.key(0), 2**16)
  )
  draws = np.asarray(draws.astype(jnp.float32), np.float64)
  below = (x.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
  above = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32).astype(np.float64)
  assert ((draws == below) | (draws == above)).all()
  sigma = np.abs(above - below) / 2 / 2**8
  assert (np.abs(draws.mean(0) - x) <= 5 * sigma).all()
  exact = [0, 6, 7]  # What bfloat16 can hold does not change.
  np.testing.assert_array_equal(draws[:, exact], np.broadcast_to(x[exact], (2**16, 3)))


def test_random_bits_differ_between_elements_and_keys_and_have_no_pattern():
  x = jnp.full((64, 4096), 1 + 2**-8)  # Halfway.
  up = [
    np.asarray(stochastic_rounding.round_stochastically(x, jax.random.key(k)) > 1, float)
    for k in (0, 1)
  ]
  for u in up:
    assert abs(u.mean() - 0.5) < 5 * 0.5 / 512
    assert abs(np.corrcoef(u[0], u[1])[0, 1]) < 0.08  # 5 sigma of 4096 pairs.
    assert abs(np.corrcoef(u[0, 1:], u[0, :-1])[0, 1]) < 0.08
  assert abs(np.corrcoef(up[0].ravel(), up[1].ravel())[0, 1]) < 0.01


def test_values_that_are_not_finite_do_not_change():
  x = np.array([np.inf, -np.inf, np.nan, -np.nan], np.float32)
  x[2:].view(np.uint32)[:] |= 0xFFFF  # A carry would reach the sign.
  for k in range(20):
    got = np.asarray(stochastic_rounding.round_stochastically(x, jax.random.key(k)), np.float32)
    np.testing.assert_array_equal(got, x)


def test_small_updates_arrive_on_average_only_with_stochastic_rounding():
  """1,000 updates of a thousandth of the spacing: 1 spacing, where rounding to nearest has 0."""
  leaves = {"w": jnp.ones(4096, jnp.bfloat16)}
  updates = {"w": jnp.full(4096, 2**-7 / 1000)}

  def run(key):
    def body(leaves, i):
      step_key = None if key is None else jax.random.fold_in(key, i)
      return stochastic_rounding.apply_updates(leaves, updates, step_key), None

    return jax.jit(lambda: jax.lax.scan(body, leaves, jnp.arange(1000))[0]["w"])()

  np.testing.assert_array_equal(run(None), 1.0)
  moved = np.asarray(run(jax.random.key(0)), np.float64) - 1
  assert abs(moved.mean() / 2**-7 - 1) < 5 / np.sqrt(4096)  # Poisson: variance = mean.


def test_float32_leaves_are_added_as_they_are():
  leaves, updates = {"w": jnp.ones(8)}, {"w": jnp.full(8, 1e-7)}
  got = stochastic_rounding.apply_updates(leaves, updates, jax.random.key(0))
  np.testing.assert_array_equal(got["w"], np.float32(1) + np.float32(1e-7))


@pytest.mark.long
def test_a_run_that_rounding_would_stop_moves_with_stochastic_rounding():
  model, batches = tiny.model(), [tiny.batch(seed=i) for i in range(5)]
  values = tiny.parameters(model)
  name = "llm/layers/mlp/linear"
  start = np.asarray(param_tree.flatten(values)[name]).astype(jnp.bfloat16)
  moved = {}
  for on in (False, True):
    config = tiny.config(params=BF16, lr=2e-5, wd=None, stochastic_rounding=on)
    state, _ = tiny.Run(config, model, tiny.mesh()).steps(values, batches)
    leaf = param_tree.flatten(state.params)[name]
    assert leaf.dtype == jnp.bfloat16
    moved[on] = np.mean(np.asarray(leaf) != start)
  assert moved[False] < 0.15  # Only weights near 0.
  assert moved[True] > 2 * moved[False]


def test_rounding_draws_the_same_bits_on_eight_devices_as_on_one():
  leaves = {"a": jnp.zeros((16, 64), jnp.bfloat16), "b": jnp.ones((8, 4, 32), jnp.bfloat16)}
  updates = {n: jax.random.normal(jax.random.key(0), x.shape) for n, x in leaves.items()}
  results = []
  for devices in (1, 8):
    places = tiny.sharding.shardings(tiny.FSDP, leaves, tiny.mesh(devices=devices))
    got = jax.jit(stochastic_rounding.apply_updates, out_shardings=places)(
      jax.device_put(leaves, places), jax.device_put(updates, places), jax.random.key(3)
    )
    results.append({name: np.asarray(x) for name, x in got.items()})
  for name in leaves:
    np.testing.assert_array_equal(results[0][name], results[1][name])


@pytest.mark.long
def test_a_stochastically_rounded_run_is_reproducible():
  model, batches = tiny.model(), [tiny.batch(seed=i) for i in range(2)]
  run = tiny.Run(tiny.config(params=BF16, stochastic_rounding=True), model, tiny.mesh())
  first, _ = run.steps(tiny.parameters(model), batches)
  second, _ = run.steps(tiny.parameters(model), batches)
  for one, two in zip(*(jax.tree.leaves(s.params) for s in (first, second)), strict=True):
    np.testing.assert_array_equal(one, two)


def test_optimizers_see_bfloat16_weights_in_float32():
  run = tiny.Run(tiny.config(params=BF16), tiny.model(), tiny.mesh())
  moments = jax.tree.leaves((run.abstract.opt_state[1].mu, run.abstract.opt_state[1].nu))
  assert {leaf.dtype for leaf in moments} == {jnp.dtype("float32")}


def test_a_second_moment_in_bfloat16_falls():
  """From 1 with gradients of 0: b2^700 = 0.496, where rounding to nearest stays at 1."""
  tx = stochastic_rounding.adam_bf16(b2=0.999)
  grads = {"w": jnp.zeros(4096)}
  state = tx.init(grads)._replace(v={"w": jnp.ones(4096, jnp.bfloat16)})
  state = jax.jit(
    lambda state: jax.lax.fori_loop(0, 700, lambda _, s: tx.update(grads, s)[1], state)
  )(state)
  assert np.mean(np.asarray(state.v["w"], float)) == pytest.approx(0.999**700, rel=0.01)
  nearest = (jnp.float32(1) * 0.999).astype(jnp.bfloat16)
  assert nearest == 1


def test_adam_bf16_stays_near_adam():
  leaves = {"w": jnp.zeros((64, 64))}
  ours, adam = stochastic_rounding.adam_bf16(b2=0.95), optax.scale_by_adam(b2=0.95)
  states = ours.init(leaves), adam.init(leaves)
  assert {x.dtype for x in jax.tree.leaves((states[0].m, states[0].v))} == {jnp.dtype("bfloat16")}
  for i in range(30):
    grads = {"w": 0.3 + jax.random.normal(jax.random.key(i), (64, 64))}
    got, mine = ours.update(grads, states[0])
    want, theirs = adam.update(grads, states[1])
    states = mine, theirs
  difference = np.sqrt(np.mean((got["w"] - want["w"]) ** 2) / np.mean(want["w"] ** 2))
  assert difference < 0.02


LLM = "llm/layers/mlp/linear"


def checked(lr, name=LLM, dtype="bfloat16", shape=(26, 9216, 2304), **fields):
  base = dict(optax_name="scale_by_adam", optax={}, lr=lr, lr_mults=None, grad_clip_norm=1.0)
  config = ml_collections.ConfigDict({**base, "stochastic_rounding": False, **fields})
  stochastic_rounding.check(config, {name: jax.ShapeDtypeStruct(shape, dtype)})


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    # 9216^-0.5 is 0.0104; 2^-9 of it 2.0e-5.
    (dict(lr=1e-5), "typical weight of 0.01 loses every change below 2e-05, and config.lr=1e-05"),
    (dict(lr=1e-3, lr_mults=[("llm/.*", 0.01)]), "changes of about 1e-05"),
    (dict(lr=1e-5, optax_name="pgjax.adam8bit"), "would never change"),
    (dict(lr=1e-5, optax_name="lion"), "would never change"),
    # Clipped to norm 1, 552 million gradients are of 4e-5 on average.
    (dict(lr=0.03, optax_name="big_vision.sgd"), "changes of about 1e-06"),
    (dict(lr=1e-4, dtype="float32", stochastic_rounding=True), "has nothing to round"),
  ],
)
def test_a_run_that_rounding_would_stop_is_refused(fields, message):
  with pytest.raises(UserError, match=message):
    checked(**fields)


@pytest.mark.parametrize(
  "fields",
  [
    dict(lr=3e-5),
    dict(lr=1e-5, stochastic_rounding=True),
    dict(lr=1e-5, dtype="float32"),
    dict(lr=1e-5, lr_mults=[("llm/.*", 10.0)]),
    dict(lr=0.03, optax_name="big_vision.sgd", grad_clip_norm=None),  # Unknown.
    dict(lr=1e-5, optax_name="lamb"),
    dict(lr=1e-5, name="llm/final_norm/scale", shape=(2304,)),
  ],
)
def test_other_runs_are_not_refused(fields):
  checked(**fields)


@pytest.mark.long
def test_fan_in_is_that_of_the_model():
  """Freshly initialized matrices have the size that the check expects of them."""
  model = tiny.model(llm=dict(width=64))
  image, text = (jnp.zeros(s.shape, s.dtype) for s in tiny.of_model.example_shapes(tiny.config()))
  leaves = param_tree.flatten(model.init(jax.random.key(0), image, text, text)["params"])
  seen = 0
  for name, leaf in leaves.items():
    expected = stochastic_rounding.typical_size(name, leaf.shape)
    if expected and name != "img/head/kernel":  # Initialized to 0.
      seen += 1
      # Xavier, in the image tower, takes the mean of fan-in and fan-out.
      assert 0.6 < np.std(leaf) / expected < 1.5, name
  assert seen == 13
