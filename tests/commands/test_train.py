"""The programs as a user runs them, on a tiny model: train, be killed, resume, evaluate.

What is claimed here are equalities: resumed = uninterrupted, bit for bit; eight devices and two
processes = one device, to 1e-5; the evaluation of a checkpoint = the one inside training.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pgjax import cli, convert, evaluate, predict, train
from pgjax.checkpoints import workdir as workdir_lib
from pgjax.distributed import signals
from pgjax.errors import UserError
from pgjax.evaluation import score_checkpoint
from pgjax.training import attention_check

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 40
TINY = dict(width=16, depth=1, mlp_dim=32, num_heads=2)
SETTINGS = {
  "total_steps": STEPS,
  "input.batch_size": 8,
  "input.data": dict(name="easy_vqa", split="train[:60]"),
  "model.img": dict(TINY, variant="tiny", patch_size=16),
  "model.llm": dict(TINY, variant="tiny", num_kv_heads=1, head_dim=8, vocab_size=1792),
  "log_training_steps": 4,
  "ckpt_steps": 7,
  "evals.val.data": dict(name="easy_vqa", split="train[60:90]"),
  "evals.val.batch_size": 8,
  "evals.val.log_steps": 20,
  "evals.test.data": dict(name="easy_vqa", split="test[:20]"),
  "evals.test.batch_size": 8,
}


def arguments(workdir, **settings):
  """The command line of one run."""
  fields = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  return ["--config=configs/easyvqa.py", f"--workdir={workdir}", *flags]


def run_here(module, argv):
  """A command in this process; returns its exit code."""
  with pytest.raises(SystemExit) as end:
    cli.run(
      module.main, module.__doc__, module.FLAGS, config=module.CONFIG, argv=[module.__file__, *argv]
    )
  return end.value.code or 0


def environment(devices=8):
  """Programs share what was compiled; every small thing is worth keeping."""
  flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
  small = dict(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", PYTHONPATH=str(ROOT))
  return dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONUNBUFFERED="1", **small)


def start(argv, *, module="pgjax.train", devices=8):
  return subprocess.Popen(
    [sys.executable, "-m", module, *argv],
    cwd=ROOT,
    env=environment(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process, seconds=300):
  out, _ = process.communicate(timeout=seconds)
  return process.returncode, out


def losses(workdir):
  """{step: loss}; a duplicate step is an error."""
  values = {}
  for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    if "training_loss" in row:
      assert row["step"] not in values, f"step {row['step']} is duplicated"
      values[row["step"]] = row["training_loss"]
  return values


def scores(workdir):
  rows = [json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {(row["step"], n): v for row in rows for n, v in row.items() if n.startswith("val/")}


def answers(out):
  """The rows of predictions.jsonl without log-probabilities, whose last digits depend on sums."""
  rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
  return [{name: v for name, v in row.items() if name != "logp"} for row in rows]


def state_sums(workdir, step=STEPS):
  """The checkpoint's sums of all its arrays."""
  return workdir_lib.read(workdir / "checkpoints" / str(step)).sums


@pytest.fixture(scope="module")
def printed():
  """What `whole` printed."""
  return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory, printed):
  """A run that nothing interrupted, on the eight simulated devices of the tests."""
  workdir, output = tmp_path_factory.mktemp("run") / "whole", io.StringIO()
  with contextlib.redirect_stdout(output):
    assert run_here(train, arguments(workdir)) == 0
  printed.append(output.getvalue())
  return workdir


@pytest.mark.xdist_group("whole")
def test_a_run_learns_and_writes_its_files(whole):
  values = losses(whole)
  assert list(values) == list(range(1, STEPS + 1))
  assert values[STEPS] < 0.7 * values[1]
  assert workdir_lib.steps(whole) == [35, 40]
  assert {step for step, _ in scores(whole)} == {20, 40}
  rows = [json.loads(s) for s in (whole / "evals/val/predictions.jsonl").read_text().splitlines()]
  assert len(rows) == 30
  assert rows[0].keys() == {"id", "prompt", "answer", "prediction", "logp", "score"}
  assert json.loads((whole / "config.json").read_text())["total_steps"] == STEPS
  assert list((whole / "tensorboard").glob("events*"))


@pytest.mark.xdist_group("whole")
def test_a_run_draws_its_first_examples(whole, printed):
  pictures = sorted((whole / "check").iterdir())
  assert [path.name for path in pictures] == [f"example_{i}.png" for i in range(4)]
  assert f"as the model receives them, are drawn in {whole / 'check'}" in printed[0]


