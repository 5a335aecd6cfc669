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
PARENT_SECONDS = 1.0  # How often a process looks whether the one that started it is alive.
CLEAN_SECONDS = 20.0  # For files that must not stay, of a disk that answers.
GRACE_SECONDS = 10.0  # The main thread has this long to react to the second signal.

_installed: "list[Stop]" = []  # At most one: signals belong to the process.
_parent = os.getppid()


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
    self.is_reported = False  # That a second signal ended the command.
    self._came = 0.0
    self._taken = self._noting = self._leaving = self._finished = False
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
    atexit.register(_ignore_signals)  # Python removes its handlers before it has ended.
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

  def finish(self) -> None:
    """The command has done its work, or says why not: no signal interrupts its last words."""
    with self._lock:
      self._noting = self._finished = True

  def _take(self, number, frame):
    """The handler, in the main thread."""
    again, self._taken = self._taken, True
    self._note(number)
    if again and self._is_repeated(number) and not self._finished:
      self._finished = True
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
          timer = threading.Timer(GRACE_SECONDS, self._give_up)
          timer.daemon = True
          timer.start()

  def _give_up(self) -> None:
    """The main thread does not react to the second signal: a library has it."""
    self._tell_and_end("" if self.is_reported else "error: interrupted.", AT_ONCE)

  def _leave(self, number: int) -> None:
    self._tell_and_end(self.last_words.replace("{}", signal.Signals(number).name), STOPPED)

  def _tell_and_end(self, text: str, status: int) -> None:
    for tell in self.tell_others:
      tell(status, text)
    self.end(text if launchers.is_first() else "", status, CLEAN_SECONDS)

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


def _ignore_signals() -> None:
  for number in _numbers():
    signal.signal(number, signal.SIG_IGN)


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


@contextlib.contextmanager
def withheld_from_children() -> Iterator[None]:
  """Processes and threads that are started in this context get no signals.

  Until `ignore_in_worker`: a process that imports has no handlers, and would end with a trace. The
  signals of this process reach its other threads meanwhile.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_in_worker(*_) -> None:
  """In a process of the data pipeline: its run ends it; Ctrl-C and Slurm's signals go to both."""
  _ignore_signals()
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _numbers())
  import multiprocessing  # Which such a process has imported; commands begin without it.

  parent = multiprocessing.parent_process()  # Not os.getppid(): it may have ended meanwhile.
  end_with(parent.pid if parent else os.getppid())


def end_with(parent: int) -> None:
  """Ends this process soon after its parent, which may be killed and would leave it waiting."""
  _after(parent, lambda: os._exit(AT_ONCE))


def stop_with_launcher() -> None:
  """Stops this process, as by SIGTERM, when the one that started it has ended.

  For launchers that do not do so themselves if they are killed.
  """
  _after(_parent, lambda: os.kill(os.getpid(), signal.SIGTERM))


def _after(parent: int, react: Callable[[], None]) -> None:
  def watch() -> None:
    while os.getppid() == parent:
      time.sleep(PARENT_SECONDS)
    react()

  threading.Thread(target=watch, daemon=True).start()
