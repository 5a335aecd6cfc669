"""Stops, restarts, second runs and full disks: nothing is lost, and one sentence explains it."""

import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from pgjax import cli, train
from pgjax.checkpoints import run_lock, workdir as workdir_lib
from pgjax.distributed import signals
from pgjax.evaluation import evaluator as evaluator_lib
from tests import small_checkpoint
from tests.commands import test_train as runs

SCORES = {5: 0.2, 10: 0.9, 15: 0.4, 20: 0.1, 25: 0.3}
SETTINGS = dict(
  total_steps=28,
  ckpt_steps=7,
  keep_last=1,
  keep_best="val/acc",
  log_training_steps=1,
  evals__val__log_steps=5,
)


@pytest.fixture
def run(monkeypatch, tmp_path):
  """run("w", stop={10: "in"}) -> (exit code, steps on disk); evaluations have the scores SCORES."""

  def one(name, stop=None, **settings):
    stop = dict(stop or {})

    def run_due(evaluators, step, params, *, log, stopping, **_):
      when = stop.pop(step, None)
      if when:
        signal.raise_signal(signal.SIGUSR1)
      if when == "in":
        assert stopping()
        return None
      scores = {"val/acc": SCORES[step], "val/num": 30} if step in SCORES else {}
      if scores:
        log.scores(step, scores)
      return scores

    monkeypatch.setattr(evaluator_lib, "run_due", run_due)
    code = runs.run_here(train, runs.arguments(tmp_path / name, **SETTINGS | settings))
    return code, workdir_lib.steps(tmp_path / name)

  return one


@pytest.mark.slow
def test_a_stop_at_the_best_step_loses_no_checkpoint(run, tmp_path, capsys):
  straight = run("straight")
  assert straight == (0, [10, 28])
  for stop in ({10: "in"}, {11: "after"}):
    code, steps = run("stopped", stop)
    assert (code, steps[-1]) == (signals.STOPPED, next(iter(stop)))
    assert "Stopped by SIGUSR1 after step" in capsys.readouterr().out
  assert run("stopped") == straight
  assert runs.state_sums(tmp_path / "stopped", 28) == runs.state_sums(tmp_path / "straight", 28)
  assert runs.scores(tmp_path / "stopped") == runs.scores(tmp_path / "straight")


@pytest.mark.slow
def test_another_metric_does_not_cost_the_best_checkpoint(run, capsys):
  assert run("w", {17: "after"}) == (signals.STOPPED, [10, 17])
  code, steps = run("w", keep_best="-val/acc")
  assert (code, steps) == (0, [20, 28])
  assert '  keep_best was "val/acc" and is "-val/acc"' in capsys.readouterr().out


def command(workdir, **settings):
  plain = dict(evals={}) | settings
  fields = {k: v for k, v in runs.SETTINGS.items() if not k.startswith("evals.")}
  fields |= {name.replace("__", "."): value for name, value in plain.items()}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  return ["--config=configs/easyvqa.py", f"--workdir={workdir}", *flags]


def ended(process, seconds=300):
  code, out = runs.finish(process, seconds)
  assert "Traceback" not in out, out
  assert "Exception" not in out, out
  return code, out


@pytest.mark.slow
def test_a_second_run_is_refused_and_a_killed_one_does_not_hold_the_workdir(tmp_path):
  settings = dict(total_steps=3000, log_training_steps=1, ckpt_steps=1000)
  first = runs.start(command(tmp_path, **settings), devices=1)
  runs.wait_for_rows(tmp_path, 3, first)
  code, out = ended(runs.start(command(tmp_path, **settings, lr=1e-4), devices=1))
  assert code == 1
  assert f"process {first.pid}, which started at" in out
  first.kill()
  first.wait()
  code, out = ended(runs.start(command(tmp_path, **settings | dict(total_steps=4)), devices=1))
  assert code == 0, out
  assert not (tmp_path / run_lock.TRAINING.file).exists()


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_goes_on(tmp_path):
  argv = command(tmp_path, total_steps=6, log_training_steps=1)
  process = runs.start(argv, devices=1)
  process.stdout.readline()
  process.stdout.close()
  assert process.wait(300) == 0
  assert list(runs.losses(tmp_path)) == list(range(1, 7))


