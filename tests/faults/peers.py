r"""Kills, freezes or cuts off one of two processes, or kills their launcher: a row a fault.

python tests/faults/peers.py --launchers=hand,local --faults=kill --phases=saving

Launchers: hand (nobody watches the processes), local (launch/local.py), mpirun, and hosts (two
network namespaces joined by a cable, which needs root). Faults: kill, freeze (SIGSTOP) process 0 or
1; cut (the cable); launcher (kill -9 of it). Each row: the exit statuses, the seconds from the
fault to the end of the rest, whether the resumed run equals one that nothing disturbed, bit for
bit, and what was printed.
"""

import argparse
import contextlib
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests import namespaces
from tests.faults import runs

TIMEOUT = 6  # --peer_timeout.
DELAY = 4.0  # Two busy cores.
LOST, STOPPED, AT_ONCE = 76, 75, 130
CLEAN_SECONDS = 22.0  # launch/local.py, until it has killed a frozen process.
PHASES = ("stepping", "evaluating", "saving")
CASES = [
  *((launcher, fault, victim) for launcher in ("hand", "local", "mpirun")
    for fault in ("kill", "freeze") for victim in (0, 1)),
  ("local", "launcher", None),
  ("mpirun", "launcher", None),
  ("hosts", "cut", None),
]  # fmt: skip


