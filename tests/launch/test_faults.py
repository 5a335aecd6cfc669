"""Cells of the tables of tests/faults, whose programs cover the others: two processes."""

import os
import re
import signal

import pytest

from pgjax.distributed import peers, signals
from tests.faults import runs, signals as table


def stop(workdir, phase, name, target, **options):
  """(exit status, output, steps on disk) after a signal in a phase; nothing is left."""
  run = runs.local(workdir, **options)
  try:
    double = name == "double"
    seconds, status = table.stopped(run, phase, "INT" if double else name, target, double=double)
    assert seconds is not None, run.output
    assert not run.left(10)
  finally:
    run.clean_up()
  steps, damage = runs.on_disk(workdir)
  assert not runs.trace(run.output) + damage, run.output
  assert seconds <= table.SECONDS
  return status, run.output, steps


@pytest.mark.slow
def test_a_signal_to_one_process_that_imports_stops_the_other_that_waits_for_it(tmp_path):
  status, output, steps = stop(tmp_path, "importing", "HUP", "1")
  assert (status, steps) == (signals.STOPPED, [])
  [sentence] = runs.sentences(output)
  assert sentence.startswith("[0] Stopped by SIGUSR1 before training began")  # launch/local.py's.


@pytest.mark.long
@pytest.mark.parametrize(
  ("phase", "name", "target"),
  [("compiling", "TERM", "1"), ("saving", "USR1", "0"), ("evaluating", "HUP", "1")],
)
def test_a_signal_to_one_process_saves_and_stops_both(tmp_path, phase, name, target):
  status, output, steps = stop(tmp_path, phase, name, target)
  assert status == signals.STOPPED
  assert bool(steps) == (phase != "compiling")
  [sentence] = runs.sentences(output)
  assert sentence.startswith("[0] Stopped by ")


@pytest.mark.long
@pytest.mark.parametrize("phase", ["busy", "saving"])
def test_a_second_signal_ends_both_processes_with_one_sentence(tmp_path, phase):
  """Also where a library lets no handler run."""
  at = "stepping" if phase == "busy" else phase
  status, output, _ = stop(tmp_path, at, "double", "all", slow=f"{phase}={table.SLOW[phase]}")
  assert status == signals.AT_ONCE
  assert runs.sentences(output) == ["[0] error: interrupted."]


@pytest.mark.long
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_the_launcher_cleans_up_after_a_dead_or_frozen_process(tmp_path, fault):
  run = runs.local(tmp_path, flags=["--peer_timeout=6"], **{"input.num_workers": 1})
  try:
    assert run.wait(run.at("stepping")), run.output
    os.kill(run.pid(1), dict(kill=signal.SIGKILL, freeze=signal.SIGSTOP)[fault])
    assert run.finish(60) == [peers.LOST]
    assert not run.left(3)
  finally:
    run.clean_up()
  assert not runs.trace(run.output), run.output
  [sentence] = runs.sentences(run.output)
  assert re.search(r"error: Process 1 of 2 on host \S+ has (ended|been silent)", sentence)