@pytest.mark.slow
def test_a_stop_while_importing_and_while_compiling_exits_at_once(tmp_path):
  env = runs.environment(1) | dict(JAX_ENABLE_COMPILATION_CACHE="false")
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  for line, number in (("", signal.SIGINT), ("x padding", signal.SIGTERM)):
    argv = [sys.executable, "-m", "pgjax.train", *command(tmp_path)]
    process = subprocess.Popen(argv, cwd=runs.ROOT, env=env, **pipes)
    time.sleep(0.5)
    while line and line not in (process.stdout.readline() or line):
      pass
    process.send_signal(number)
    code, out = ended(process)
    assert code == signals.STOPPED
    name = signal.Signals(number).name
    assert f"Stopped by {name} before training began; there was nothing to save." in out
    assert not (tmp_path / run_lock.TRAINING.file).exists()


def begun(process):
  """Waits until the command has set its handlers, the first thing that it does."""
  status = f"/proc/{process.pid}/status"
  while process.poll() is None:
    caught = re.search(r"SigCgt:\s*(\w+)", open(status).read())  # noqa: SIM115
    if int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1:
      return
    time.sleep(0.005)


@pytest.mark.slow
def test_every_command_ends_with_a_sentence_while_it_imports(tmp_path):
  """No trace, and a status of its own, for each signal."""
  config, out = "--config=configs/easyvqa.py", f"--out={tmp_path / 'out'}"
  commands = dict(
    predict=["--ckpt=w", "--image=a.png", "--prompt=x"],
    convert=["--src=w", f"--dst={tmp_path / 'hf'}", "--to=hf"],
    check=[config, out],
    plan=[config],
    prepare=["easyvqa", out],
    demo=["--ckpt=w"],
    papers=[],
    evaluate=["--ckpt=w", out],
  )
  names = itertools.cycle(name for name in signals.NAMES if hasattr(signal, name))
  for (command, argv), name in zip(commands.items(), names, strict=False):
    process = runs.start(argv, module=f"pgjax.{command}", devices=1)
    begun(process)
    process.send_signal(getattr(signal, name))
    code, out = ended(process)
    assert (command, code) == (command, signals.STOPPED)
    assert out.startswith(f"Stopped by {name}")
    assert out.count("\n") == 1
  assert not list(tmp_path.rglob("*"))


@pytest.mark.long
@pytest.mark.parametrize("to", ["hf", "bv", "orbax"])
def test_a_stop_while_weights_are_converted_leaves_nothing(tmp_path, root, to):
  source = small_checkpoint.write(tmp_path / "source", root)
  folder = tmp_path / "out"
  folder.mkdir()
  target = folder / ("x.npz" if to == "bv" else "x")
  argv = [f"--src={source}", f"--dst={target}", f"--to={to}", "--verify"]
  process = runs.start(argv, module="pgjax.convert", devices=1)
  while process.poll() is None and not list(folder.glob(".unfinished*")):
    time.sleep(0.002)
  process.send_signal(signal.SIGUSR2)
  code, out = ended(process)
  assert code == signals.STOPPED, out
  assert out.endswith(f"Stopped by SIGUSR2; {target} was not written.\n")
  assert not list(folder.iterdir())


@pytest.mark.slow
def test_a_killed_process_of_the_data_pipeline_is_explained_and_costs_no_step(tmp_path):
  settings = dict(total_steps=3000, log_training_steps=1, input__num_workers=1)
  process = runs.start(command(tmp_path, **settings), devices=1)
  runs.wait_for_rows(tmp_path, 3, process)
  children = [int(c) for c in subprocess.check_output(["pgrep", "-P", str(process.pid)]).split()]
  for child in children:
    if b"spawn_main" in open(f"/proc/{child}/cmdline", "rb").read():  # noqa: SIM115
      os.kill(child, signal.SIGKILL)
  code, out = ended(process)
  assert code == 1
  assert "A data worker" in out
  assert "was ended by SIGKILL" in out
  step = workdir_lib.steps(tmp_path)[-1]
  assert f"The newest checkpoint is of step {step}." in out


@pytest.mark.slow
def test_a_disk_that_fills_while_a_checkpoint_is_written_ends_the_run(tmp_path):
  """A limit on the size of files: the arrays do not fit, everything else does."""
  limit = 30_000
  argv = [sys.executable, "-m", "pgjax.train", *command(tmp_path, ckpt_steps=3)]
  process = subprocess.Popen(
    argv,
    cwd=runs.ROOT,
    env=runs.environment(1),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
  )
  code, out = ended(process)
  assert code == 1
  assert "The checkpoint of step 3 could not be written" in out
  assert "File too large" in out
  assert not workdir_lib.steps(tmp_path)


