"""Runs a command of pgjax slowly, and lets a fault begin at a known moment of it.

python tests/faults/paced.py pgjax.train --config=... --workdir=...

PACE: seconds a step takes longer. A bucket's copy is uploaded every half second. PAUSE="save 2": at
the second save (or "log", "evaluate", "restore") the file PAUSE_FILE appears, and the run waits
until it is gone. LIMIT: bytes of the largest file that may be written after the pause.
"""

import os
import pathlib
import resource
import runpy
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pgjax.checkpoints import bucket_copy, saver  # noqa: E402
from pgjax.evaluation import evaluator  # noqa: E402
from pgjax.training import run_log  # noqa: E402

PLACES = {
  "save": (saver.Saver, "save"),
  "log": (run_log.Log, "step"),
  "evaluate": (evaluator, "write"),
  "restore": (saver.Saver, "latest"),
}


def before(owner, name, call):
  """Calls `call` before each call of owner.name."""
  original = getattr(owner, name)

  def wrapped(*args, **kwargs):
    call()
    return original(*args, **kwargs)

  setattr(owner, name, wrapped)


def main():
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
    if limit := os.environ.get("LIMIT"):
      resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))

  if place:
    before(*PLACES[place], pause)
  sys.argv = [sys.argv[1], *sys.argv[2:]]
  runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