@pytest.mark.xdist_group("whole")
def test_the_start_page_describes_the_run(whole, printed):
  [out] = printed
  page, _, _ = out.partition("Compiling")
  for part in ("8 x cpu", "data=8", "60 examples", "llm/embedder/input_embedding", "train"):
    assert part in page, part
  assert re.search(r"prompt +'\w.*\\n'", page)
  assert re.search(r"token +<bos>.* <eos>", page)
  assert re.search(r"mask_loss +0 .* 1", page)
  assert re.search(r"Compiling the training step: [\d.]+ s", out)
  assert re.search(r"first step was done [\d.]+ s after the command", out)


class Killed(BaseException):
  """Stands for a power cut: nothing catches it."""


@pytest.mark.slow
@pytest.mark.xdist_group("whole")
def test_interrupted_and_resumed_equals_uninterrupted(whole, tmp_path, monkeypatch):
  log_step = train.run_log.Log.step
  for last_step in (5, 24):  # Before the first checkpoint, and between two of them.

    def cut(log, step, *args, last_step=last_step, **kwargs):
      log_step(log, step, *args, **kwargs)
      if step == last_step:
        raise Killed

    monkeypatch.setattr(train.run_log.Log, "step", cut)
    with pytest.raises(Killed):
      cli.run(train.main, "", train.FLAGS, argv=["train", *arguments(tmp_path)])
  monkeypatch.undo()
  assert run_here(train, arguments(tmp_path)) == 0
  assert losses(tmp_path) == losses(whole)
  assert scores(tmp_path) == scores(whole)
  assert state_sums(tmp_path) == state_sums(whole)


@pytest.mark.xdist_group("whole")
def test_a_finished_run_does_nothing(whole, capsys):
  before = (whole / "metrics.jsonl").read_text()
  assert run_here(train, arguments(whole)) == 0
  assert "Done: 40 steps" in capsys.readouterr().out
  assert (whole / "metrics.jsonl").read_text() == before


@pytest.mark.xdist_group("whole")
def test_a_run_resumes_from_the_step_before_a_damaged_one(whole, tmp_path, capsys):
  workdir = tmp_path / "w"
  shutil.copytree(whole, workdir)
  data = max((workdir / "checkpoints/40/params").rglob("d/*"), key=lambda p: p.stat().st_size)
  data.write_bytes(data.read_bytes()[:-100])
  assert run_here(train, arguments(workdir)) == 0
  out = capsys.readouterr().out
  assert "checkpoint of step 40 is damaged" in out
  assert "Resuming from step 35." in out
  assert workdir_lib.steps(workdir) == [35, 40]
  assert losses(workdir) == losses(whole)
  assert state_sums(workdir) == state_sums(whole)


