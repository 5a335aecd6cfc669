"""EMA weights: their values, what is evaluated, and a resumed run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pgjax import disk, evaluate, train
from pgjax.checkpoints import checksums, orbax_items, saver, source, workdir as workdir_lib
from pgjax.params import tree as param_tree
from pgjax.training import ema
from tests.commands import test_train as test_run

BATCHES = [tiny.batch(seed=i) for i in range(4)]
SOME = [
  ("llm/layers/mlp/.*", "train"),
  ("llm/layers/attn/.*", 'train("bfloat16")'),
  (".*", "freeze"),
]


@pytest.fixture(scope="module")
def run():
  return tiny.Run(tiny.config(params=SOME, ema_decay=0.75, lr=0.1), tiny.model(), tiny.mesh())


@pytest.fixture(scope="module")
def values(run):
  return tiny.parameters(run.model)


def after(run, state, batches):
  for batch in batches:
    state, _ = run.train_step(state, batch)
  return state


def test_the_ema_starts_at_the_initial_weights(run, values):
  state = run.state(values)
  name = "llm/layers/mlp/linear"
  want = np.asarray(param_tree.flatten(state.params)[name], np.float64)
  np.testing.assert_array_equal(state.ema[name], want)
  for batch in BATCHES[:3]:
    state, _ = run.train_step(state, batch)
    want = 0.75 * want + 0.25 * np.asarray(param_tree.flatten(state.params)[name], np.float64)
  np.testing.assert_allclose(state.ema[name], want, rtol=1e-5, atol=1e-7)
  assert np.abs(param_tree.flatten(state.params)[name] - want).max() > 0.01


def test_only_trainable_leaves_have_an_ema_and_it_is_float32(run):
  assert set(run.abstract.ema) == {n for n, rule in run.rules.items() if rule.kind == "train"}
  assert {leaf.dtype for leaf in run.abstract.ema.values()} == {jnp.dtype("float32")}


def test_an_ema_moves_by_less_than_bfloat16_can_represent():
  leaves = {"w": jnp.full(4, 1.5, jnp.bfloat16)}
  got = ema.updated({"w": jnp.ones(4)}, leaves, 0.9999)
  np.testing.assert_allclose(got["w"] - 1, 0.5e-4, rtol=1e-2)


def test_ema_weights_and_frozen_leaves_are_scored(run, values):
  state = after(run, run.state(values), BATCHES[:2])
  scored, raw = param_tree.flatten(ema.scored(state)), param_tree.flatten(state.params)
  assert scored.keys() == raw.keys()
  for name, leaf in scored.items():
    assert leaf is (state.ema[name] if name in state.ema else raw[name])


def test_without_ema_decay_the_state_has_no_ema(values):
  run = tiny.Run(tiny.config(), tiny.model(), tiny.mesh())
  names = orbax_items.named(run.abstract)
  assert all(name.startswith(("step", "params/", "opt_state/")) for name in names)
  assert ema.scored(run.abstract) is run.abstract.params


def test_ema_weights_are_sharded_like_their_leaves(values):
  strategy = [("params/.*", 'fsdp(axis="data", min_size_to_shard_mb=0)'), (".*", "replicate")]
  config = tiny.config(ema_decay=0.9, sharding_strategy=strategy)
  abstract = tiny.Run(config, tiny.model(), tiny.mesh(devices=8)).abstract
  for name, leaf in param_tree.flatten(abstract.params).items():
    assert abstract.ema[name].sharding == leaf.sharding


def saver_in(workdir):
  return saver.Saver(
    disk.open_folder(str(workdir), "--workdir"),
    plan=saver.Plan(total_steps=4),
    config={},
    tokenizer=b"pieces",
    identity={},
    checksums=checksums.jitted_checksums(),
    say=print,
  )


def test_a_run_with_ema_resumes_bit_for_bit(run, values, tmp_path):
  whole = after(run, run.state(values), BATCHES)
  first = saver_in(tmp_path)
  first.latest(run.abstract)
  first.save(
    2, after(run, run.state(values), BATCHES[:2]), dict(step=2, total_steps=4, evaluated=True), {}
  )
  first.close()
  again = saver_in(tmp_path)
  state, _ = again.latest(run.abstract)
  again.close()
  resumed = after(run, state, BATCHES[2:])
  assert jax.tree.structure(resumed) == jax.tree.structure(whole)
  for one, two in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(one, two)


@pytest.mark.long
def test_training_and_commands_score_ema_weights_unless_off(tmp_path, capsys):
  argv = test_run.arguments(tmp_path / "w", total_steps=12, ema_decay=0.9, lr=0.02)
  assert test_run.run_here(train, argv) == 0
  in_training = {k: v for (_, k), v in test_run.scores(tmp_path / "w").items()}
  ema_weights, raw = (
    source.open_source(str(tmp_path / "w"), ema=on).leaves for on in (True, False)
  )
  checkpoint = workdir_lib.find(str(tmp_path / "w"))
  name = "llm/layers/mlp/linear"
  assert not np.array_equal(ema_weights[name].whole(), raw[name].whole())
  assert f"ema/{name}" in checkpoint.sums
  capsys.readouterr()
  argv = [f"--ckpt={tmp_path / 'w'}", f"--out={tmp_path / 'o'}", "--evals=val"]
  assert test_run.run_here(evaluate, argv) == 0
  assert "The trained parameters are their EMA weights" in capsys.readouterr().out
  scored = test_run.json.loads((tmp_path / "o/metrics.json").read_text())
  assert {k: scored[k] for k in in_training} == pytest.approx(in_training)
  assert scored["averages"] is True
  assert test_run.run_here(evaluate, [*argv, "--ema=False"]) == 0
  assert test_run.json.loads((tmp_path / "o/metrics.json").read_text())["averages"] is False
