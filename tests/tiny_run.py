"""A tiny run of pgjax.train in programs of their own: its command line, and what it leaves."""

import json
import os
import pathlib
import re
import time

from pgjax.checkpoints import workdir as workdir_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 60
TINY = dict(width=16, depth=1, mlp_dim=32, num_heads=2)
SETTINGS = {
  "total_steps": STEPS,
  "input.batch_size": 8,
  "input.data": dict(name="easy_vqa", split="train[:60]"),
  "model.img": dict(TINY, variant="tiny", patch_size=16),
  "model.llm": dict(TINY, variant="tiny", num_kv_heads=1, head_dim=8, vocab_size=1792),
  "sharding_strategy": [(".*", 'fsdp(axis="data", min_size_to_shard_mb=0)')],
  "log_training_steps": 1,
  "ckpt_steps": 25,
  "evals.val.data": dict(name="easy_vqa", split="train[60:90]"),
  "evals.val.batch_size": 8,
  "evals.val.log_steps": STEPS,
  "evals.test.data": dict(name="easy_vqa", split="test[:20]"),
  "evals.test.batch_size": 8,
}


def train_arguments(workdir, **settings):
  """-m pgjax.train with its flags."""
  flags = [f"--config.{name}={value}" for name, value in (SETTINGS | settings).items()]
  return ["-m", "pgjax.train", "--config=configs/easyvqa.py", f"--workdir={workdir}", *flags]


def environment(devices):
  """Of a process that simulates so many devices, and shares compiled programs with others."""
  flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
  small = dict(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", PYTHONPATH=str(ROOT))
  return dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONUNBUFFERED="1", **small)


def wait_for_rows(workdir, count, seconds):
  """Waits until the run has logged so many steps."""
  path, deadline = pathlib.Path(workdir) / "metrics.jsonl", time.monotonic() + seconds
  while not path.exists() or len(path.read_text().splitlines()) < count:
    if time.monotonic() > deadline:
      raise TimeoutError(f"{path} has no {count} rows after {seconds} s")
    time.sleep(0.02)


def losses(workdir):
  """{step: loss}; a duplicate step is an error."""
  values = {}
  for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    if "training_loss" in row:
      assert row["step"] not in values, f"step {row['step']} is duplicated"
      values[row["step"]] = row["training_loss"]
  assert list(values) == list(range(1, STEPS + 1))
  return values


def state_sums(workdir):
  """The sums of all arrays of the last checkpoint."""
  return workdir_lib.read(pathlib.Path(workdir) / "checkpoints" / str(STEPS)).sums


def answers(out):
  """The rows of predictions.jsonl without log-probabilities, whose last digits depend on sums."""
  rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
  return [{n: row[n] for n in ("id", "prompt", "answer", "prediction", "score")} for row in rows]
