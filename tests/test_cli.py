import importlib
import subprocess
import sys

import pytest

from pgjax import cli
from pgjax.errors import UserError

TINY = "configs/chartqa.py:variant=tiny,batch_size=8,parts=augmented"


@pytest.fixture(autouse=True)
def _in_root(root, monkeypatch):
  monkeypatch.chdir(root)


DOC = """Trains a model.

In words."""
FLAGS = [
  cli.Flag("workdir", str, required=True, help="where checkpoints go"),
  cli.Flag("num", int, 8, help="how many"),
  cli.Flag("ema", bool, True, help="scores the averaged weights"),
  cli.Flag("dry", bool, False, help="writes nothing"),
]


def run(capsys, *argv, main=lambda args: None, **kwargs):
  with pytest.raises(SystemExit) as caught:
    cli.run(main, DOC, FLAGS, argv=["pgjax/train.py", *argv], **kwargs)
  out = capsys.readouterr()
  return caught.value.code or 0, out.out, out.err


def test_a_command_gets_its_flags_and_a_checked_config(capsys):
  got = []
  argv = [f"--config={TINY}", "--config.lr=0.5", "--config.seed", "3", "--workdir=x", "--num=2"]
  assert run(capsys, *argv, main=got.append) == (0, "", "")
  [args] = got
  assert (args.config.lr, args.config.seed, args.workdir, args.num) == (0.5, 3, "x", 2)
  assert args.overrides == {"lr": "0.5", "seed": "3"}
  assert args.config_spec == TINY


def test_help_shows_the_doc_the_flags_and_the_examples(capsys):
  status, out, _ = run(capsys, "--help", examples=["python -m pgjax.train --config=x"])
  assert status == 0
  assert out.startswith(DOC)
  for text in (
    "--workdir=STR",
    "where checkpoints go (required)",
    "(default: 8)",
    "--config.FIELD",
  ):
    assert text in out
  assert out.rstrip().endswith("python -m pgjax.train --config=x")


def test_help_names_a_command_that_is_a_package():
  page = cli.help_page("pgjax/papers/__main__.py", DOC, [], "none", [])
  assert "usage: python -m pgjax.papers [flags]" in page


def test_help_names_both_values_of_a_flag_that_is_on(capsys):
  _, out, _ = run(capsys, "--help")
  assert "--[no]ema" in out
  assert " --dry " in out
  for argv, ema in (([], True), (["--noema"], False)):
    assert cli.parse(["x", "--workdir=x", *argv], FLAGS, "none").ema is ema


@pytest.mark.parametrize(
  ("argv", "status", "message"),
  [
    (["--workdr=x"], 2, "Unknown command line flag 'workdr'. Did you mean: workdir"),
    ([], 2, "--config and --workdir must be given"),
    (["--workdir=x", f"--config={TINY}", "--num=two"], 2, "--num=two"),
    (["--workdir=x", f"--config={TINY}", "extra"], 2, "'extra' is not a flag"),
    (["--workdir=x", f"--config={TINY}", "--config.lrr=3"], 1, "Did you mean 'lr'"),
    (["--workdir=x", "--config=configs/nope.py"], 1, "there is no file configs/nope.py"),
    (["--workdir=x", f"--config={TINY}", "--config.lr"], 2, "--config.lr needs a value"),
  ],
)
def test_a_wrong_command_line_is_one_line_on_stderr(capsys, argv, status, message):
  got, out, err = run(capsys, *argv)
  assert (got, out) == (status, "")
  assert err.startswith("error: ")
  assert message in err
  assert err.count("\n") == 1


def test_a_user_error_ends_a_command_without_a_stack_trace_but_a_bug_keeps_it(capsys):
  def fails(error):
    def main(args):
      raise error

    return main

  argv = [f"--config={TINY}", "--workdir=x"]
  mistake = run(capsys, *argv, main=fails(UserError("the disk is full.")))
  assert mistake == (1, "", "error: the disk is full.\n")
  with pytest.raises(ZeroDivisionError):
    cli.run(fails(ZeroDivisionError()), DOC, FLAGS, argv=["x", *argv])


HEAVY = ("jax", "flax", "orbax", "tensorflow_datasets", "grain", "optax")
WITHOUT_JAX = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
  runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as stop:
  sys.stderr.write(f"exit {stop.code}; " + " ".join(sorted({m.split(".")[0] for m in sys.modules})))
"""
COMMANDS = ("train", "evaluate", "predict", "convert", "plan", "check", "prepare", "demo")
BAD_CONFIG = [f"--config={TINY}", "--config.lrr=3"]


@pytest.mark.parametrize(
  ("command", "argv", "status"),
  [(c, ["--help"], 0) for c in COMMANDS]
  + [("train", [*BAD_CONFIG, "--workdir=x"], 1), ("plan", BAD_CONFIG, 1)]
  + [("check", [*BAD_CONFIG, "--out=x"], 1)]
  + [("evaluate", [*BAD_CONFIG, "--ckpt=x", "--out=x"], 1)],
)
def test_help_and_a_mistake_in_a_config_import_nothing_heavy(command, argv, status):
  code = [sys.executable, "-c", WITHOUT_JAX, f"pgjax.{command}", *argv]
  done = subprocess.run(code, capture_output=True, text=True, timeout=60)
  assert f"exit {status}; " in done.stderr, done.stderr
  assert not {*done.stderr.split()} & {*HEAVY}, done.stderr


def test_every_command_that_joins_other_processes_takes_how_long_they_may_be_silent(root):
  joining = set()
  for path in (root / "pgjax").glob("*.py"):
    if ".join()" in path.read_text() and path.stem != "cli":
      joining.add(path.stem)
      assert cli.PEER_TIMEOUT in importlib.import_module(f"pgjax.{path.stem}").FLAGS, path.stem
  assert joining >= {"train", "evaluate", "predict"}
