"""Batches on the devices before the step asks for them."""

import atexit
import queue
import threading
import time
from collections.abc import Iterable

import jax

from pgjax.data import pipeline
from pgjax.distributed import mesh as mesh_lib

PREFETCH_DEPTH = 2  # Batches that wait on the device beside the one in use.


class DeviceFeed:
  """Batches on the device, put there by a thread before they are asked for.

  Attributes:
    wait_seconds: how long `next` has waited for a batch, all in all.
  """

  def __init__(self, batches: Iterable, mesh: jax.sharding.Mesh):
    """Starts the thread."""
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
    """Stops the thread; what was prepared is dropped."""
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
    except Exception as error:  # Whatever it is, the loop that waits for a batch must get it.
      self._offer((None, error))

  def _offer(self, item) -> bool:
    while not self._stopped.is_set():
      try:
        self._ready.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False


def to_device(batches: Iterable, mesh: jax.sharding.Mesh) -> DeviceFeed:
  """Host batches of this process -> global arrays, in the same order, ahead of their use.

  Takes TrainBatches or EvalBatches; of the latter only `arrays` go to the device.
  """
  return DeviceFeed(batches, mesh)
