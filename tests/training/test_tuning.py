"""Runs that train adapters, as a user starts them: started, resumed, scored, continued."""

import json
import re

import numpy as np
import pytest

from pgjax import cli, convert, evaluate, train
from pgjax.checkpoints import source as source_lib, workdir as workdir_lib

# Two workers would train twice.
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("tuning")]
TINY = dict(width=16, depth=1, mlp_dim=32, num_heads=2)
FIELDS = {
  "total_steps": 8,
  "input.batch_size": 8,
  "input.data": dict(name="easy_vqa", split="train[:60]"),
  "model.img": dict(TINY, variant="tiny", patch_size=16),
  "model.llm": dict(TINY, variant="tiny", num_kv_heads=1, head_dim=8, vocab_size=1792),
  "log_training_steps": 4,
  "ckpt_steps": 4,
  "evals.val.data": dict(name="easy_vqa", split="train[60:90]"),
  "evals.val.batch_size": 8,
  "evals.val.log_steps": 8,
  "evals.test.data": dict(name="easy_vqa", split="test[:8]"),
  "evals.test.batch_size": 8,
}


def run(workdir, arg="", **settings):
  """Trains in this process: the exit code."""
  fields = FIELDS | {name.replace("__", "."): value for name, value in settings.items()}
  argv = [f"--config=configs/easyvqa.py:{arg}", f"--workdir={workdir}"]
  return call(train, [*argv, *(f"--config.{name}={value}" for name, value in fields.items())])


def call(module, argv):
  with pytest.raises(SystemExit) as end:
    cli.run(
      module.main, module.__doc__, module.FLAGS, config=module.CONFIG, argv=[module.__file__, *argv]
    )
  return end.value.code or 0