@pytest.mark.xdist_group("whole")
def test_evaluate_agrees_with_the_evaluation_inside_training(whole, tmp_path, capsys):
  out = tmp_path / "scores"
  assert run_here(evaluate, [f"--ckpt={whole}", f"--out={out}", "--evals=val"]) == 0
  metrics = json.loads((out / "metrics.json").read_text())
  inside = json.loads((whole / "evals/val/metrics.json").read_text())
  assert metrics["step"] == STEPS
  assert {n: v for n, v in metrics.items() if "/" in n and n != "checkpoint"} == {
    n: v for n, v in inside.items() if "/" in n
  }
  rows = [json.loads(s) for s in (out / "predictions.jsonl").read_text().splitlines()]
  inside_rows = (whole / "evals/val/predictions.jsonl").read_text().splitlines()
  inside_rows = [json.loads(line) for line in inside_rows]
  assert [row.pop("eval") for row in rows] == ["val"] * 30
  for row, inside_row in zip(rows, inside_rows, strict=True):
    assert row.pop("logp") == pytest.approx(inside_row.pop("logp"), abs=1e-5)
    assert row == inside_row
  page = (out / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 3 * 16  # Worst, best and random ones.
  assert "://" not in page
  assert "val/acc = " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.xdist_group("whole")
def test_evaluate_takes_an_older_step_and_another_config(whole, tmp_path):
  out = tmp_path / "scores"
  argv = [f"--ckpt={whole}", f"--out={out}", "--evals=test", "--step=35"]
  assert run_here(evaluate, [*argv, "--config.evals.test.batch_size=16"]) == 0
  metrics = json.loads((out / "metrics.json").read_text())
  assert metrics["step"] == 35
  assert metrics["test/num"] == 20
  again = tmp_path / "again"
  argv = [f"--ckpt={whole / 'checkpoints/35'}", f"--out={again}", "--evals=test"]
  assert run_here(evaluate, [*argv, *arguments("")[:1], *arguments("")[2:]]) == 0
  assert answers(again) == answers(out)


@pytest.mark.xdist_group("whole")
@pytest.mark.slow
def test_a_converted_checkpoint_scores_the_same_and_starts_another_run(whole, tmp_path, capsys):
  """Weights in other formats: no config of their own, the tokenizer comes along."""
  rows = []
  for to, name in (("hf", "hf"), ("bv", "x.npz"), ("orbax", "o")):
    flags = [f"--src={whole}", f"--dst={tmp_path / name}", f"--to={to}", "--verify"]
    assert run_here(convert, flags) == 0
    # Without --config, only pgjax's own format knows what to score.
    config = [] if to == "orbax" else arguments(tmp_path)[:1] + arguments(tmp_path)[2:]
    flags = [f"--ckpt={tmp_path / name}", f"--out={tmp_path}/{to}-scores", "--evals=test", *config]
    assert run_here(evaluate, flags) == 0
    rows.append(answers(tmp_path / f"{to}-scores"))
  assert rows[0] == rows[1] == rows[2]
  assert run_here(evaluate, [f"--ckpt={tmp_path}/hf", f"--out={tmp_path}/none"]) == 1
  assert "no config that says what to score: give --config" in capsys.readouterr().err
  more = arguments(tmp_path / "w", model_init=f"{tmp_path}/hf", tokenizer="missing.model")
  short = ["--config.total_steps=1", "--config.evals={}"]
  assert run_here(train, [*more, *short]) == 0
  first, trained = losses(tmp_path / "w")[1], losses(whole)
  assert abs(first - trained[STEPS]) < 0.5 * abs(trained[1] - trained[STEPS])


@pytest.mark.xdist_group("whole")
def test_kernels_are_compared_before_a_checkpoint_is_loaded(whole, tmp_path, monkeypatch, capsys):
  def compared(*args):
    raise UserError("They were compared.")

  monkeypatch.setattr(attention_check, "checked_forward", compared)
  Image.new("RGB", (20, 20)).save(tmp_path / "image.png")
  asked = [f"--ckpt={whole}", f"--image={tmp_path}/image.png", "--prompt=what is it?"]
  for command, flags in (evaluate, [f"--ckpt={whole}", f"--out={tmp_path}/out"]), (predict, asked):
    assert run_here(command, flags) == 1
    assert "They were compared." in capsys.readouterr().err


@pytest.mark.xdist_group("whole")
def test_watching_scores_every_step_and_ends_with_the_run(whole, tmp_path):
  assert run_here(evaluate, [f"--ckpt={whole}", f"--out={tmp_path}", "--evals=val", "--watch"]) == 0
  values = {p.name: json.loads((p / "metrics.json").read_text()) for p in tmp_path.iterdir()}
  assert {name: metrics["step"] for name, metrics in values.items()} == dict(step_35=35, step_40=40)
  inside = [p for p in (whole / "tensorboard/evaluate").iterdir() if "tfevents" in p.name]
  assert len(inside) >= 2
  written = (tmp_path / "step_35/metrics.json").stat().st_mtime_ns
  assert run_here(evaluate, [f"--ckpt={whole}", f"--out={tmp_path}", "--evals=val", "--watch"]) == 0
  assert (tmp_path / "step_35/metrics.json").stat().st_mtime_ns == written
  about = values["step_40"]["about"]
  assert about["evals"]["val"]["decode"] == "greedy"
  assert about["evals"]["val"]["first_prompt"]
  same = values["step_35"]["about"]
  assert same["evals"]["val"]["data_sha256"] == about["evals"]["val"]["data_sha256"]
  assert same["checkpoint"]["sha256"] != about["checkpoint"]["sha256"]
  assert about["versions"]["jax"]


@pytest.mark.xdist_group("whole")
@pytest.mark.parametrize("gone", [True, False])
def test_a_step_deleted_while_it_is_read_does_not_end_the_watch(
  whole, tmp_path, monkeypatch, capsys, gone
):
  workdir, out = tmp_path / "w", tmp_path / "o"
  shutil.copytree(whole, workdir)
  score = score_checkpoint.Scoring.score

  def fails_at_35(self, source, folder):
    if source.run.step == 35:
      if gone:
        shutil.rmtree(source.run.path)
      raise UserError("it cannot be read")
    score(self, source, folder)

  monkeypatch.setattr(score_checkpoint.Scoring, "score", fails_at_35)
  code = run_here(evaluate, [f"--ckpt={workdir}", f"--out={out}", "--evals=val", "--watch"])
  output = capsys.readouterr()
  if gone:
    assert code == 0
    assert "Step 35 was removed by the run" in output.out + output.err
    assert [p.name for p in out.iterdir()] == ["step_40"]
  else:
    assert code != 0
    assert "it cannot be read" in output.out + output.err


@pytest.mark.slow
def test_a_watcher_misses_no_step_and_scores_none_twice_though_both_are_killed(tmp_path):
  """The run keeps one checkpoint for itself; more only because somebody waits for them."""
  workdir, out = tmp_path / "w", tmp_path / "o"
  settings = dict(keep_last=1, ckpt_steps=4)
  flags = [f"--ckpt={workdir}", f"--out={out}", "--evals=val", "--watch"]
  watcher = start(flags, module="pgjax.evaluate", devices=1)
  trainer = start(arguments(workdir, **settings), devices=1)
  deadline = time.monotonic() + 240
  while not list(out.glob("step_*/metrics.json")) and time.monotonic() < deadline:
    if watcher.poll() is not None:
      break
    time.sleep(0.05)
  watcher.kill()
  watched, _ = watcher.communicate()
  wait_for_rows(workdir, 20, trainer)
  trainer.kill()
  trainer.communicate()
  before = {p: p.stat().st_mtime_ns for p in out.glob("step_*/metrics.json")}
  assert before, watched
  code, output = finish(start(arguments(workdir, **settings), devices=1))
  assert code == 0, output
  waiting = workdir_lib.steps(workdir)
  assert len(waiting) > 1
  code, output = finish(start(flags, module="pgjax.evaluate", devices=1))
  assert code == 0, output
  scored = {int(p.parent.name[5:]): p for p in out.glob("step_*/metrics.json")}
  assert sorted(scored) == list(range(4, STEPS + 1, 4))
  for path, written in before.items():
    assert path.stat().st_mtime_ns == written
  assert not list(out.glob("step_*/unfinished"))


def wait_for_rows(workdir, count, process, seconds=120):
  """Waits until the run has written N steps; fails with its output if it has died."""
  path, deadline = pathlib.Path(workdir) / "metrics.jsonl", time.monotonic() + seconds
  while time.monotonic() < deadline:
    if path.exists() and path.read_text().count("training_loss") >= count:
      return
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.005)
  raise AssertionError(f"no {count} rows in {path} after {seconds} s")


