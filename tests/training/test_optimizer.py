import inspect
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from pgjax.errors import UserError
from pgjax.training import optimizer, schedules

CONST = dict(decay_type="const")
NAMES = ["img/a/kernel", "img/a/bias", "llm/w"]


def make_config(**fields):
  base = dict(
    optax_name="big_vision.sgd",
    optax={},
    lr=0.5,
    lr_mults=None,
    wd=0.0,
    wd_mults=None,
    grad_clip_norm=None,
    schedule=CONST,
    input=dict(batch_size=32),
  )
  return ml_collections.ConfigDict(base | fields)


def tree(seed=0, shape=(3, 2)):
  keys = jax.random.split(jax.random.key(seed), len(NAMES))
  return {name: jax.random.normal(k, shape) for name, k in zip(NAMES, keys, strict=True)}


def updates(config, num_steps=1, total_steps=10, values=None):
  tx = optimizer.make(config, total_steps, NAMES)
  values = tree() if values is None else values
  state = tx.init(values)
  result = []
  for i in range(num_steps):
    update, state = tx.update(tree(i + 1), state, values)
    result.append(update)
  return result


def close(got, want):
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-7, err_msg=name)


def scaled(tree, factor):
  return {name: factor * value for name, value in tree.items()}


def test_the_update_is_minus_schedule_times_lr_gradient_plus_decay():
  # Halfway of a linear decay: multiplier 1 - 5/10; decay only on kernels, not times lr.
  config = make_config(wd=0.1, schedule=dict(decay_type="linear"))
  got, values, grads = updates(config, 6)[5], tree(), tree(6)
  want = scaled(grads, -0.5 * 0.5)
  want["img/a/kernel"] = want["img/a/kernel"] - 0.5 * 0.1 * values["img/a/kernel"]
  close(got, want)


def test_clipping_comes_first_and_counts_only_trainable_leaves():
  grads = tree(1)
  norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
  assert norm > 1
  close(updates(make_config(grad_clip_norm=1.0))[0], scaled(grads, -0.5 / norm))


def test_adam_follows_optax_and_leaves_no_state_for_other_names():
  config = make_config(optax_name="scale_by_adam", optax=dict(b2=0.95), lr=1e-2)
  reference = optax.adam(1e-2, b2=0.95)
  state = reference.init(tree())
  for i, got in enumerate(updates(config, 4)):
    want, state = reference.update(tree(i + 1), state)
    close(got, want)
  adam = optimizer.make(config, 10, ["llm/w"]).init({"llm/w": jnp.ones(2)})[0]
  assert list(adam.mu) == ["llm/w"]


def test_moments_can_be_stored_in_bfloat16():
  config = make_config(optax_name="scale_by_adam", optax=dict(mu_dtype="bfloat16"))
  adam = optimizer.make(config, 10, NAMES).init(tree())[0]
  assert adam.mu["llm/w"].dtype == jnp.bfloat16
  assert adam.nu["llm/w"].dtype == jnp.float32


def test_momentum_hp_is_a_bfloat16_trace():
  got = updates(make_config(optax_name="big_vision.momentum_hp"), 2)[1]
  first = {name: np.asarray(g.astype(jnp.bfloat16), np.float32) for name, g in tree(1).items()}
  for name, g in tree(2).items():
    np.testing.assert_allclose(got[name], -0.5 * (g + 0.9 * first[name]), rtol=1e-2, atol=1e-2)
  state = optimizer.make(make_config(optax_name="big_vision.momentum_hp"), 1, NAMES).init(tree())
  assert state[0].trace["llm/w"].dtype == jnp.bfloat16


def test_adafactor_factors_large_matrices_and_caps_beta2():
  config = make_config(optax_name="big_vision.scale_by_adafactor", optax=dict(momentum=None))
  tx = optimizer.make(config, 10, ["llm/w"])
  w = jax.random.normal(jax.random.key(0), (32, 40))
  state = tx.init({"llm/w": w})
  factored = state[0][0]
  assert factored.v_row["llm/w"].shape == (32,)
  assert factored.v_col["llm/w"].shape == (40,)
  # At the first step beta2 = 1 - 1^-0.8 = 0: the second moment is only of this gradient.
  got = tx.update({"llm/w": w}, state, {"llm/w": w})[0]["llm/w"]
  rows, columns = (w**2).mean(1), (w**2).mean(0)
  want = -0.5 * w / jnp.sqrt(rows[:, None] * columns[None] / rows.mean())
  np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("name", optimizer.COMPLETE)
def test_a_complete_optimizer_takes_its_rate_from_the_config(name):
  config = make_config(optax_name=name, lr=1e-2)
  make = getattr(optax, name)
  takes = inspect.signature(make).parameters
  no_decay = {key: 0.0 for key in ("weight_decay", "weight_decay_rate") if key in takes}
  reference = make(1e-2, **no_decay)
  state = reference.init(tree())
  for i, got in enumerate(updates(config, 3)):
    want, state = reference.update(tree(i + 1), state, tree())
    close(got, want)


def test_lr_mults_scale_the_gradient_but_not_the_decay():
  config = make_config(lr_mults=[("img/.*", 0.1)], wd=0.2, wd_mults=[("llm/.*", 3.0)])
  got, values, grads = updates(config)[0], tree(), tree(1)
  close(got, {
    "img/a/kernel": -0.05 * grads["img/a/kernel"],
    "img/a/bias": -0.05 * grads["img/a/bias"],
    "llm/w": -0.5 * grads["llm/w"] - 0.2 * 3 * values["llm/w"],
  })  # fmt: skip


