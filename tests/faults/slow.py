"""Runs pgjax.train slowly in one phase, so that a signal can reach it there twice.

python tests/faults/slow.py PHASE SECONDS -m pgjax.train ...

PHASE: stepping, evaluating, saving; busy is stepping in a library that lets no handler run.
"""

import hashlib
import itertools
import pathlib
import runpy
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

# Calls that are as fast as ever: steps, the batches of an evaluation, a save.
BEGIN = dict(stepping=22, busy=22, evaluating=15, saving=1)


def main():
  """Replaces one function, and runs the rest of the command line."""
  phase, seconds, _, module = sys.argv[1:5]
  sys.argv[:5] = [module]
  from pgjax.checkpoints import workdir
  from pgjax.distributed import signals
  from pgjax.evaluation import evaluator
  from pgjax.training import run_log

  signals.begin()
  owner, name = dict(
    stepping=(run_log.Log, "step"),
    busy=(run_log.Log, "step"),
    evaluating=(evaluator, "_rows"),
    saving=(workdir, "add_files"),
  )[phase]
  function, calls = getattr(owner, name), itertools.count()

  def slowly(*args, **kwargs):
    if next(calls) >= BEGIN[phase]:
      if phase == "busy":
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", int(3_000_000 * float(seconds)))
      else:
        time.sleep(float(seconds))
    return function(*args, **kwargs)

  setattr(owner, name, slowly)
  runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