@pytest.mark.long
def test_killed_three_times_equals_uninterrupted(tmp_path):
  seed = random.randrange(2**32)
  kills = sorted(random.Random(seed).sample(range(3, 90), 3))
  settings = dict(total_steps=100, log_training_steps=1, evals__val__log_steps=50)
  straight, cut = tmp_path / "straight", tmp_path / "cut"
  code, out = finish(start(arguments(straight, **settings), devices=2))
  assert code == 0, out
  for count in kills:
    process = start(arguments(cut, **settings), devices=2)
    wait_for_rows(cut, count, process)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
  code, out = finish(start(arguments(cut, **settings), devices=2))
  assert code == 0, out
  assert losses(cut) == losses(straight), kills
  assert scores(cut) == scores(straight), kills
  assert state_sums(cut, 100) == state_sums(straight, 100), kills


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_equal(tmp_path, number):
  settings = dict(total_steps=2000, ckpt_steps=1000, log_training_steps=1)
  process = start(arguments(tmp_path, **settings), devices=1)
  wait_for_rows(tmp_path, 12, process)
  process.send_signal(number)
  code, out = finish(process)
  assert code == signals.STOPPED, out
  assert "Traceback" not in out
  [step] = re.findall(rf"Stopped by {number.name} after step (\d+) of 2000, and saved", out)
  assert workdir_lib.steps(tmp_path) == [int(step)]
  assert f"python -m pgjax.train --config=configs/easyvqa.py --workdir={tmp_path}" in out
  assert list(losses(tmp_path)) == list(range(1, int(step) + 1))


def close(values, expected):
  assert values.keys() == expected.keys()
  np.testing.assert_allclose(
    [values[step] for step in expected], list(expected.values()), rtol=1e-5
  )


