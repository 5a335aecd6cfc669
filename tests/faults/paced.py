"""Runs a command of pgjax slowly, and lets a fault begin at a known moment of it.

python tests/faults/paced.py pgjax.train --config=... --workdir=...

PACE: seconds a step takes longer. A bucket's copy is uploaded every half second. PAUSE="save 2": at
the second save (or "log", "evaluate", "restore") the file PAUSE_FILE appears, and the run waits
until it is gone.

With --serve, commands are read from stdin, a JSON object each: "argv", "env", "output". Each runs
in a process of its own, which is forked from one that has imported everything; its number and its
exit status are written to stdout.
"""

import importlib
import json
import os
import pathlib
import pkgutil
import runpy
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pgjax  # noqa: E402
from pgjax.checkpoints import bucket_copy, saver  # noqa: E402
from pgjax.evaluation import evaluator, score_checkpoint  # noqa: E402
from pgjax.training import run_log  # noqa: E402

PLACES = {
  "save": (saver.Saver, "save"),
  "log": (run_log.Log, "step"),
  "evaluate": (evaluator, "write"),
  "score": (score_checkpoint, "write"),
  "restore": (saver.Saver, "latest"),
}


def before(owner, name, call):
  """Calls `call` before each call of owner.name."""
  original = getattr(owner, name)

  def wrapped(*args, **kwargs):
    call()
    return original(*args, **kwargs)

  setattr(owner, name, wrapped)


def run(argv):
  """As `python -m`."""
  bucket_copy.SYNC_SECONDS = 0.5
  before(run_log.Log, "step", lambda: time.sleep(float(os.environ.get("PACE", "0"))))
  place, _, count = os.environ.get("PAUSE", "").partition(" ")
  calls = []

  def pause():
    calls.append(1)
    if len(calls) != int(count):
      return
    file = pathlib.Path(os.environ["PAUSE_FILE"])
    file.touch()
    while file.exists():
      time.sleep(0.01)

  if place:
    before(*PLACES[place], pause)
  sys.argv = list(argv)
  runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def serve():
  """Returns in each child, which ends as its command does."""
  import s3fs  # noqa: F401

  for package in pkgutil.iter_modules(pgjax.__path__):
    if package.ispkg and package.name not in ("api", "papers", "datasets", "web"):
      folder = [str(pathlib.Path(pgjax.__path__[0], package.name))]
      for module in pkgutil.iter_modules(folder):
        importlib.import_module(f"pgjax.{package.name}.{module.name}")
  for line in sys.stdin:
    job = json.loads(line)
    if child := os.fork():
      sys.stdout.write(f"{child}\n")
      sys.stdout.flush()
      _, status = os.waitpid(child, 0)
      sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
      sys.stdout.flush()
      continue
    os.environ.update(job["env"])
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    return run(job["argv"])
  return None


if __name__ == "__main__":
  if sys.argv[1:] == ["--serve"]:
    serve()
  else:
    run(sys.argv[1:])