def main():
  """Prints the table; the exit status is 1 if a row fails."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument("--launchers", default="hand,local,hosts")
  parser.add_argument("--faults", default="kill,freeze,cut,launcher")
  parser.add_argument("--victims", default="0,1")
  parser.add_argument("--phases", default=",".join(PHASES))
  parser.add_argument("--workers", type=int, default=0, help="config.input.num_workers")
  parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
  args = parser.parse_args()
  folder = pathlib.Path(tempfile.mkdtemp(prefix="pgjax-peers-"))
  straight, failed = None, 0
  if args.resume:
    run = runs.by_hand(folder / "straight")
    assert run.finish() == [0, 0], run.output
    straight = runs.result(folder / "straight")
  print("launcher fault    victim phase       statuses  seconds  resumed  sentences")
  has_hosts = "hosts" in args.launchers.split(",")
  with namespaces.hosts() if has_hosts else contextlib.nullcontext() as hosts:
    for launcher, fault, victim in CASES:
      chosen = launcher in args.launchers.split(",") and fault in args.faults.split(",")
      if chosen and (victim is None or str(victim) in args.victims.split(",")):
        for phase in args.phases.split(","):
          case = (launcher, fault, victim, phase)
          failed += not row(case, folder / "run", hosts, straight, args.workers)
          shutil.rmtree(folder / "run", ignore_errors=True)
  print(f"{failed} rows failed." if failed else "All rows are as they must be.")
  shutil.rmtree(folder)
  return int(failed > 0)


def start(launcher, workdir, hosts, workers):
  """The run."""
  options = {"flags": [f"--peer_timeout={TIMEOUT}"], "input.num_workers": workers}
  if launcher == "hosts":
    prefixes = [namespaces.inside(host) for host in hosts]
    return runs.by_hand(workdir, prefixes=prefixes, host=namespaces.ADDRESSES[0], **options)
  return dict(hand=runs.by_hand, local=runs.local, mpirun=runs.mpirun)[launcher](workdir, **options)


def row(case, workdir, hosts, straight, workers):
  """One row; False if something is wrong, which it lists."""
  launcher, fault, victim, phase = case
  run, wrong = start(launcher, workdir, hosts, workers), []
  try:
    assert run.wait(run.at(phase)), f"it ended before {phase}:\n{run.output}"
    began = time.monotonic()
    cause(run, fault, victim, hosts)
    statuses, seconds = ended(run, launcher, fault, victim, began)
  finally:
    if launcher == "hosts":
      namespaces.cable(hosts[0], "up")
    run.clean_up()
  said = runs.sentences(run.output)
  wrong += check(case, statuses, seconds, said)
  wrong += [f"trace: {runs.trace(run.output)}"] * bool(runs.trace(run.output))
  steps, damage = runs.on_disk(workdir)
  wrong += [f"damage: {damage}"] * bool(damage)
  wrong += ["it was not saved"] * (fault == "launcher" and steps[-1:] <= [runs.EVERY])
  resumed = again(workdir, straight) if straight else "-"
  wrong += [resumed] * (resumed not in ("equal", "-"))
  print(
    f"{launcher:<8} {fault:<8} {'-' if victim is None else victim:<6} {phase:<11}"
    f" {','.join(map(str, statuses)):<9} {seconds:<8.1f} {resumed[:8]:<8} {' / '.join(said)}",
    *(f"\n  WRONG: {each}" for each in wrong),
    *(f"\n    | {line}" for line in run.output.splitlines()[-12:] if wrong),
    sep="",
    flush=True,
  )
  return not wrong


def cause(run, fault, victim, hosts):
  """The fault."""
  if fault == "cut":
    namespaces.cable(hosts[0], "down")
  elif fault == "launcher":
    os.kill(run.started[0].pid, signal.SIGKILL)
  else:
    os.kill(run.pid(victim), dict(kill=signal.SIGKILL, freeze=signal.SIGSTOP)[fault])


def ended(run, launcher, fault, victim, began):
  """(exit statuses, seconds until the rest have ended); of a frozen one after it has thawed."""
  if launcher == "hand" and fault == "freeze":
    other = run.started[1 - victim]
    other.wait(120)
    seconds = time.monotonic() - began
    os.kill(run.pid(victim), signal.SIGCONT)
    statuses = run.finish(60)
  else:
    statuses = run.finish(120)
    run.left(90)
    seconds = time.monotonic() - began
  return statuses, seconds


def check(case, statuses, seconds, said):
  """What is wrong."""
  launcher, fault, victim, _ = case
  wrong = []
  noticed = DELAY + (0 if fault in ("kill", "launcher") else TIMEOUT)
  cleaned = CLEAN_SECONDS if fault == "freeze" and launcher != "hand" else 2.0
  limit = (
    30.0 if fault == "launcher" else noticed + (0 if launcher in ("hand", "hosts") else cleaned)
  )
  if seconds > limit:
    wrong.append(f"{seconds:.1f} s are more than {limit:.0f}")
  if fault == "launcher":  # Whose output is gone, too: that they saved shows that they stopped.
    expected, number, pattern = [-9], 0, ""
  elif fault == "cut":
    expected, number, pattern = [LOST, LOST], 2, r"Process \d of 2 on host \S+ has been silent for"
  else:
    what = "has ended, killed" if fault == "kill" else "has been silent for"
    expected, number = [LOST], 1
    pattern = rf"Process {victim} of 2 on host \S+ {what}"
    if launcher == "mpirun" and fault == "freeze":  # It thaws what it ends.
      number = len(said)
    if launcher == "hand":
      expected = [LOST, LOST]
      expected[victim] = -9 if fault == "kill" else LOST
      number += fault == "freeze"
    elif launcher == "mpirun" and fault == "kill" and statuses == [128 + signal.SIGKILL]:
      expected = statuses  # mpirun's is that of the process which it saw end first.
  if statuses != expected:
    wrong.append(f"the statuses are not {expected}")
  if len(said) != number or not re.search(pattern, "".join(said[:1])):
    wrong.append(f"{len(said)} sentences, and not {number} such as {pattern}")
  return wrong


def again(workdir, straight):
  """Resumes the run to its end; "equal" if it is the straight one."""
  run = runs.by_hand(workdir)
  if any(statuses := run.finish()):
    return f"resumed with statuses {statuses}: {run.output[-500:]}"
  return "equal" if runs.result(workdir) == straight else "DIFFERENT"


if __name__ == "__main__":
  sys.exit(main())
