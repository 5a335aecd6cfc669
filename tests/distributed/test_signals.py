"""What a signal does to a command before and after there is something to save."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import pgjax
from pgjax.distributed import signals

ROOT = pathlib.Path(pgjax.__path__[0]).parent
START = (
  "import os; from pgjax.distributed import signals; out = os.dup(1); "
  "stop = signals.Stop(); stop.install('Left by {}.'); "
)
READY = "print('ready', flush=True); "
# A library that does not let Python run its handlers, as a compilation.
BUSY = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2_000_000_000)"
NAMES = [name for name in signals.NAMES if hasattr(signal, name)]


def start(program, **options):
  command = [sys.executable, "-c", program]
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  process = subprocess.Popen(command, cwd=ROOT, **pipes, **options)
  assert process.stdout.readline() == "ready\n"
  return process


@pytest.mark.parametrize("name", NAMES)
def test_before_there_is_something_to_save_a_signal_ends_even_a_busy_process(name):
  process = start(
    f"{START}stop.clean_up.append(lambda: os.write(out, b'cleaned\\n')); {READY}{BUSY}"
  )
  time.sleep(0.1)
  process.send_signal(getattr(signal, name))
  out, err = process.communicate(timeout=30)
  assert (process.returncode, out, err) == (signals.STOPPED, "cleaned\n", f"Left by {name}.\n")


def test_unfinished_work_is_removed_and_what_the_main_thread_says_then_is_lost():
  """The main thread finds its files gone, and its trace and its exit status reach nobody."""
  program = (
    f"{START}import threading, time; gone = threading.Event();"
    "remove = lambda: (gone.set(), time.sleep(0.5), os.write(out, b'removed\\n'));"
    "context = signals.on_stop(remove, 'Stopped by {}; {x was not written.'); context.__enter__();"
    f"{READY}gone.wait(); 1 / 0"
  )
  process = start(program)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=30)
  assert (process.returncode, out) == (signals.STOPPED, "removed\n")
  assert err == "Stopped by SIGTERM; {x was not written.\n"  # A name may have any character.


def test_after_the_context_a_signal_removes_nothing():
  program = (
    f"{START}context = signals.on_stop(lambda: os.write(out, b'removed\\n'), 'No {{}}.')\n"
    f"with context: pass\n{READY}{BUSY}"
  )
  process = start(program.replace("{{}}", "{}"))
  process.send_signal(signal.SIGTERM)
  assert process.communicate(timeout=30) == ("", "Left by SIGTERM.\n")


def test_nohup_is_respected():
  before = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
  process = start(f"{START}{READY}import time; time.sleep(60)", preexec_fn=before)
  process.send_signal(signal.SIGHUP)
  with pytest.raises(subprocess.TimeoutExpired):
    process.communicate(timeout=0.5)
  process.terminate()
  assert process.wait(30) == signals.STOPPED


IN_CONTEXT = f"""
{START}
import time
try:
  with stop:
    print("ready", flush=True)
    while stop.signal is None:
      time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
  print("at once", flush=True)
"""


def test_in_the_context_signals_are_noted_and_a_later_one_ends_it_at_once():
  process = start(IN_CONTEXT)
  for name in ("SIGHUP", "SIGTERM", "SIGINT"):  # As a terminal and a scheduler send them.
    process.send_signal(getattr(signal, name))
  assert process.stdout.readline() == "noted\n"
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(1.5)
  process.send_signal(signal.SIGUSR1)  # Nobody's impatience.
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(0.5)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=30)
  assert (process.returncode, out, err) == (0, "at once\n", "")


def test_a_process_that_ignores_the_second_signal_ends_later():
  program = IN_CONTEXT.replace("time.sleep(60)", BUSY).replace(START, f"{START}GRACE")
  process = start(program.replace("GRACE", "signals.GRACE_SECONDS = 0.2"))
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == "noted\n"
  time.sleep(1.2)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == signals.AT_ONCE


def test_signals_during_the_exit_change_nothing():
  """Of a command that has stopped, and in Python's own clean-up."""
  program = (
    f"{START}signals.REPEAT_SECONDS = 0.0; import atexit, time\n"
    "def last(): print('ready', flush=True); time.sleep(0.5)\n"
    "atexit.register(last)\n"
    "with stop: os.kill(os.getpid(), 2)\n"
    "stop.finish()\n"
    "class Late:\n"
    "  def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, 2); kill(pid, 15)\n"
    "sys = __import__('sys'); sys.late = Late(); sys.exit(75)"
  )
  process = start(program)
  for name in ("SIGINT", "SIGTERM"):
    process.send_signal(getattr(signal, name))
  assert process.communicate(timeout=30) == ("", "")
  assert process.returncode == signals.STOPPED


