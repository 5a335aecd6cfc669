"""What a run logs: one row per step, rates, and an error at the first NaN."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import cache_dir
from pgjax.errors import UserError
from pgjax.planning import gpus
from pgjax.training import run_log

WORK = run_log.Work(examples=8, tokens=80, flops=1e9, peak_flops=1e12)


@pytest.fixture
def clock(monkeypatch):
  """Time that only the test advances."""
  now = [100.0]
  monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
  return now


@pytest.fixture
def opened(tmp_path):
  logs = []

  def start(step=0, *, main=True, **settings):
    log = run_log.Log(tmp_path, main=main)
    log.start(step, **dict(evaluated=True, total_steps=10, every_steps=5, work=WORK) | settings)
    logs.append(log)
    return log

  yield start
  for log in logs:
    log.close()


def rows(tmp_path):
  return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def take(log, steps, *, loss=lambda step: 1.0 / step, waited=0.0):
  for step in steps:
    log.step(
      step,
      dict(training_loss=jnp.float32(loss(step)), l2_grads=jnp.float32(2)),
      waited_seconds=waited,
    )


def test_every_step_is_a_row_with_its_exact_value(opened, tmp_path):
  take(opened(), range(1, 11))
  assert [row["step"] for row in rows(tmp_path)] == list(range(1, 11))
  assert [row["training_loss"] for row in rows(tmp_path)] == [
    float(jnp.float32(1 / s)) for s in range(1, 11)
  ]


def test_nothing_is_fetched_between_logging_steps(opened, tmp_path):
  take(opened(), range(1, 5))
  assert [row["step"] for row in rows(tmp_path)] == [1]  # The first step is one.


def test_rates_are_those_of_the_window_without_evaluations(opened, tmp_path, clock):
  log = opened()
  take(log, [1])
  for step in range(2, 6):
    clock[0] += 0.5
    take(log, [step], waited=0.1)
    with log.aside():
      clock[0] += 100
  clock[0] += 0.5
  take(log, range(6, 11))
  at5, at10 = rows(tmp_path)[4], rows(tmp_path)[9]
  assert at5["seconds_per_step"] == pytest.approx(0.5)
  assert at5["examples_per_second"] == pytest.approx(16)
  assert at5["tokens_per_second"] == pytest.approx(160)
  assert at5["mfu"] == pytest.approx(1e9 / 0.5 / 1e12)
  assert at5["input_wait"] == pytest.approx(0.2)
  assert at10["seconds_per_step"] == pytest.approx(0.1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named_with_its_exact_step(opened, tmp_path, bad):
  log = opened()
  with pytest.raises(UserError, match=f"training_loss became {bad} at step 4"):
    take(log, range(1, 6), loss=lambda step: bad if step == 4 else 1.0)
  assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_fetch_checks_steps_since_the_last_logging_step(opened):
  log = opened()
  take(log, [1, 2, 3], loss=lambda step: float("nan") if step == 3 else 1.0)
  with pytest.raises(UserError, match="at step 3"):
    log.fetch()


def test_rows_after_the_resumed_step_are_removed(opened, tmp_path):
  log = opened()
  take(log, range(1, 11))
  log.scores(5, {"eval/acc": 0.5})
  log.scores(10, {"eval/acc": 0.75})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 11, "training_lo')  # Killed while writing.
  take(opened(5), range(6, 9), loss=lambda step: 2.0)
  written = [(row["step"], row.get("training_loss"), row.get("eval/acc")) for row in rows(tmp_path)]
  assert [(s, acc) for s, _, acc in written if acc] == [(5, 0.5)]
  assert [s for s, loss, _ in written if loss] == [1, 2, 3, 4, 5, 6]


def test_evaluations_that_will_be_repeated_are_removed(opened, tmp_path):
  log = opened()
  take(log, range(1, 6))
  log.scores(5, {"eval/acc": 0.5})
  log.close()
  opened(5, evaluated=False)
  assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]
  assert not any("eval/acc" in row for row in rows(tmp_path))


def test_other_processes_check_but_write_nothing(opened, tmp_path, capsys):
  log = opened(main=False)
  take(log, range(1, 6))
  log.say("not printed")
  assert not list(tmp_path.iterdir())
  assert not capsys.readouterr().out
  with pytest.raises(UserError, match="at step 6"):
    take(log, range(6, 11), loss=lambda step: float("nan"))


def test_tensorboard_files_are_written(opened, tmp_path):
  log = opened()
  take(log, range(1, 6))
  log.close()
  [events] = (tmp_path / "tensorboard").glob("events*")
  assert b"training_loss" in events.read_bytes()


def test_a_progress_line_has_loss_rates_memory_and_time_left(opened, capsys, clock):
  log = opened()
  take(log, [1])
  clock[0] += 8.0
  take(log, range(2, 6), waited=0.04)
  line = capsys.readouterr().out.splitlines()[-1]
  for part in (
    "5/10",
    "loss 0.2000",
    "4 examples/s",
    "40 tokens/s",
    "MFU 0.1%",
    "wait 2.0%",
    "GiB",
  ):
    assert part in line, (part, line)
  assert line.endswith("10s left")


def test_without_a_terminal_progress_lines_are_rare(opened, capsys):
  take(opened(total_steps=1000, every_steps=1), range(1, 1000))
  assert sum("loss" in line for line in capsys.readouterr().out.splitlines()) <= 3


def test_a_long_wait_is_reported(capsys, monkeypatch):
  monkeypatch.setattr(run_log, "WAIT_SECONDS", 0.05)
  with run_log.Log(None, main=True).waiting("Compiling the step"):
    run_log.time.sleep(0.12)
  out = capsys.readouterr().out
  assert "so far" in out
  assert re.search(r"Compiling the step: 0\.\d s\n$", out)


def test_the_phases_until_the_first_step_add_up_to_the_whole_time(opened, capsys):
  log = opened(total_steps=10, every_steps=1)
  with log.waiting("Compiling"):
    run_log.time.sleep(0.3)
  take(log, [1])
  _, _, text = capsys.readouterr().out.partition("The first step was done ")
  head, *rows = text.partition("\nstep")[0].splitlines()
  [total, cpu], phases = re.findall(r"([\d.]+) s", head), [row.split() for row in rows]
  assert {"Imports", "Config,", "Compiling", "First"} == {row[0] for row in phases}
  for column, whole in ((-4, total), (-2, cpu)):
    np.testing.assert_allclose(sum(float(r[column]) for r in phases), float(whole), atol=0.3)
  [compiling] = [row for row in phases if row[0] == "Compiling"]
  assert float(compiling[-4]) >= 0.3


def test_a_run_does_not_import_torch_although_tensorboardx_does(tmp_path, root):
  """Where it is installed that takes seconds."""
  (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
  program = (
    "import sys; from pgjax.training import tensorboard; assert 'torch' not in sys.modules;"
    " import torch"
  )
  path = os.pathsep.join([str(root), str(tmp_path)])
  ended = subprocess.run(
    [sys.executable, "-c", program],
    env=os.environ | dict(PYTHONPATH=path),
    capture_output=True,
    text=True,
    check=False,
  )
  assert (ended.returncode, ended.stderr) == (1, "torch was imported\n")


def test_known_devices_have_a_peak():
  class Device:
    def __init__(self, kind):
      self.device_kind = kind

  assert gpus.peak_flops([Device("NVIDIA H200")] * 2) == 2 * 989e12
  assert gpus.peak_flops([Device("NVIDIA H100 80GB HBM3")]) == 989e12
  assert gpus.peak_flops([Device("NVIDIA L4")]) == 121e12
  assert gpus.peak_flops([Device("Tesla T4")]) == 65e12
  assert gpus.peak_flops([Device("NVIDIA A100-SXM4-80GB")]) == 312e12
  assert gpus.peak_flops([Device("NVIDIA GeForce RTX 4090")]) == 165e12
  assert gpus.peak_flops([Device("NVIDIA L40S")]) is None
  assert gpus.peak_flops([Device("NVIDIA H200"), Device("cpu")]) is None


def test_short_numbers():
  assert [run_log.short(n) for n in (3.14159, 1234.0, 5.6e6)] == ["3.14", "1.23k", "5.6M"]
  assert [run_log.duration(n) for n in (5, 65, 7500)] == ["5s", "1m05s", "2h05"]


def test_an_unwritable_compilation_cache_is_ignored(monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv("PGJAX_CACHE_DIR", "/proc/nowhere")
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    assert cache_dir.use_compilation_cache() == ""
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


def test_small_programs_are_cached_unless_the_environment_says_otherwise(monkeypatch):
  before = jax.config.jax_persistent_cache_min_compile_time_secs
  monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
  try:
    cache_dir.use_compilation_cache()
    assert jax.config.jax_persistent_cache_min_compile_time_secs < 1
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 3.0)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    cache_dir.use_compilation_cache()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 3
  finally:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


class Full:
  """A file on a full disk."""

  def write(self, *_):
    raise OSError(28, "No space left on device")

  flush = close = write_event = write


@pytest.mark.parametrize("file", ["_rows", "_board"])
def test_a_full_disk_is_a_sentence_and_blocks_nothing(opened, file):
  log = opened(every_steps=1, total_steps=100)
  take(log, [1])
  if file == "_rows":
    log._rows = Full()  # noqa: SLF001
  else:
    log._board._events = Full()  # noqa: SLF001
  for step in range(2, 40):  # More than any queue holds.
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
      take(log, [step])
  log.close()


def test_scores_from_outside_the_run_go_to_a_file_of_their_own(tmp_path):
  for step in (1, 2):
    run_log.append_scores(tmp_path, step, {"val/acc": 0.5})
  files = list((tmp_path / "tensorboard/evaluate").glob("events.out.tfevents.*"))
  assert len(files) == 2
  assert all(b"val/acc" in path.read_bytes() for path in files)


def test_lines_that_are_no_rows_are_counted(opened, tmp_path, capsys):
  row = b'{"step": 1, "training_loss": 1.0}\n'
  (tmp_path / "metrics.jsonl").write_bytes(row + b"[3]\n\xff\xfe\n7\n" + b'{"step": 1, "x')
  opened(1)
  assert "metrics.jsonl: 3 lines are no rows of metrics" in capsys.readouterr().out
  assert (tmp_path / "metrics.jsonl").read_bytes() == row
  opened(1)
  assert "no rows" not in capsys.readouterr().out


def test_a_line_that_nobody_reads_does_not_end_a_run(monkeypatch, capsys):
  lost = []

  class Closed:
    def write(self, text):
      lost.append(text)
      raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
      self.write("")

  log = run_log.Log(None, main=True)
  with monkeypatch.context() as patch:
    patch.setattr(run_log.sys, "stdout", Closed())
    log.say("into the void")
  log.say("hello")
  assert "into the void" in lost
  assert capsys.readouterr().out == "hello\n"