def test_each_pattern_has_its_own_schedule():
  schedule = [("img/.*", dict(decay_type="linear")), (".*", CONST)]
  got, grads = updates(make_config(schedule=schedule), 3)[2], tree(3)
  close(got, {"img/a/kernel": -0.5 * 0.8 * grads["img/a/kernel"], "llm/w": -0.5 * grads["llm/w"]})


def values_at(at, schedule, total_steps=100):
  fn = schedules.make_schedule(schedule, make_config(), total_steps)
  return [float(fn(step)) for step in at]


def cosine(progress):
  return 0.5 * (1 + math.cos(math.pi * progress))


@pytest.mark.parametrize(
  ("schedule", "steps", "want"),
  [
    # warmup_percent 0.05 of 100 is 5 steps: nothing at step 0, then a cosine over the other 95.
    (
      dict(decay_type="cosine", warmup_percent=0.05),
      (0, 2, 5, 52, 100),
      (0, 0.4, 1, cosine(47 / 95), 0),
    ),
    # round(6.5) is 6 and round(0.4) at least 1, as in big_vision.
    (dict(decay_type="const", warmup_percent=0.065), (3, 6), (0.5, 1)),
    (dict(decay_type="const", warmup_percent=0.004), (0, 1), (0, 1)),
    (dict(decay_type="const", warmup_examples=320), (5, 10), (0.5, 1)),
    (dict(decay_type="linear"), (0, 25, 100, 120), (1, 0.75, 0, 0)),
    (dict(decay_type="linear", linear_end=0.2), (50, 100), (0.6, 0.2)),
    (dict(decay_type="polynomial", power=2, end=0.1), (50, 100), (0.1 + 0.9 / 4, 0.1)),
    (dict(decay_type="rsqrt", timescale=100, warmup_steps=10), (5, 10, 40), (0.5, 1, 1.3**-0.5)),
    (dict(decay_type="rsqrt", timescale_examples=3200, shift=300), (0, 100), (0.5, 5**-0.5)),
    (dict(decay_type="stair", steps=[2, 4], mults=[0.5, 0.1]), (1, 2, 3, 4), (1, 0.5, 0.5, 0.1)),
    (dict(decay_type="const", cooldown_steps=10), (90, 95, 100), (1, 0.5, 0)),
    (dict(decay_type="const", scale_with_batchsize=True), (7,), (32 / 256,)),
  ],
)  # fmt: skip
def test_schedules_by_hand(schedule, steps, want):
  np.testing.assert_allclose(values_at(steps, schedule), want, rtol=1e-5, atol=1e-7)


def test_runs_of_zero_and_one_step_have_a_schedule():
  for total in (0, 1):
    assert np.isfinite(
      values_at([0, 1], dict(decay_type="cosine", warmup_percent=0.05), total)
    ).all()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(optax_name="scale_by_adan_"), "Did you mean 'scale_by_adan'"),
    (dict(optax_name="__name__"), "no optimizer"),
    (dict(optax_name="fromage"), "does not fit between"),
    (dict(optax_name="lbfgs"), "does not fit between"),
    (dict(optax_name="apply_updates"), "does not fit apply_updates|cannot turn"),
    (dict(optax_name="cosine_decay_schedule", optax=dict(init_value=1.0, decay_steps=3)), "cannot"),
    (dict(optax_name="scale_by_polyak"), "cannot turn gradients into updates by itself"),
    (dict(optax_name="scale_by_adam", optax=dict(beta=3)), "takes: b1, b2"),
    (dict(optax_name="scale_by_adam", optax=dict(mu_dtype="bf17")), "is not a dtype"),
    (dict(optax_name="adamw", optax=dict(learning_rate=3.0)), "use config.lr"),
    (dict(optax_name="adamw", optax=dict(weight_decay=3.0)), "use config.wd"),
    (dict(lr_mults=[("lmm/.*", 2.0)]), "config.lr_mults: pattern 'lmm/.*' is never used"),
    (dict(schedule=[("img/.*", CONST)]), "llm/w trains .* but no pattern covers it"),
    (dict(schedule=[("img/.*", None), (".*", CONST)]), "freezes it"),
    (dict(schedule=[("imgs/.*", CONST), (".*", CONST)]), "'imgs/.*' is never used"),
    (dict(schedule=dict(decay_type="cosin")), "Did you mean 'cosine'"),
    (dict(schedule=dict(decay_type="const", warmup_steps=10)), "must be shorter than the run"),
    (dict(schedule=dict(decay_type="stair", steps=[1], mults=[])), "as many mults"),
  ],
)
def test_invalid_optimizers_and_schedules_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    optimizer.make(make_config(**fields), 10, NAMES)


def test_nothing_to_train_is_refused():
  with pytest.raises(UserError, match="trains nothing"):
    optimizer.make(make_config(), 10, [])


@pytest.mark.parametrize(
  ("steps", "fields", "idle"),
  [
    (1, dict(schedule=dict(decay_type="cosine", warmup_steps=1)), True),
    (2, dict(schedule=dict(decay_type="cosine", warmup_steps=1)), False),
    (1, dict(schedule=dict(decay_type="const")), False),
    (9, dict(schedule=dict(decay_type="const"), lr=0.0, wd=0.0), True),
    (9, dict(schedule=dict(decay_type="const"), lr=0.0, wd=0.1), False),
    (5000, dict(schedule=dict(decay_type="linear", warmup_steps=10)), False),
  ],
)
def test_a_run_that_learns_nothing_is_known_before_it_starts(steps, fields, idle):
  config = make_config(**fields)
  assert schedules.learns_nothing(config, steps, ["a"], 100) == idle
