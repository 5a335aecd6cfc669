"""How do batches reach the devices before a step needs them? A thread prefetches them."""

import atexit
import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable

import jax

from pgjax.data import loader, pipeline, workers
from pgjax.distributed import mesh as mesh_lib, peers
from pgjax.errors import UserError
from pgjax.formats import input_files

log = logging.getLogger("pgjax")

PREFETCH_DEPTH = 2  # Prefetched batches on the device, in addition to the one in use.
SLOW_SECONDS = workers.SLOW_SECONDS  # Until the log reports that a batch does not come.
PATIENCE_SECONDS = 1.0  # Several processes agree on a step to stop after, if they get that far.
_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 3.0
_numbers = itertools.count()  # Of the feeds, which all processes open in the same order.


class DeviceFeed:
  """Prefetched batches on the device; `wait_seconds` is the total time spent waiting for them.

  `interrupted` is asked while a batch is not ready: once it returns True, the feed ends like one
  without further batches, and `was_interrupted` is True. Several processes hand out a batch when
  all of them have it: an error in one of them is raised in all, for the same batch, and if one is
  interrupted for PATIENCE_SECONDS without a batch, the feed ends in all of them after the same one.
  """

  def __init__(self, batches: Iterable, mesh: jax.sharding.Mesh):
    self.wait_seconds = 0.0
    self.interrupted: Callable[[], bool] = lambda: False
    self.was_interrupted = False
    self._error = None
    self._group, self._number, self._handed_out = peers.group(), next(_numbers), 0
    self._ready = queue.Queue(maxsize=PREFETCH_DEPTH)
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._fill, args=(batches, mesh), daemon=True)
    self._thread.start()
    atexit.register(self.close)  # A thread that touches a device must not outlive the interpreter.

  def __iter__(self):
    return self

  def __next__(self):
    started = time.perf_counter()
    batch, self._error = self._wait(started) if self._error is None else (None, self._error)
    self.wait_seconds += time.perf_counter() - started
    if self._error is not None:
      self.close()
      raise self._error
    return batch

  def _wait(self, started: float):
    """(batch, None), or (None, the error that ends the feed); signals are handled meanwhile."""
    slow = started + SLOW_SECONDS
    item = None
    while True:
      with contextlib.suppress(queue.Empty):
        item = item or self._ready.get(timeout=_POLL_SECONDS)
      try:
        if item and self._all_have_it(item[1]):
          self._handed_out += 1
          return item
        if item is None and self._group:
          self._others_have_it(0.0)
      except peers.PeerError as error:
        return None, error
      except peers.StoppedError:
        self.was_interrupted = True
        return None, StopIteration()
      if self.interrupted():
        if self._group is None:
          self.was_interrupted = True
          return None, StopIteration()
        if time.perf_counter() > started + PATIENCE_SECONDS:
          self._group.batches.stop(self._number)
      if time.perf_counter() > slow:
        log.warning("No batch for %d s: %s", SLOW_SECONDS, self._cause(item))
        slow = float("inf")

  def _cause(self, item) -> str:
    if item:
      return "another process has none, and reports why."
    slowest = loader.slowest()
    if slowest is None:
      return "the data is read slowly, or not at all."
    return workers.being_read(*slowest)

  def _all_have_it(self, error: Exception | None) -> bool:
    """Whether the other processes have the next batch, too; raises PeerError."""
    if self._group is None or (error and not isinstance(error, UserError)):
      return True
    return self._others_have_it(_POLL_SECONDS)

  def _others_have_it(self, seconds: float) -> bool:
    where = self._number, self._handed_out
    return self._group.batches.wait(*where, seconds, self._group.name)

  def close(self):
    """Stops the thread and drops the prefetched batches."""
    self._stopped.set()
    self._thread.join(_CLOSE_SECONDS)
    if self._thread.is_alive():  # It waits for a file that does not come, or a worker does.
      input_files.give_up()
      workers.kill()
      self._thread.join(_CLOSE_SECONDS)
    atexit.unregister(self.close)

  def _fill(self, batches, mesh):
    made = 0
    try:
      for batch in batches:
        if isinstance(batch, pipeline.EvalBatch):
          ready = batch._replace(arrays=mesh_lib.global_batch(batch.arrays, mesh))
        else:
          ready = mesh_lib.global_batch(batch, mesh)
        if self._group:
          self._group.batches.ready(self._number, made)
        made += 1
        if not self._offer((ready, None)):
          return
      self._offer((None, StopIteration()))
    except Exception as error:  # Any error must reach the loop that waits for a batch.
      error = workers.explained(error)
      if self._group and isinstance(error, UserError) and not self._stopped.is_set():
        self._group.batches.broken(self._number, made, str(error))
        error.in_all_processes = True
      self._offer((None, error))

  def _offer(self, item) -> bool:
    while not self._stopped.is_set():
      with contextlib.suppress(queue.Full):
        self._ready.put(item, timeout=0.1)
        return True
    return False


def to_device(batches: Iterable, mesh: jax.sharding.Mesh) -> DeviceFeed:
  """Prefetches the batches of TrainBatches or EvalBatches, and of the latter only the arrays."""
  return DeviceFeed(batches, mesh)
