"""The processes that read data (input.num_workers): how they begin, end, and report what happened.

They get no signal but SIGKILL: the run ends them. One that waits for a file names it in the log.
"""

import logging
import multiprocessing
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker, util
from typing import Any

from pgjax.data import loader
from pgjax.distributed import signals
from pgjax.errors import UserError

SLOW_SECONDS = 60.0  # Until the log names an example that has been read for this long.
_CLOSE_SECONDS = 5.0  # For a process to finish its batch.

log = logging.getLogger("pgjax")


class WorkerError(UserError):
  """A process that reads data was ended from outside."""


class Stream:
  """Iterates over the batches of such processes, which start with the first one."""

  def __init__(self, dataset: Any):
    """dataset: an IterDataset of Grain that prefetches with processes."""
    _start_tracker()
    self._batches = iter(dataset)
    # At exit, after Grain's own: they ignore SIGTERM, and Python would wait for them.
    util.Finalize(None, kill, exitpriority=0)

  def __iter__(self) -> Iterator:
    return self

  def __next__(self) -> Any:
    with signals.withheld_from_children():
      return next(self._batches)

  def close(self) -> None:
    """Ends the processes, with SIGKILL after a few seconds: they may wait for a file for ever."""
    timer = threading.Timer(_CLOSE_SECONDS, kill)
    timer.daemon = True
    timer.start()
    self._batches.close()
    timer.cancel()


def _start_tracker() -> None:
  """The process of Python that removes what killed processes leave; it need not warn of it."""
  sys.warnoptions.append("ignore:resource_tracker:UserWarning")
  try:
    with signals.withheld_from_children():
      resource_tracker.ensure_running()
  finally:
    sys.warnoptions.pop()


def kill() -> None:
  """Ends all of them at once."""
  for child in multiprocessing.active_children():
    if child.name.startswith("grain-process"):
      child.kill()


def begin(*_: Any) -> None:
  """The first thing that such a process does."""
  signals.ignore_in_worker()
  threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
  reported = ""
  while True:
    time.sleep(1.0)
    reported = report_slow(reported)


def report_slow(reported: str) -> str:
  """Names the example that is read for longest, unless it was reported; returns its place."""
  seconds, where = loader.slowest() or (0.0, "")
  if seconds > SLOW_SECONDS and where != reported:
    log.warning("%s", being_read(seconds, where))
    return where
  return reported


def being_read(seconds: float, where: str) -> str:
  """A sentence about an example that does not come."""
  return (
    f"{where} has been read for {seconds:.0f} s; is its disk or network share reachable? The run"
    " waits for it."
  )


def explained(error: Exception) -> Exception:
  """A WorkerError for Grain's error about a data worker that ended; any other error unchanged."""
  ended = re.search(r"Worker process was terminated .*exit code (-?\d+)", str(error))
  if ended is None:
    return error
  code = int(ended[1])
  how = f"ended with exit code {code}"
  if code < 0:
    how = f"was ended by {signal.Signals(-code).name}"
  if code == -signal.SIGKILL:
    how += ", as the system does when memory runs out"
  return WorkerError(
    f"A data worker (one of the processes of input.num_workers) {how}. Lower input.num_workers or"
    " input.cache_mb, or set input.num_workers=0 to read with threads, and start again."
  )
