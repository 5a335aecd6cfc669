"""How do batches reach the devices before a step needs them? A thread prefetches them."""

import atexit
import contextlib
import queue
import threading
import time
from collections.abc import Iterable

import jax

from pgjax.data import pipeline
from pgjax.distributed import mesh as mesh_lib

PREFETCH_DEPTH = 2  # Prefetched batches on the device, in addition to the one in use.


class DeviceFeed:
  """Prefetched batches on the device; `wait_seconds` is the total time spent waiting for them."""

  def __init__(self, batches: Iterable, mesh: jax.sharding.Mesh):
    self.wait_seconds = 0.0
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
    batch, self._error = self._ready.get() if self._error is None else (None, self._error)
    self.wait_seconds += time.perf_counter() - started
    if self._error is not None:
      self.close()
      raise self._error
    return batch

  def close(self):
    """Stops the thread and drops the prefetched batches."""
    self._stopped.set()
    self._thread.join()
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
