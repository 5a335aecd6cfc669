"""The curves of a run as a file for TensorBoard."""

import contextlib
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

FLUSH_SECONDS = 30.0  # How old the rows of the file may be.


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
  """tensorboardX imports torch where that is installed, which takes seconds; scalars need none."""
  if "torch" in sys.modules:
    yield
    return
  sys.modules["torch"] = None  # An import is an ImportError.
  try:
    yield
  finally:
    del sys.modules["torch"]


with _without_torch():
  from tensorboardX import event_file_writer, summary
  from tensorboardX.proto import event_pb2


class Board:
  """Scalars for TensorBoard, written by the caller.

  tensorboardX's own writer has a thread behind a queue: after an error of the disk nobody empties
  it, and the next write waits for ever.
  """

  def __init__(self, folder: pathlib.Path, *, purge_step: int | None = None):
    """Makes a file of its own in the folder; TensorBoard drops earlier rows from purge_step on."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f".{os.getpid()}.{time.time_ns()}"
    self._flushed = -math.inf
    self._events = event_file_writer.EventsWriter(str(folder / "events"), suffix)
    if purge_step is not None:
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(step=purge_step, file_version="brain.Event:2")
      self._write(step=purge_step, session_log=start)

  def add(self, scalars: Mapping[str, float], step: int) -> None:
    """One value of each name."""
    for name, value in scalars.items():
      self._write(step=step, summary=summary.scalar(name, value))

  def flush(self) -> None:
    """Now and then: it waits for the disk."""
    if time.monotonic() - self._flushed >= FLUSH_SECONDS:
      self._events.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes the file."""
    self._events.close()

  def _write(self, **fields: Any) -> None:
    self._events.write_event(event_pb2.Event(wall_time=time.time(), **fields))
