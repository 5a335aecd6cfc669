"""What does a signal do to a command? It saves where there is something to save, and stops.

`kill`, Ctrl-C, a closed terminal and schedulers send one of NAMES. A command that one of them
stopped exits with status STOPPED: run it again. Before there is anything to save, it exits at once,
even if the main thread is inside a compilation: `Stop.install` starts a thread for that. Every
command calls `begin` before its imports, so this module imports little.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from pgjax.distributed import console, launchers

STOPPED = 75  # EX_TEMPFAIL of sysexits.h.
AT_ONCE = 130  # As shells report Ctrl-C.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
IMPATIENT = ("SIGTERM", "SIGINT")  # A second one ends a run at once.
REPEAT_SECONDS = 1.0  # A closed terminal, or a scheduler, sends several signals at a time.
PARENT_SECONDS = 1.0  # How often a worker looks whether its run is alive.
GRACE_SECONDS = 10.0  # The main thread has this long to react to the second signal.

_installed: "list[Stop]" = []  # At most one: signals belong to the process.


def begin(last_words: str = "Stopped by {}.") -> None:
  """What a command does first: signals and closed outputs end it without a trace.

  last_words: printed when a signal ends the command; {} is the signal's name.
  """
  if not _installed:
    console.outlive_readers()
    Stop().install(last_words)


class Stop:
  """Whether a signal asked this command to end; as a context, signals in it are only noted."""

  def __init__(self):
    """Changes no handler."""
    self.signal: int | None = None
    self.last_words = "Stopped by {}."  # While there is nothing to save.
    self.clean_up: list[Callable[[], None]] = []  # Called before an exit from outside the context.
    self.tell_others: list[Callable[[int, str], None]] = []  # Called with status and last words.
    self._came = 0.0
    self._taken = self._noting = self._leaving = False
    self._lock = threading.Lock()
    self._before: dict[int, object] = {}

  def install(self, last_words: str) -> None:
    """For a process that is this command: from here on, a signal prints `last_words` and exits."""
    if _installed:
      return
    self.last_words = last_words
    _installed.append(self)
    receiver, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    threading.Thread(target=self._watch, args=(receiver,), daemon=True).start()
    atexit.register(self._wait_while_leaving)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    self.take_signals()  # Last: a signal that is only noted would be lost.

  def retake_signals(self) -> None:
    """Sets the handlers again where a library has replaced those of `install`."""
    if self in _installed:
      self.take_signals()

  def take_signals(self) -> None:
    """Sets the handlers, which Python allows only in the main thread."""
    if threading.current_thread() is threading.main_thread():
      for number in _numbers():
        self._before.setdefault(number, signal.getsignal(number))
        signal.signal(number, self._take)

  def __enter__(self) -> "Stop":
    with self._lock:
      self._noting = True
    self.take_signals()
    return self

  def __exit__(self, *_):
    """Restores the previous handlers, unless the process is this command."""
    if self not in _installed:
      for number, handler in self._before.items():
        signal.signal(number, handler)
      self._before.clear()

  def _take(self, number, frame):
    """The handler, in the main thread."""
    again, self._taken = self._taken, True
    self._note(number)
    if again and self._is_repeated(number):
      raise KeyboardInterrupt

  def _note(self, number: int) -> None:
    if self.signal is None:
      self.signal, self._came = number, time.monotonic()

  def _is_repeated(self, number: int) -> bool:
    later = time.monotonic() - self._came > REPEAT_SECONDS
    return later and signal.Signals(number).name in IMPATIENT

  def _watch(self, receiver: int) -> None:
    """Gets the number of each signal, even while the main thread is busy in a library."""
    while received := os.read(receiver, 1):
      number = received[0]
      if number in _numbers():
        with self._lock:
          if not self._noting:
            self._leave(number)
        self._note(number)
        if self._is_repeated(number):
          threading.Timer(GRACE_SECONDS, os._exit, (AT_ONCE,)).start()

  def _leave(self, number: int) -> None:
    text = self.last_words.replace("{}", signal.Signals(number).name)
    for tell in self.tell_others:
      tell(STOPPED, text)
    self.end(text if launchers.is_first() else "", STOPPED)

  def end(self, text: str, status: int, clean_seconds: float | None = None) -> None:
    """Prints a line, cleans up and exits, from a thread; the main thread may be stuck anywhere."""
    self._leaving = True
    if text:
      with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))
    with contextlib.suppress(OSError):  # The main thread goes on, and may fail over the clean-up.
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, 1)
      os.dup2(null, 2)
    cleaning = threading.Thread(target=self._clean, daemon=True)
    cleaning.start()
    cleaning.join(clean_seconds)
    os._exit(status)

  def _clean(self) -> None:
    workers = sys.modules.get("multiprocessing")
    children = workers.active_children() if workers else ()
    for clean_up in [*(child.kill for child in children), *self.clean_up]:
      with contextlib.suppress(Exception):
        clean_up()

  def _wait_while_leaving(self) -> None:
    """And it must not end the process before the clean-up is done."""
    if self._leaving:
      threading.Event().wait()


def of_process() -> Stop:
  """The Stop that `install` gave to this process, or one that reacts in its context only."""
  return _installed[0] if _installed else Stop()


@contextlib.contextmanager
def on_stop(clean_up: Callable[[], None], last_words: str = "") -> Iterator[None]:
  """In this context, a signal that ends the command calls `clean_up` and prints `last_words`."""
  stop = of_process()
  before, stop.last_words = stop.last_words, last_words or stop.last_words
  stop.clean_up.append(clean_up)
  try:
    yield
  finally:
    stop.clean_up.remove(clean_up)
    stop.last_words = before


def _numbers() -> list[int]:
  """The signals of NAMES, without SIGHUP under nohup, which ignores it."""
  numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
  hang_up = getattr(signal, "SIGHUP", None)
  return [n for n in numbers if n != hang_up or signal.getsignal(n) is not signal.SIG_IGN]


def ignore_in_worker(*_) -> None:
  """In a process of the data pipeline: its run stops it, and Ctrl-C goes to both."""
  for number in _numbers():
    if signal.Signals(number).name != "SIGTERM":
      signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
  """A run that is killed cannot stop its workers, which would wait for ever."""
  while os.getppid() == parent:
    time.sleep(PARENT_SECONDS)
  os._exit(AT_ONCE)
