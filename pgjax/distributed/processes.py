"""Which processes take part, and which one is this? The only module that uses jax.distributed."""

import json
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pgjax.distributed import signals
from pgjax.errors import UserError

_ENVIRONMENT = ("PGJAX_COORDINATOR", "PGJAX_NUM_PROCESSES", "PGJAX_PROCESS_ID")
AGREE_STEPS = 10  # How often several processes agree on whether to stop.


def join() -> None:
  """Joins the processes that the environment names, if any."""
  given = [name for name in _ENVIRONMENT if os.environ.get(name)]
  if given and len(given) < len(_ENVIRONMENT):
    missing = ", ".join(sorted(set(_ENVIRONMENT) - set(given)))
    raise UserError(f"{given[0]} is set, but not {missing}; set all three of them, or none.")
  if given and not jax.distributed.is_initialized():
    coordinator, count, index = (os.environ[name] for name in _ENVIRONMENT)
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
      raise UserError(
        f"PGJAX_NUM_PROCESSES={count} and PGJAX_PROCESS_ID={index} must be whole numbers, "
        "the second smaller than the first."
      )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, int(count), int(index))
    signals.of_process().retake_signals()  # JAX has set a handler of its own.


def process_index() -> int:
  """The number of this process, from 0."""
  return jax.process_index()


def process_count() -> int:
  """The number of processes."""
  return jax.process_count()


def is_main() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def gather_objects(value: Any) -> list[Any]:
  """Every process's JSON-serialisable `value`, on every process, in process order."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.array([len(data)]))).ravel()
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(data)] = data
  gathered = np.asarray(multihost_utils.process_allgather(padded))
  return [json.loads(row[:n].tobytes()) for row, n in zip(gathered, sizes, strict=True)]


class Agreement:
  """Whether a signal to any of the processes asked the command to stop."""

  def __init__(self, stop: signals.Stop):
    """stop: of this process."""
    self._stop, self._agreed = stop, False

  def __call__(self, step: int = 0) -> bool:
    """The same answer on all processes; all of them must call it at the same steps."""
    if jax.process_count() == 1:
      return self._stop.signal is not None
    if not self._agreed and step % AGREE_STEPS == 0:
      self._agreed = any(gather_objects(self._stop.signal is not None))
    return self._agreed
