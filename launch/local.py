r"""Runs one program as N processes on this host: for tests, and where there is no scheduler.

python launch/local.py --processes=2 --devices=4 -- -m pgjax.train --config=... --workdir=...

Everything after `--` is passed to this Python. Each process gets PGJAX_COORDINATOR (a free port on
127.0.0.1), PGJAX_NUM_PROCESSES and PGJAX_PROCESS_ID, and its output lines start with its number.
With --devices each process simulates that many CPU devices; without it, it uses the devices that
JAX sees (on a host with GPUs every process would use all of them: start one process for all GPUs,
or set CUDA_VISIBLE_DEVICES through your scheduler).

SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU are forwarded to all processes. If one fails,
the others are stopped; the exit code is that of the first failure. It is 75 if a signal stopped
them, as for one process. If this program is killed, its processes are stopped, too.
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
GRACE_SECONDS = 20.0  # Between asking the others to stop and killing them.
LEAVE_SECONDS = 120.0  # Between the first process that was stopped and asking the others, too.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
# Another process, which ends the others once its input ends: that happens if this program dies.
GUARD = """
import os, signal, sys, time
sys.stdin.buffer.read()
for number, seconds in ((signal.SIGTERM, {grace}), (signal.SIGKILL, 0)):
  for group in map(int, sys.argv[1:]):
    try:
      os.killpg(group, number)
    except OSError:
      pass
  time.sleep(seconds)
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
    for process in processes:
      if process.poll() is None:
        process.send_signal(number)

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
    [sys.executable, "-S", "-c", GUARD.format(grace=GRACE_SECONDS), *groups],
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
  deadline = float("inf")
  while True:
    codes = [process.poll() for process in processes]
    failed = [code for code in codes if code not in (None, 0, STOPPED)]
    if STOPPED in codes:  # The others are on their way, unless they were not asked.
      deadline = min(deadline, time.monotonic() + LEAVE_SECONDS)
    if failed or time.monotonic() > deadline:
      stop(processes)
      code = failed[0] if failed else STOPPED
      return code if code > 0 else 128 - code
    if None not in codes:
      return STOPPED if STOPPED in codes else 0
    time.sleep(0.1)


def stop(processes: list[subprocess.Popen]) -> None:
  """Terminates the running processes; kills them after GRACE_SECONDS."""
  for process in processes:
    if process.poll() is None:
      process.terminate()
  deadline = time.monotonic() + GRACE_SECONDS
  for process in processes:
    try:
      process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


if __name__ == "__main__":
  sys.exit(main())
