"""Is another run using this folder? A file in it says on which host and in which process.

The file appears at once and whole (a hard link, which is atomic on NFS, too), and its time changes
every BEAT_SECONDS. A run on this host is alive if its process is; elsewhere, if the file changes
within SILENT_SECONDS. So a killed run does not hold a folder for ever, and no clocks are compared.
"""

import contextlib
import fcntl
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from pgjax import disk
from pgjax.distributed import processes
from pgjax.distributed.signals import Stop
from pgjax.errors import UserError
from pgjax.formats import typed_json


class Use(NamedTuple):
  """What a folder is used for."""

  file: str  # The name of the lock.
  what: str
  flag: str  # What names the folder.


TRAINING = Use("running.json", "run", "--workdir")
EVALUATION = Use("evaluating.json", "evaluation", "--out")
BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0  # A run elsewhere whose file does not change for this long is dead.
POLL_SECONDS = 0.5
SETTLE_SECONDS = 0.3  # Two that replace the file of a dead run do so within this time.


class Holder(msgspec.Struct, frozen=True):
  """A process that uses the folder."""

  host: str
  pid: int
  started: str
  machine: str = ""  # The same for all processes that see each other's numbers.
  pid_started: int = 0  # Clock ticks after the boot; 0 if unknown.
  token: str = ""


class RunLock:
  """Holds a folder from `acquire` to `release`."""

  def __init__(self, folder: pathlib.Path, say: Callable[[str], None], use: Use = TRAINING):
    """Touches no file."""
    self._folder, self._path, self._say, self._use = folder, folder / use.file, say, use
    self._mine = _this_process()
    self._taken_by: Holder | None = None
    self._done = threading.Event()
    self._held = False

  def acquire(self) -> None:
    """Raises a UserError if another run is alive; waits for a sign of life if it is elsewhere."""
    with disk.disk_errors(self._path):
      while not self._create() and not self._take_over():
        time.sleep(POLL_SECONDS)
    self._held = True
    threading.Thread(target=self._beat, daemon=True).start()

  def check(self) -> None:
    """Raises if another run has taken the workdir, because this one was silent for too long."""
    if self._taken_by is not None:
      raise UserError(
        f"This run was suspended for over {SILENT_SECONDS:.0f} s and stops, because another has"
        f" started since. {_in_use(self._folder, self._taken_by, self._use)}"
      )

  def release(self) -> None:
    """Another run may start."""
    self._done.set()
    if self._held:
      self._held = False
      with contextlib.suppress(OSError):
        if _read(self._path)[0] == self._mine:
          self._path.unlink()

  def _create(self) -> bool:
    """False if there is such a file already."""
    partial = self._folder / f".{self._use.file}.{self._mine.token}"
    try:
      partial.write_bytes(msgspec.json.encode(self._mine) + b"\n")
      try:
        os.link(partial, self._path)
      except FileExistsError:  # Also where NFS repeats a call whose answer was lost.
        return _read(self._path)[0] == self._mine
      except OSError:  # A disk without hard links.
        try:
          with self._path.open("xb") as file:
            file.write(partial.read_bytes())
        except FileExistsError:
          return False
      return True
    finally:
      partial.unlink(missing_ok=True)

  def _take_over(self) -> bool:
    """Replaces the file of a dead run; False if it has to be looked at again."""
    holder, mark = _read(self._path)
    if mark is None:
      return False
    if self._is_alive(holder, mark):
      raise UserError(_in_use(self._folder, holder, self._use))
    with _guard(self._folder) as alone:
      if not alone or _read(self._path)[1] != mark:
        return False
      aside = self._folder / f".{self._use.file}.{self._mine.token}.dead"
      self._path.rename(aside)
      aside.unlink()
      if not self._create():
        return False
    time.sleep(SETTLE_SECONDS)
    return _read(self._path)[0] == self._mine

  def _is_alive(self, holder: Holder | None, mark: tuple[bytes, int]) -> bool:
    if holder is not None and holder.machine == self._mine.machine:
      started = _started(holder.pid)
      if started is None or (started and holder.pid_started):
        return started is not None and started == holder.pid_started
    host = f"host {holder.host}" if holder else "another host"
    self._say(
      f"A run on {host} has used {self._folder}; waiting up to {SILENT_SECONDS:.0f} s for a sign"
      " of life."
    )
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
      time.sleep(POLL_SECONDS)
      if (later := _read(self._path)[1]) != mark:
        return later is not None
    return False

  def _beat(self) -> None:
    while not self._done.wait(BEAT_SECONDS):
      with contextlib.suppress(OSError):
        holder, mark = _read(self._path)
        if holder == self._mine:
          os.utime(self._path)
        elif mark is None:  # Deleted by hand.
          self._create()
        else:
          self._taken_by = holder or Holder("unknown", 0, "an unknown time")
          return


@contextlib.contextmanager
def held(
  folder: pathlib.Path, say: Callable[[str], None], stop: Stop, use: Use = TRAINING
) -> Iterator[RunLock]:
  """Raises if another run uses the folder; the main process holds it for all of this run."""
  lock, refusal = RunLock(folder, say, use), None
  stop.clean_up.append(lock.release)
  if processes.is_main():
    try:
      lock.acquire()
    except UserError as error:
      refusal = str(error)
  if refusal := processes.gather_objects(refusal)[0]:
    raise UserError(refusal)
  try:
    yield lock
  finally:
    lock.release()


@contextlib.contextmanager
def _guard(folder: pathlib.Path) -> Iterator[bool]:
  """Whether no other process is in here, as far as the disk has such locks."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    alone = True
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      alone = False
    except OSError:  # Not on this disk: SETTLE_SECONDS has to do.
      pass
    yield alone
  finally:
    os.close(descriptor)


def _in_use(folder: pathlib.Path, holder: Holder | None, use: Use) -> str:
  other = f"give this {use.what} another {use.flag}"
  if holder is None:
    return f"{folder} is in use by another {use.what}: {other}."
  return (
    f"{folder} is in use by another {use.what} on host {holder.host}, process {holder.pid}, which"
    f" started at {holder.started}: stop that one first (kill {holder.pid}), or {other}."
  )


def _read(path: pathlib.Path) -> tuple[Holder | None, tuple[bytes, int] | None]:
  """(who holds the lock, if the file is whole; what changes with each beat); both None: nobody."""
  try:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # Opening it makes NFS look again.
  except FileNotFoundError:
    return None, None
  with open(descriptor, "rb") as file:
    mark = file.read(1 << 16), os.fstat(descriptor).st_mtime_ns
  try:
    return typed_json.decode(mark[0], Holder, path), mark
  except UserError:
    return None, mark


def _this_process() -> Holder:
  machine = socket.gethostname()
  with contextlib.suppress(OSError):
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
  pid, started = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S %Z")
  token = secrets.token_hex(8)
  return Holder(socket.gethostname(), pid, started, machine, _started(pid) or 0, token)


def _started(pid: int) -> int | None:
  """When a process of this machine started, in clock ticks; 0 if unknown, None if it is dead."""
  try:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
  except (OSError, ValueError, IndexError):
    pass
  try:
    os.kill(pid, 0)
  except (ProcessLookupError, OverflowError, ValueError):
    return None
  except OSError:
    return 0
  return 0
