"""launch/local.py passes signals and exit codes on, and leaves no process behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import pgjax

ROOT = pathlib.Path(pgjax.__path__[0]).parent
READY = "import os, signal, sys, time; print(os.getpid(), flush=True); "
STOPS = (
  "import os, signal, sys, time; i = int(os.environ['PGJAX_PROCESS_ID']);"
  " took = lambda n, f: (time.sleep(0.3 * i), print('got', n, flush=True), sys.exit(75));"
  " [signal.signal(n, took) for n in (1, 2, 10, 12, 15)]; print(os.getpid(), flush=True);"
  " time.sleep(60)"
)


def launch(program, **options):
  command = [sys.executable, "launch/local.py", "--processes=2", "--", "-c", program]
  pipes = dict(stdout=subprocess.PIPE, text=True)
  process = subprocess.Popen(command, cwd=ROOT, **pipes, **options)
  return process, [int(process.stdout.readline().split()[1]) for _ in range(2)]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_goes_to_all_and_so_does_the_exit_code_come_back(name):
  process, _ = launch(STOPS)
  process.send_signal(getattr(signal, name))
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 75
  assert out.count(f"got {int(getattr(signal, name))}") == 2


PATCHED = """
import sys
sys.path.insert(0, "launch")
import local
names = dict(ASK_SECONDS=0.1, NOTICE_SECONDS=0.5, GRACE_SECONDS=0.3, GUARD_SECONDS=0.3)
for name, value in names.items():
  setattr(local, name, value)
sys.exit(local.main())
"""


def launch_patched(program):
  """With shorter times."""
  command = [sys.executable, "-c", PATCHED, "--processes=2", "--", "-c", program]
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  lines = [process.stdout.readline().split() for _ in range(2)]
  return process, [int(pid) for _, pid in sorted(lines)]


def test_the_first_failure_is_the_exit_code(tmp_path):
  both = tmp_path / "both have started"
  waits = (
    f"wait = lambda: os.environ['PGJAX_PROCESS_ID'] == '1' or not os.path.exists({str(both)!r});"
  )
  process, _ = launch_patched(
    f"{READY}{waits} [time.sleep(0.05) for _ in iter(wait, False)]; sys.exit(3)"
  )
  both.touch()
  process.communicate(timeout=60)
  assert process.returncode == 3


def test_a_signal_to_one_of_the_processes_stops_the_others():
  process, pids = launch_patched(STOPS)
  os.kill(pids[1], signal.SIGINT)
  out, _ = process.communicate(timeout=60)
  assert (process.returncode, sorted(out.splitlines())) == (75, ["[0] got 10", "[1] got 2"])


LOSES = READY + ("time.sleep(60 if os.environ['PGJAX_PROCESS_ID'] == '1' else 0.4); sys.exit(76)")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_dead_or_frozen_process_is_cleaned_up_and_the_run_can_go_on(name):
  """76: run it again, whichever of the processes ended first."""
  process, pids = launch_patched(LOSES)
  os.kill(pids[1], getattr(signal, name))
  process.communicate(timeout=60)
  assert process.returncode == 76
  assert not any(map(is_alive, pids))


def is_alive(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False


def test_a_killed_launcher_leaves_no_process_behind():
  process, pids = launch_patched(f"{READY}time.sleep(60)")
  assert all(map(is_alive, pids))
  os.kill(pids[1], signal.SIGSTOP)  # It ignores a SIGTERM.
  process.kill()
  process.wait()
  deadline = time.monotonic() + 15
  while any(map(is_alive, pids)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(is_alive, pids))


def test_a_launcher_that_nobody_reads_runs_to_the_end(tmp_path):
  program = (
    f"{READY}[print(i, flush=True) for i in range(30_000)];"
    " open(sys.argv[1] + os.environ['PGJAX_PROCESS_ID'], 'w')"
  )
  command = f'"{sys.executable}" launch/local.py -- -c "$PROGRAM" {tmp_path}/done | head -n 1'
  env = os.environ | dict(PROGRAM=program)
  ended = subprocess.run(
    ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, env=env, capture_output=True, check=False
  )
  assert (ended.returncode, ended.stderr) == (0, b"")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["done0", "done1"]