BROKEN_IN_ONE = """
import os, sys
from pgjax import cli, train
from pgjax.data import loader
from pgjax.distributed import signals
from pgjax.errors import UserError
signals.begin()
read = loader.Loader._read
def broken(self, position, index):
  if os.environ["PGJAX_PROCESS_ID"] == "1" and position >= 60:
    raise UserError("it is no image")
  return read(self, position, index)
if "--broken" in sys.argv:
  sys.argv.remove("--broken")
  loader.Loader._read = broken
cli.run(train.main, "", train.FLAGS)
"""


@pytest.mark.long
def test_broken_data_in_one_of_two_processes_saves_like_in_one(tmp_path):
  """Step 8 needs example 60 of the stream, so step 7 is saved."""

  def launch(folder, *flags):
    argv = [*command(tmp_path / folder, total_steps=12, log_training_steps=1), *flags]
    launcher = [sys.executable, "launch/local.py", "--devices=1", "--", "-c", BROKEN_IN_ONE]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    env = runs.environment(1)
    return ended(subprocess.Popen([*launcher, *argv], cwd=runs.ROOT, env=env, **pipes))

  code, out = launch("cut", "--broken")
  assert code == 1, out
  assert re.search(r"\[1\] error: .*it is no image The newest checkpoint is of step 7", out)
  assert re.search(r"\[0\] error: Process 1 of 2 on host .*it is no image The newest", out)
  assert workdir_lib.steps(tmp_path / "cut") == [7]
  assert launch("cut")[0] == launch("straight")[0] == 0
  assert runs.losses(tmp_path / "cut") == runs.losses(tmp_path / "straight")
  sums = [runs.state_sums(tmp_path / name, 12) for name in ("cut", "straight")]
  assert sums[0] == sums[1]


def attempt(capsys, argv):
  with pytest.raises(SystemExit) as end:
    cli.run(train.main, train.__doc__, train.FLAGS, argv=["pgjax/train.py", *argv])
  out = capsys.readouterr()
  assert "Traceback" not in out.out + out.err
  return end.value.code or 0, out.out, out.err


def test_a_workdir_in_use_is_refused_before_anything_is_read(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(runs.ROOT)
  lock = run_lock.RunLock(tmp_path, print)
  lock.acquire()
  code, out, err = attempt(capsys, command(tmp_path))
  lock.release()
  assert code == 1
  assert f"process {os.getpid()}, which started at" in err
  assert "optimizer" not in out


def test_a_metric_that_nobody_measures_is_refused_before_the_data_is_opened(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(runs.ROOT)
  argv = runs.arguments(tmp_path, keep_best="val/accuracy")
  code, out, err = attempt(capsys, argv)
  assert code == 1
  assert "'val' has no metric 'accuracy'; its metrics are val/acc, val/acc_any, val/anls" in err
  assert "Compiling" not in out
  assert not (tmp_path / run_lock.TRAINING.file).exists()


@pytest.mark.slow
def test_a_finished_run_with_a_shorter_config_compiles_nothing(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(runs.ROOT)
  assert attempt(capsys, command(tmp_path, total_steps=6))[0] == 0
  before = (tmp_path / "config.json").read_bytes()
  code, out, _ = attempt(capsys, command(tmp_path, total_steps=4, lr=1e-4))
  assert code == 0
  assert "is complete: its newest checkpoint is of step 6, and this config asks for 4 steps" in out
  assert "Compiling" not in out
  assert "  total_steps was 6 and is 4" in out
  assert "  lr was 0.0" in out
  assert (tmp_path / "config.json").read_bytes() == before
  assert json.loads(before)["total_steps"] == 6


@pytest.mark.slow
def test_a_run_whose_learning_rate_is_always_0_says_so(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(runs.ROOT)
  code, out, _ = attempt(capsys, command(tmp_path, total_steps=1))
  assert code == 0
  assert "this run learns nothing" in out
  code, out, _ = attempt(capsys, command(tmp_path, total_steps=2))
  assert "this run learns nothing" not in out


@pytest.mark.slow
def test_a_run_that_diverges_before_its_first_checkpoint_says_so(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(runs.ROOT)
  schedule = dict(decay_type="const")
  settings = dict(lr=1e18, schedule=schedule, log_training_steps=1)
  code, _, err = attempt(capsys, command(tmp_path, **settings))
  assert code == 1
  assert "became" in err
  assert "Nothing was saved." in err
