"""pgjax.fit is pgjax.train: the same numbers, stopped, resumed, twice in a process, in a thread."""

import json
import pathlib
import signal
import sys
import threading

import pytest
from ml_collections import ConfigDict
from PIL import Image

import pgjax
from pgjax import train
from pgjax.api import arguments as arguments_lib, runs
from pgjax.config import load as config_load, validate as config_validate
from tests.commands import test_train as test_run

ROOT = test_run.ROOT
SHORT = dict(total_steps=12, log_training_steps=3, ckpt_steps=5, evals__val__log_steps=12)
FIELDS = test_run.SETTINGS | arguments_lib.dotted(SHORT)
EASYVQA = str(ROOT / "configs/easyvqa.py")
pytestmark = pytest.mark.xdist_group("api_runs")  # They share a run.


def measured(workdir):
  """The rows of metrics.jsonl without what is about time and memory."""
  timed = {"seconds_per_step", "input_wait", "examples_per_second", "tokens_per_second", "mfu"}
  lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  timed |= {"peak_memory_bytes"}
  return [{n: v for n, v in json.loads(line).items() if n not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The folder of a run by the command, which nothing interrupted."""
  workdir = tmp_path_factory.mktemp("api_runs") / "whole"
  assert test_run.run_here(train, test_run.arguments(workdir, **SHORT)) == 0
  return workdir


@pytest.mark.slow
def test_fit_is_the_command_and_a_second_one_in_the_same_process_too(whole, tmp_path, capsys):
  handler = signal.getsignal(signal.SIGINT)  # Ignored where a shell started this in the background.
  fitted = pgjax.fit(EASYVQA, tmp_path / "a", **FIELDS)
  assert measured(tmp_path / "a") == measured(whole)
  assert (fitted.workdir, fitted.step, fitted.total_steps) == (tmp_path / "a", 12, 12)
  assert fitted.finished
  assert fitted.metrics["training_loss"] == measured(whole)[-2]["training_loss"]
  assert fitted.metrics["val/acc"] == measured(whole)[-1]["val/acc"]
  assert [row["step"] for row in fitted.history()] == [*range(1, 13), 12]
  assert "after the command" not in capsys.readouterr().out
  pgjax.fit(EASYVQA, str(tmp_path / "b"), **FIELDS)
  assert measured(tmp_path / "b") == measured(whole)
  assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
def test_an_interrupt_saves_and_the_same_call_resumes(whole, tmp_path, monkeypatch, capsys):
  log_step = train.run_log.Log.step

  def interrupted(log, step, *args, **kwargs):
    log_step(log, step, *args, **kwargs)
    if step == 7:
      signal.raise_signal(signal.SIGINT)

  with monkeypatch.context() as patch:
    patch.setattr(train.run_log.Log, "step", interrupted)
    stopped = pgjax.fit(EASYVQA, tmp_path, **FIELDS)
  assert (stopped.step, stopped.total_steps, stopped.finished) == (7, 12, False)
  assert f"pgjax.fit with the same config and workdir='{tmp_path}'" in capsys.readouterr().out
  assert pgjax.fit(EASYVQA, tmp_path, **FIELDS).finished
  assert measured(tmp_path) == measured(whole)


@pytest.mark.slow
def test_fit_runs_in_a_thread_without_parsed_flags_and_with_worker_processes(whole, tmp_path):
  """Python allows handlers of signals in the main thread only; this one does not change them."""
  program = (
    "import json, sys, threading, pgjax; fields = json.load(sys.stdin);"
    " runs = []; run = lambda: runs.append(pgjax.fit(sys.argv[1], sys.argv[2], **fields));"
    " thread = threading.Thread(target=run); thread.start(); thread.join();"
    " assert runs[0].finished"
  )
  fields = FIELDS | {"input.num_workers": 1}
  process = test_run.subprocess.run(
    [sys.executable, "-c", program, EASYVQA, tmp_path],
    input=json.dumps(fields),
    env=test_run.environment(),
    text=True,
    capture_output=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  assert measured(tmp_path) == measured(whole)


def test_a_stop_in_another_thread_takes_no_signals():
  before = signal.getsignal(signal.SIGINT)
  seen = []

  def enter():
    with train.Stop() as stop:
      seen.append((stop.signal, signal.getsignal(signal.SIGINT)))

  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert seen == [(None, before)]


def test_a_config_may_be_text_a_dict_or_a_config_dict(monkeypatch):
  monkeypatch.chdir(ROOT)
  expected = config_validate.validated(config_load.load("configs/easyvqa.py", FIELDS)).to_dict()
  loaded = config_load.load(EASYVQA)
  before = loaded.to_dict()
  nested = dict(loaded.to_dict(), input=ConfigDict(loaded.input))  # Of both kinds.
  for config in ("configs/easyvqa.py", loaded, loaded.to_dict(), nested):
    assert arguments_lib.checked_config(config, FIELDS).to_dict() == expected
  assert loaded.to_dict() == before


def test_fields_that_a_dict_omits_have_defaults():
  data = dict(name="easy_vqa", split="train[:60]")
  sizes = dict(variant="tiny", width=16, depth=1, mlp_dim=32, num_heads=2)
  model = dict(img=dict(sizes, patch_size=16), llm=dict(sizes, num_kv_heads=1, head_dim=8))
  config = dict(input=dict(data=data, pp="decode"), model=model, total_steps=3)
  checked = arguments_lib.checked_config(config, dict(lr="3e-6"))
  assert (checked.input.num_threads, checked.optax_name, checked.lr) == (8, "scale_by_adam", 3e-6)


def test_names_of_overrides():
  given = {"lr": 1, "input__batch_size": 2, "evals.a__b.batch_size": 3}
  assert arguments_lib.dotted(given) == {
    "lr": 1, "input.batch_size": 2, "evals.a__b.batch_size": 3
  }  # fmt: skip


COLOURS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 230), "gray": (128,) * 3}


@pytest.mark.long
def test_overfit_answers_are_given_and_most_likely(tmp_path):
  rows = []
  for name, colour in COLOURS.items():
    Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    rows.append(dict(image=f"{name}.png", prefix="what color?", suffix=name))
  (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  spec = (
    f"{ROOT}/configs/forkme.py:train={tmp_path}/train.jsonl,val=,variant=tiny,res=32,text_len=8"
  )
  fields = dict(total_steps=60, lr=3e-3, input__batch_size=8, log_training_steps=20)
  fitted = pgjax.fit(spec, tmp_path / "w", **fields)
  assert fitted.metrics["training_loss"] < 0.1
  model = pgjax.load(fitted.workdir)
  for name, colour in COLOURS.items():
    image = Image.new("RGB", (40, 40), colour)
    assert model.answer(image, "what color?", max_decode_len=6).text == name
    logps = dict(
      zip(COLOURS, model.logprobs(image, "what color?", list(COLOURS)), strict=True)
    )  # fmt: skip
    assert max(logps, key=logps.get) == name
    assert logps[name] > -0.5


@pytest.mark.parametrize("line", [b"[1]", b"7", b"\xff\xfe", b"{", b"null"])
def test_a_line_of_metrics_that_is_no_row_is_named(tmp_path, line):
  (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "training_loss": NaN}\n' + line + b"\n")
  with pytest.raises(pgjax.UserError, match=r"metrics\.jsonl, line 2"):
    runs.Fitted(tmp_path, 1, 1, True, {}).history()