MESHES = {
  "fsdp": dict(
    sharding_strategy=[(".*", 'fsdp(axis="data", min_size_to_shard_mb=0)')]
  ),
  "replica_data": dict(
    mesh=[("replica", 2), ("data", -1)],
    sharding_strategy=[(".*", 'fsdp(axis="data", min_size_to_shard_mb=0)')],
  ),
  "auto": dict(mesh="auto"),
  "data_tensor_sequence": dict(
    mesh=[("data", 2), ("tensor", 2), ("sequence", 2)],
    sharding_strategy=[(".*", 'fsdp(axis=["data", "sequence"], min_size_to_shard_mb=0)')],
  ),
}  # fmt: skip


SHORT = dict(total_steps=12, log_training_steps=1, evals__val__log_steps=6)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "one_device"
  code, out = finish(start(arguments(workdir, **SHORT), devices=1))
  assert code == 0, out
  return workdir


@pytest.mark.xdist_group("one_device")
@pytest.mark.long
@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_equal_one(one_device, tmp_path, mesh):
  assert run_here(train, arguments(tmp_path, **SHORT, **MESHES[mesh])) == 0
  close(losses(tmp_path), losses(one_device))


@pytest.mark.xdist_group("one_device")
@pytest.mark.long
def test_a_run_resumes_and_is_scored_on_another_mesh(one_device, tmp_path):
  """From fsdp onto tensor and sequence; then all of a batch on every device, and of a mesh less."""
  every = dict(SHORT, ckpt_steps=6)
  assert run_here(train, arguments(tmp_path, **every, **MESHES["fsdp"])) == 0
  shutil.rmtree(tmp_path / "checkpoints/12")
  assert run_here(train, arguments(tmp_path, **every, **MESHES["data_tensor_sequence"])) == 0
  close(losses(tmp_path), losses(one_device))
  assert answers(tmp_path / "evals/val") == answers(one_device / "evals/val")
  for i, mesh in enumerate(("own", [("tensor", 2), ("sequence", 4)], [("data", -1)])):
    flags = [f"--ckpt={tmp_path}", f"--out={tmp_path / str(i)}", "--evals=val"]
    assert run_here(evaluate, flags + ([f"--config.mesh={mesh}"] if i else [])) == 0
    assert answers(tmp_path / str(i)) == [
      dict(row, eval="val") for row in answers(one_device / "evals/val")
    ]


@pytest.mark.xdist_group("one_device")
@pytest.mark.long
def test_two_processes_that_share_all_examples_equal_one_device(one_device, tmp_path):
  """Four devices each; `tensor` and `sequence` reach across, so both read whole batches."""
  argv = ["--processes=2", "--devices=4", "--", "-m", "pgjax.train"]
  settings = SHORT | dict(mesh=[("sequence", 4), ("tensor", 2)])
  command = [sys.executable, "launch/local.py", *argv, *arguments(tmp_path, **settings)]
  done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=False)
  assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
  close(losses(tmp_path), losses(one_device))
  assert answers(tmp_path / "evals/val") == answers(one_device / "evals/val")


@pytest.mark.xdist_group("one_device")
@pytest.mark.slow
def test_two_processes_of_four_devices_equal_one_device(one_device, tmp_path):
  def launch():
    argv = ["--processes=2", "--devices=4", "--", "-m", "pgjax.train"]
    settings = SHORT | MESHES["fsdp"]
    command = [sys.executable, "launch/local.py", *argv, *arguments(tmp_path, **settings)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)

  process = launch()
  wait_for_rows(tmp_path, 2, process, seconds=300)
  process.send_signal(signal.SIGTERM)  # Both processes get it, and agree on a step.
  code, out = finish(process)
  assert code == signals.STOPPED, out
  [step] = re.findall(r"\[0\] Stopped by SIGTERM after step (\d+) of 12", out)
  assert workdir_lib.steps(tmp_path)[-1] == int(step)
  code, out = finish(launch())
  assert code == 0, out
  assert f"[0] Resuming from step {step}." in out
  assert "[1] step" not in out  # Only the main process talks.
  close(losses(tmp_path), losses(one_device))
  assert answers(tmp_path / "evals/val") == answers(one_device / "evals/val")


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(tmp_path):
  program = (
    "import os, sys, time; time.sleep(3600 * int(os.environ['PGJAX_PROCESS_ID'])); sys.exit(3)"
  )
  command = [sys.executable, "launch/local.py", "--processes=2", "--", "-c", program]
  began = time.monotonic()
  assert subprocess.run(command, cwd=ROOT, check=False).returncode == 3
  assert time.monotonic() - began < 15
