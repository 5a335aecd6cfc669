"""How do batches reach the devices before a step needs them? A thread prefetches them."""

import atexit
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable

import jax

from pgjax.data import pipeline, workers
from pgjax.distributed import mesh as mesh_lib
from pgjax.formats import input_files

log = logging.getLogger("pgjax")

PREFETCH_DEPTH = 2  # Prefetched batches on the device, in addition to the one in use.
SLOW_SECONDS = 60.0  # Until the log reports that a batch does not come.
_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 3.0


class DeviceFeed:
  """Prefetched batches on the device; `wait_seconds` is the total time spent waiting for them.

  `interrupted` is asked while a batch is not ready: once it returns True, the feed ends like one
  without further batches, and `was_interrupted` is True.
  """

  def __init__(self, batches: Iterable, mesh: jax.sharding.Mesh):
    self.wait_seconds = 0.0
    self.interrupted: Callable[[], bool] = lambda: False
    self.was_interrupted = False
    self._error = None
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
    while True:
      with contextlib.suppress(queue.Empty):
        return self._ready.get(timeout=_POLL_SECONDS)
      if self.interrupted():
        self.was_interrupted = True
        return None, StopIteration()
      if time.perf_counter() > slow:
        log.warning("No batch for %d s: the data is read slowly, or not at all.", SLOW_SECONDS)
        slow = float("inf")

  def close(self):
    """Stops the thread and drops the prefetched batches."""
    self._stopped.set()
    self._thread.join(_CLOSE_SECONDS)
    if self._thread.is_alive():  # It waits for a file that does not come.
      input_files.give_up()
      self._thread.join(_CLOSE_SECONDS)
    atexit.unregister(self.close)

  def _fill(self, batches, mesh):
    try:
      for batch in batches:
        if isinstance(batch, pipeline.EvalBatch):
          ready = batch._replace(arrays=mesh_lib.global_batch(batch.arrays, mesh))
        else:
          ready = mesh_lib.global_batch(batch, mesh)
        if not self._offer((ready, None)):
          return
      self._offer((None, StopIteration()))
    except Exception as error:  # Any error must reach the loop that waits for a batch.
      self._offer((None, workers.explained(error)))

  def _offer(self, item) -> bool:
    while not self._stopped.is_set():
      with contextlib.suppress(queue.Full):
        self._ready.put(item, timeout=0.1)
        return True
    return False


def to_device(batches: Iterable, mesh: jax.sharding.Mesh) -> DeviceFeed:
  """Prefetches the batches of TrainBatches or EvalBatches, and of the latter only the arrays."""
  return DeviceFeed(batches, mesh)