def test_a_process_that_imports_gets_no_signal_until_it_ignores_them():
  """Then those that came are forgotten, too."""
  child = (
    f"import sys, time; {READY}sys.stdin.readline(); from pgjax.distributed import signals;"
    " signals.ignore_in_worker(); print('still here')"
  )
  with signals.withheld_from_children():
    process = start(child, stdin=subprocess.PIPE)
  for name in NAMES:
    process.send_signal(getattr(signal, name))
  out, err = process.communicate("go on\n", timeout=30)
  assert (process.returncode, out, err) == (0, "still here\n", "")


def test_handlers_come_back_in_a_process_that_is_not_the_command():
  numbers = [getattr(signal, name) for name in NAMES]
  before = [signal.getsignal(number) for number in numbers]
  with signals.of_process() as stop:
    signal.raise_signal(signal.SIGUSR1)
    assert stop.signal == signal.SIGUSR1
  assert [signal.getsignal(number) for number in numbers] == before


def test_a_worker_ends_with_a_run_that_is_killed():
  program = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]);"
    " time.sleep(60)"
  )
  worker = (
    "import os, time; from pgjax.distributed import signals; signals.PARENT_SECONDS = 0.05;"
    f" signals.ignore_in_worker(); {READY}time.sleep(60)"
  )
  run = subprocess.Popen(
    [sys.executable, "-c", program, worker], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  assert run.stdout.readline() == "ready\n"
  run.kill()
  assert run.communicate(timeout=30) == ("", None)  # Nobody holds the pipe any longer.


CONSOLE = """
import sys
from pgjax.distributed import console
console.outlive_readers()
for i in range(20_000):
  print("line", i)
  print("error", i, file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize(
  "closed", ["| head -n 1", "2>&1 | head -n 1", ">&-", ">&- 2>&-", ">/dev/full"]
)
def test_a_process_outlives_its_readers(closed):
  command = f'"{sys.executable}" -c "$PROGRAM" {closed}; exit ${{PIPESTATUS[0]}}'
  ended = subprocess.run(
    ["bash", "-c", command],
    cwd=ROOT,
    env=os.environ | dict(PROGRAM=CONSOLE),
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 3
  assert "Traceback" not in ended.stdout + ended.stderr
  assert "Exception ignored" not in ended.stderr


COMMAND = """
import sys
from pgjax import cli
def main(args):
  for i in range(20_000):
    cli.PRINT(f"line {i}")
cli.run(main, "doc", config="none")
"""
LOST = {
  "say": (0, "What was printed to stdout is lost: {}.\n"),
  "result": (1, "error: The result cannot be written to stdout: {}.\n"),
}


@pytest.mark.parametrize("show", LOST)
def test_a_result_that_nobody_can_read_is_an_error_and_progress_is_not(show):
  status, sentence = LOST[show]
  for closed, why in (("| head -n 1", "Broken pipe"), (">/dev/full", "No space left on device")):
    command = f'"{sys.executable}" -c "$PROGRAM" {closed}'
    ended = subprocess.run(
      ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
      cwd=ROOT,
      env=os.environ | dict(PROGRAM=COMMAND.replace("PRINT", show)),
      capture_output=True,
      text=True,
      check=False,
    )
    assert (ended.returncode, ended.stderr) == (status, sentence.format(why))


def test_what_is_printed_arrives():
  program = CONSOLE.replace("20_000", "2")
  ended = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False
  )
  assert (ended.returncode, ended.stdout) == (3, b"line 0\nline 1\n")
  assert ended.stderr == b"error 0\nerror 1\n"
