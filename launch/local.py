r"""Runs one program as N processes on this host: for tests, and where there is no scheduler.

python launch/local.py --processes=2 --devices=4 -- -m pgjax.train --config=... --workdir=...

Everything after `--` is passed to this Python. Each process gets PGJAX_COORDINATOR (a free port on
127.0.0.1), PGJAX_NUM_PROCESSES and PGJAX_PROCESS_ID, and its output lines start with its number.
With --devices each process simulates that many CPU devices; without it, it uses the devices that
JAX sees (on a host with GPUs every process would use all of them: start one process for all GPUs,
or set CUDA_VISIBLE_DEVICES through your scheduler).

SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU are forwarded to all processes. If one fails,
the others are stopped within 22 s, even frozen ones; the exit code is that of the first failure, or
76 if a process says that it lost another one. It is 75 if a signal stopped them, as for one
process: if it came to one of them, the others are asked to stop, too. If this program is killed,
its processes get a SIGTERM, and are killed a minute later.
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

STOPPED = 75  # pgjax.distributed.signals.STOPPED: of all processes, not at the same moment.
LOST = 76  # pgjax.distributed.peers.LOST: another process is dead or frozen.
NOTICE_SECONDS = 2.0  # For the others to notice a failure and to say so.
GRACE_SECONDS = 20.0  # Between asking the others to end and killing them.
ASK_SECONDS = 5.0  # Between the first process that was stopped and asking the others, too.
LEAVE_SECONDS = 120.0  # And until they are terminated: they may be saving.
GUARD_SECONDS = 60.0  # Between a SIGTERM, if this program has died, and killing the processes.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
# Another process, which ends the others once its input ends: that happens if this program dies.
GUARD = """
import os, signal, sys, time
def send(number):
  for group in list(groups):
    try:
      os.killpg(group, number)
    except OSError:
      groups.remove(group)
sys.stdin.buffer.read()
groups = list(map(int, sys.argv[1:]))
send(signal.SIGTERM)
deadline = time.monotonic() + {seconds}
while groups and time.monotonic() < deadline:
  time.sleep(0.2)
  send(0)
send(signal.SIGKILL)
"""


def main() -> int:
  """Parses, starts, waits."""
  args = parse(sys.argv[1:])
  early: list[int] = []
  take_signals(lambda number, frame: early.append(number))
  processes = start(args)
  guard = start_guard(processes)
  printers = [threading.Thread(target=copy, args=(i, p)) for i, p in enumerate(processes)]
  for printer in printers:
    printer.start()

  def forward(number, frame):
    del frame
    send(processes, number)

  take_signals(forward)
  for number in early:
    forward(number, None)
  code = wait(processes)
  guard.kill()
  guard.wait()
  for printer in printers:
    printer.join()
  try:
    sys.stdout.flush()
  except OSError:  # Nobody reads it: otherwise Python's own flush changes the exit code.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  return code


def take_signals(handler) -> None:
  """Calls `handler` for each signal, but for a SIGHUP that nohup ignores."""
  for name in NAMES:
    number = getattr(signal, name)
    if name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, handler)


def parse(argv: list[str]) -> argparse.Namespace:
  """Our options come before `--`, the program's arguments after it."""
  description, usage = __doc__.split("\n\n")[:2]
  parser = argparse.ArgumentParser(description=description, usage=usage)
  parser.add_argument("--processes", type=int, default=2, help="how many (2)")
  parser.add_argument("--devices", type=int, help="simulated CPU devices of each process")
  parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- program")
  args = parser.parse_args(argv)
  args.program = args.program[args.program[:1] == ["--"] :]
  if not args.program or args.processes < 1:
    parser.error("a program and at least one process are needed")
  return args


def start(args: argparse.Namespace) -> list[subprocess.Popen]:
  """Starts the processes, each in its own session, so that Ctrl-C reaches it only once."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
  processes = []
  for number in range(args.processes):
    env = dict(
      os.environ,
      PGJAX_COORDINATOR=coordinator,
      PGJAX_NUM_PROCESSES=str(args.processes),
      PGJAX_PROCESS_ID=str(number),
      PYTHONUNBUFFERED="1",
    )
    if args.devices:
      flag = "--xla_force_host_platform_device_count"
      others = re.sub(rf"{flag}=\d+", "", env.get("XLA_FLAGS", ""))
      env |= dict(JAX_PLATFORMS="cpu", XLA_FLAGS=f"{others} {flag}={args.devices}".strip())
    processes.append(
      subprocess.Popen(
        [sys.executable, *args.program],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
      )
    )
  return processes


def start_guard(processes: list[subprocess.Popen]) -> subprocess.Popen:
  """Starts the process that outlives this one; its input stays open until this one dies."""
  groups = [str(process.pid) for process in processes]
  return subprocess.Popen(
    [sys.executable, "-S", "-c", GUARD.format(seconds=GUARD_SECONDS), *groups],
    stdin=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )


def copy(number: int, process: subprocess.Popen) -> None:
  """Prints the lines of a process, each with its number; reads them all even if nobody listens."""
  for line in process.stdout:
    with contextlib.suppress(OSError, ValueError):
      sys.stdout.write(f"[{number}] {line}")
      sys.stdout.flush()


def wait(processes: list[subprocess.Popen]) -> int:
  """Waits until all have exited; the first failure stops the others."""
  stopped, asked = None, False
  while True:
    codes = [process.poll() for process in processes]
    if failed := [code for code in codes if code not in (None, 0, STOPPED)]:
      return after_failure(processes, failed[0])
    if None not in codes:
      return STOPPED if STOPPED in codes else 0
    if STOPPED in codes:  # The others are on their way, unless they were not asked.
      stopped = stopped or time.monotonic()
      if not asked and time.monotonic() > stopped + ASK_SECONDS:
        asked = True  # This signal may come twice: pgjax ends at once only after another SIGTERM.
        send(processes, signal.SIGUSR1)
      if time.monotonic() > stopped + LEAVE_SECONDS:
        stop(processes)
        return STOPPED
    time.sleep(0.1)


def after_failure(processes: list[subprocess.Popen], first: int) -> int:
  """Stops the others, and returns the exit code of all."""
  deadline = time.monotonic() + NOTICE_SECONDS
  while None in [process.poll() for process in processes] and time.monotonic() < deadline:
    time.sleep(0.1)
  stop(processes)
  if LOST in [process.returncode for process in processes]:
    return LOST
  return first if first > 0 else 128 - first


def send(processes: list[subprocess.Popen], number: int) -> None:
  """Sends a signal to those that run."""
  for process in processes:
    if process.poll() is None:
      process.send_signal(number)


def stop(processes: list[subprocess.Popen]) -> None:
  """Terminates the running processes; kills them, and theirs, after GRACE_SECONDS."""
  send(processes, signal.SIGTERM)
  deadline = time.monotonic() + GRACE_SECONDS
  for process in processes:
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(max(0.0, deadline - time.monotonic()))
  for process in processes:
    with contextlib.suppress(OSError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
  sys.exit(main())
