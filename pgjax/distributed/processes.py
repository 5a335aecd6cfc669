"""Which processes take part, and which one is this? The only module that uses jax.distributed."""

import contextlib
import functools
import json
import logging
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pgjax.distributed import launchers, rendezvous, signals

AGREE_STEPS = 10  # How often several processes agree on whether to stop.

log = logging.getLogger("pgjax")
_logged: set[str] = set()  # A command may join more than once.


def join() -> None:
  """Joins the processes of the launcher that the environment names, if any (launchers.py)."""
  if jax.distributed.is_initialized():
    return
  launch = launchers.detect()
  for level, text in launch.report():
    if text not in _logged:
      _logged.add(text)
      log.log(level, text)
  if launch.count == 1:
    return
  from pgjax.distributed import runtime  # Private parts of JAX, of which one process needs none.

  rendezvous.check_port(launch)
  os.environ["JAX_COORDINATOR_PORT"] = str(launch.port)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  with rendezvous.limit(launch), runtime.outliving_coordinator():
    jax.distributed.initialize(
      launch.coordinator,
      launch.count,
      launch.index,
      None if launch.devices is None else list(launch.devices),
      launch.method,
      initialization_timeout=rendezvous.seconds() + 60,
      heartbeat_timeout_seconds=runtime.heartbeat_seconds(),
    )
    runtime.watch(launch.index, launch.count)
  if launch.launcher in launchers.OUTLIVED:
    signals.stop_with_launcher()
  _use_reachable_address()
  signals.of_process().retake_signals()  # JAX has set a handler of its own.


def _use_reachable_address() -> None:
  """Of processes on CPUs, where this host's own name means a loopback address, as on Debian.

  JAX has no option for it: Gloo takes what the name resolves to.
  """
  with contextlib.suppress(ImportError, AttributeError, OSError):
    from jax._src import distributed
    from jax._src.lib import _jax

    own = rendezvous.own_address(distributed.global_state.coordinator_address)
    if own and not rendezvous.is_reachable_by_name():
      make = _jax.make_gloo_tcp_collectives
      _jax.make_gloo_tcp_collectives = functools.partial(make, hostname=own)


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

  def here(self) -> bool:
    """Whether a signal came to this process; the others may not know of it."""
    return self._stop.signal is not None

  def __call__(self, step: int = 0) -> bool:
    """The same answer on all processes; all of them must call it at the same steps."""
    if jax.process_count() == 1:
      return self.here()
    if not self._agreed and step % AGREE_STEPS == 0:
      self._agreed = any(gather_objects(self.here()))
    return self._agreed
