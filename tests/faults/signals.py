r"""Sends each signal in each phase of a run, and prints what came of it: a row a phase and signal.

python tests/faults/signals.py --processes=2 --target=1 --phases=stepping,saving --signals=TERM

--target: who gets the signal: all (one process; launch/local.py) or process 0 or 1 of two. A
double INT is a second one 1.3 s later, to a run that is slow in its phase (slow.py). Each row: the
exit status, seconds from the (first) signal to the end of all processes, the steps on disk, whether
the resumed run equals one that nothing stopped, bit for bit, and the one sentence about the stop.
"""

import argparse
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.faults import runs

PHASES = ("importing", "loading", "compiling", "stepping", "evaluating", "saving")
SIGNALS = ("TERM", "INT", "HUP", "USR1", "USR2", "double")
WITHOUT_STATE = PHASES[:3]
SECONDS = 30.0  # From the signal to the end.
AGAIN_SECONDS = 1.3  # Between two INTs.
STOPPED, AT_ONCE = 75, 130
SLOW = dict(stepping=20, evaluating=20, saving=20, busy=40)  # Longer than any wait for them.


def main():
  """Prints the table; the exit status is 1 if a row fails."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
  parser.add_argument("--target", default="all", choices=("all", "0", "1"))
  parser.add_argument("--phases", default=",".join(PHASES))
  parser.add_argument("--signals", default=",".join(SIGNALS))
  parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
  args = parser.parse_args()
  folder = pathlib.Path(tempfile.mkdtemp(prefix="pgjax-signals-"))
  start = runs.alone if args.processes == 1 else runs.local
  straight = None
  if args.resume:
    run = start(folder / "straight")
    assert run.finish() == [0], run.output
    straight = runs.result(folder / "straight")
  print("phase       signal  to   status seconds  disk            resumed  sentence")
  failed = 0
  for phase in args.phases.split(","):
    for name in args.signals.split(","):
      workdir = folder / f"{phase}-{name}"
      failed += not row(start, workdir, phase, name, args.target, straight)
      shutil.rmtree(workdir, ignore_errors=True)
  print(f"{failed} rows failed." if failed else "All rows are as they must be.")
  shutil.rmtree(folder)
  return int(failed > 0)


def row(start, workdir, phase, name, target, straight):
  """One row; False if something is wrong, which it lists."""
  double = name == "double"
  slow = f"{phase}={SLOW[phase]}" if double and phase in SLOW else ""
  cache = workdir.with_suffix(".cache") if phase == "compiling" else None
  run = start(workdir, slow=slow, cache=cache)
  try:
    seconds, status = stopped(run, phase, "INT" if double else name, target, double=double)
  finally:
    left = run.left(0.0 if target == "all" else 1.0)
    run.clean_up()
  said, (steps, damage) = runs.sentences(run.output), runs.on_disk(workdir)
  expected = AT_ONCE if slow else STOPPED
  wrong = []
  if seconds is None:
    wrong.append("it ended before the signal")
  elif seconds > SECONDS:
    wrong.append(f"it took {seconds:.1f} s")
  wrong += [f"the status is not {expected}"] * (status != expected)
  wrong += [f"{len(said)} sentences"] * (len(said) != 1)
  wrong += [f"trace: {runs.trace(run.output)}"] * bool(runs.trace(run.output))
  wrong += [f"damage: {damage}"] * bool(damage)
  wrong += ["nothing was saved"] * (phase not in WITHOUT_STATE and not steps)
  wrong += [f"left running: {left}"] * bool(left)
  held = (workdir / "running.json").exists()
  wrong += ["the workdir is still held"] * held
  resumed = "-"
  if straight is not None and steps and not damage:  # Otherwise it begins as any run.
    resumed = again(start, workdir, straight)
    wrong += [resumed] * (resumed != "equal")
  sentence = said[0] if said else ""
  disk = f"steps {','.join(map(str, steps))}" if steps else "nothing"
  print(
    f"{phase:<11} {name:<7} {target:<4} {status!s:<6} {seconds or 0:<8.1f} {disk:<15} {resumed:<8}"
    f" {sentence}",
    *(f"\n  WRONG: {each}" for each in wrong),
    *(f"\n    | {line}" for line in run.output.splitlines()[-12:] if wrong),
    sep="",
    flush=True,
  )
  if cache:
    shutil.rmtree(cache, ignore_errors=True)
  return not wrong


def stopped(run, phase, name, target, *, double):
  """(seconds from the signal to the end, or None; the exit status)."""
  if not run.wait(run.at(phase)):
    return None, run.finish()[0]
  number = getattr(signal, f"SIG{name}")
  pid = run.started[0].pid if target == "all" else run.pid(int(target))
  if phase in ("compiling", "evaluating"):
    time.sleep(0.1)
  began = time.monotonic()
  os.kill(pid, number)
  if double:
    time.sleep(AGAIN_SECONDS)
    if run.started[0].poll() is None and pid in run.alive():
      os.kill(pid, number)
  status = run.finish()[0]
  run.left(SECONDS)
  return time.monotonic() - began, status


def again(start, workdir, straight):
  """Resumes the run to its end; "equal" if it is the straight one."""
  run = start(workdir)
  status = run.finish()[0]
  if status:
    return f"resumed with status {status}: {run.output[-500:]}"
  same = runs.result(workdir) == straight
  return "equal" if same else "DIFFERENT"


if __name__ == "__main__":
  sys.exit(main())
