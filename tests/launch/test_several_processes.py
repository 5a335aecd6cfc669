"""Two processes evaluate, answer and check as one does."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import small_checkpoint

from pgjax import check, cli, evaluate, predict
from pgjax.data.sources import registry

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("easy_vqa") is None, reason="the easy-vqa package is not installed"
)
PROGRAM = """
import importlib, json, sys
from pgjax import cli
for name, argv in json.loads(sys.argv[1]):
  module = importlib.import_module(f"pgjax.{name}")
  try:
    cli.run(module.main, module.__doc__, module.FLAGS, config=module.CONFIG, argv=[name, *argv])
  except SystemExit as end:
    print(name, "ended with", end.code or 0)
"""


def run_here(module, argv):
  with pytest.raises(SystemExit) as end:
    cli.run(module.main, module.__doc__, module.FLAGS, config=module.CONFIG, argv=["x", *argv])
  return end.value.code or 0


def commands(workdir, questions, out):
  config = ["--config=configs/easyvqa.py", "--config.input.data.split=train[:20]"]
  small = [f"--config.evals.{n}.data.split=test[:10]" for n in ("val", "test")]
  return [
    ("evaluate", [f"--ckpt={workdir}", f"--out={out}/scores", "--evals=test", "--watch"]),
    ("predict", [f"--ckpt={workdir}", f"--jsonl={questions}", f"--out={out}/a.jsonl", "--json"]),
    ("check", [*config, *small, f"--out={out}/check", "--num=1"]),
  ]


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path, root):
  workdir = tmp_path / "run"
  small_checkpoint.write(workdir / "checkpoints/7", root, last=7)
  source = registry.open(dict(name="easy_vqa", split="test[:11]"))
  questions = tmp_path / "questions.jsonl"
  rows = []
  for i in range(11):
    (tmp_path / f"{i}.png").write_bytes(source[i]["image"])
    rows.append(dict(image=f"{i}.png", prefix=source[i]["question"], id=i))
  questions.write_text("".join(json.dumps(row) + "\n" for row in rows))

  modules = dict(evaluate=evaluate, predict=predict, check=check)
  for name, argv in commands(workdir, questions, tmp_path / "one"):
    (tmp_path / "one").mkdir(exist_ok=True)
    assert run_here(modules[name], argv) == 0, name
  (tmp_path / "two").mkdir()
  listed = json.dumps(commands(workdir, questions, tmp_path / "two"))
  ended = subprocess.run(
    [sys.executable, "launch/local.py", "--devices=2", "--", "-c", PROGRAM, listed],
    cwd=root,
    env=os.environ | dict(PYTHONPATH=str(root)),
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stdout
  for name in modules:
    for index in (0, 1):
      assert f"[{index}] {name} ended with 0" in ended.stdout, ended.stdout
  assert "[0] One process checks the data; the other 1 have nothing to do." in ended.stdout
  assert "[1] step" not in ended.stdout.lower()

  one, two = (read(tmp_path / n) for n in ("one", "two"))
  assert one.keys() == two.keys()
  for name, rows in one.items():
    assert len(rows) > 1 or name == "check"
    equal(rows, two[name])


def read(folder):
  files = dict(scores="scores/step_7/predictions.jsonl", answers="a.jsonl")
  texts = {name: (folder / file).read_text().splitlines() for name, file in files.items()}
  rows = {name: [json.loads(line) for line in lines] for name, lines in texts.items()}
  return rows | dict(check=[(folder / "check/report.txt").read_text()])


def equal(a, b):
  """Numbers to 1e-5: the last digits depend on the order of sums."""
  if isinstance(a, dict):
    assert a.keys() == b.keys()
    a, b = list(a.values()), list(b.values())
  if isinstance(a, list):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
      equal(x, y)
  elif isinstance(a, float):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  else:
    assert a == b