def scores(workdir):
  rows = [json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {n: v for row in rows if row["step"] == 8 for n, v in row.items() if n.startswith("val/")}


@pytest.fixture(scope="module", autouse=True)
def _in_root(root):
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(root)
    yield


@pytest.fixture(scope="module")
def full(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("full") / "w"
  assert run(workdir) == 0
  return workdir


@pytest.fixture(scope="module")
def qlora(full, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("qlora") / "w"
  assert run(workdir, f"tune=qlora,init={full}") == 0
  return workdir


def whole(path):
  """The parameters that a checkpoint's own leaves stand for, and its adapters' factors."""
  source = source_lib.open_source(str(path))
  factors = {(n, f): getattr(a, f).whole() for n, a in source.adapters.items() for f in "ab"}
  return {name: leaf.whole() for name, leaf in source.leaves.items()}, factors


def test_the_base_is_the_checkpoint_quantized_and_only_factors_moved(full, qlora):
  (before, none), (after, factors) = whole(full), whole(qlora)
  assert not none
  assert {name for name, _ in factors} == {
    *(f"llm/layers/attn/{n}/w" for n in ("q_einsum", "kv_einsum", "attn_vec_einsum")),
    *("llm/layers/mlp/gating_einsum", "llm/layers/mlp/linear"),
  }
  assert all(np.any(a) for a in factors.values())
  for name, was in before.items():
    matrix = any(name == n for n, _ in factors) or (name[:3] == "img" and "/kernel" in name)
    if not matrix or name == "img/embedding/kernel":
      rounded = was.astype(after[name].dtype)
      assert after[name].dtype.name == "bfloat16"
      np.testing.assert_array_equal(after[name], rounded, err_msg=name)
    else:
      error = np.abs(after[name] - was).max() / np.abs(was).max()
      assert error < 0.16, name  # Half of the widest gap between two codes.
      assert np.any(after[name] != was)


def test_it_is_scored_as_in_training(qlora, tmp_path):
  assert call(evaluate, [f"--ckpt={qlora}", "--evals=val", f"--out={tmp_path}/o"]) == 0
  metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
  assert {name: metrics[name] for name in scores(qlora)} == scores(qlora)


def test_resumed_is_uninterrupted(full, qlora, tmp_path):
  arg = f"tune=qlora,init={full}"
  assert run(tmp_path / "w", arg, input__num_threads=1) == 0
  folder = tmp_path / "w" / "checkpoints"
  sums = workdir_lib.read(folder / "8").sums
  assert sums == workdir_lib.read(qlora / "checkpoints" / "8").sums
  (folder / "8").rename(tmp_path / "8")
  assert run(tmp_path / "w", arg) == 0
  assert workdir_lib.read(folder / "8").sums == sums


def test_another_run_continues_the_adapters_or_merges_them(qlora, tmp_path):
  assert run(tmp_path / "on", f"tune=qlora,init={qlora}", lr=0.0) == 0
  (base, factors), (again, carried) = whole(qlora), whole(tmp_path / "on")
  for key, factor in factors.items():
    np.testing.assert_array_equal(carried[key], factor)
  for name, leaf in base.items():
    np.testing.assert_array_equal(again[name], leaf, err_msg=name)
  assert run(tmp_path / "merged", f"init={qlora}", lr=0.0) == 0
  merged, none = whole(tmp_path / "merged")
  assert not none
  name = "llm/layers/mlp/linear"
  a, b = (factors[name, f] for f in "ab")
  expected = base[name] + 2.0 * np.einsum("LFR,LRD->LFD", a, b)
  np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-6)


def test_merged_it_is_scored_by_its_own_config_and_as_an_adapter_it_starts_a_run(qlora, tmp_path):
  assert call(convert, [f"--src={qlora}", f"--dst={tmp_path}/m", "--to=orbax", "--merge"]) == 0
  assert call(evaluate, [f"--ckpt={tmp_path}/m", "--evals=val", f"--out={tmp_path}/o"]) == 0
  metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
  assert {n: metrics[n] for n in scores(qlora)} == pytest.approx(scores(qlora), rel=1e-4)
  assert call(convert, [f"--src={qlora}", f"--dst={tmp_path}/a", "--to=peft"]) == 0
  assert run(tmp_path / "on", f"tune=qlora,init={tmp_path}/a", lr=0.0) == 0
  (base, factors), (again, carried) = whole(qlora), whole(tmp_path / "on")
  for key, factor in factors.items():
    np.testing.assert_array_equal(carried[key], factor)
  for name, leaf in base.items():
    np.testing.assert_array_equal(again[name], leaf, err_msg=name)


@pytest.mark.parametrize(
  ("params", "message"),
  [
    ([("llm/layer/.*", "lora(4)"), (".*", "freeze")], "Did you mean 'llm/layers/"),
    ([("llm/final_norm/.*", "lora(4)"), (".*", "freeze")], "is for matrices of products"),
    ([("llm/.*", "lora(4, base='nf5')"), (".*", "freeze")], "base must be one of .*, not 'nf5'"),
    (
      [("llm/.*", "lora(rank=0)"), (".*", "freeze")],
      "rank must be a whole number from 1 .*, not 0",
    ),
    (
      [("llm/.*", "lora(ranks=4)"), (".*", "freeze")],
      "lora.rank: int = 8, .*: there is no argument 'ranks'",
    ),
    (
      [("llm/.*", "train('nf4')"), (".*", "freeze")],
      "dtype must be 'float32' or 'bfloat16' or 'float16' or None",
    ),
    ([("llm/.*", "lora(8, base='int8')"), (".*", "freeze")], "rounding it twice"),
    ([("llm/.*", "lora(4, base='nf4')"), (".*", "freeze")], "Give lora.* the rank and alpha of"),
  ],
)
def test_mistakes_raise_one_sentence(qlora, tmp_path, capfd, params, message):
  capfd.readouterr()
  assert run(tmp_path / "w", f"init={qlora}", params=params) == 1
  out, err = capfd.readouterr()
  assert "Traceback" not in out + err
  assert re.search(message, err), err
