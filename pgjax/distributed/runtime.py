"""How does this process outlive JAX's coordinator, and where do the others find process 0?

JAX's client aborts the process with a stack trace of C++ once the connection to the coordinator
breaks. Here it calls a function instead, and peers.py ends the process with a sentence.
"""

import contextlib
import ctypes
import functools
import socket
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from jax._src import distributed
from jax._src.lib import _jax, utils

from pgjax import errors
from pgjax.distributed import peers, signals

_KEY = "pgjax/peers"
_keep: list[Any] = []  # C++ has their addresses.


class _Meeting(msgspec.Struct):
  port: int
  token: str
  host: str


def heartbeat_seconds() -> int:
  """For jax.distributed: JAX's own heartbeats are the second line."""
  return int(max(100, 3 * peers.seconds()))


def watch(index: int, count: int) -> None:
  """Connects this process to process 0 and watches; after jax.distributed.initialize."""
  state = distributed.global_state
  made = peers.Group(index, count, peers.seconds(), end)
  if index == 0:
    meeting = _Meeting(made.listen(), made.token, socket.gethostname())
    state.client.key_value_set_bytes(_KEY, msgspec.json.encode(meeting))
  else:
    found = state.client.blocking_key_value_get_bytes(_KEY, int(1000 * peers.seconds()))
    meeting = msgspec.json.decode(found, type=_Meeting)
    address = state.coordinator_address.rpartition(":")[0].strip("[]")
    try:
      made.connect(address, meeting.port, meeting.token, meeting.host)
    except OSError as error:
      raise errors.UserError(
        f"Process {index} of {count} cannot reach port {meeting.port} of {address}, the host of"
        f" process 0 ({error.strerror or error}): hosts of a run must reach each other's ports."
      ) from error
  peers.set_group(made)
  made.start()


def end(text: str, status: int) -> None:
  """Ends this process with a sentence, an error unless it is about a stop; see peers.Group."""
  words = f"error: {text}" if text and status != signals.STOPPED else text
  signals.of_process().end(words, status, peers.CLEAN_SECONDS)


@contextlib.contextmanager
def outliving_coordinator() -> Iterator[None]:
  """Around jax.distributed.initialize: a lost coordinator does not abort this process at once."""
  make = _jax.get_distributed_runtime_client
  with contextlib.suppress(OSError, AttributeError):  # Without libstdc++: as JAX has it.
    _wait_in_terminate()
    _jax.get_distributed_runtime_client = functools.partial(
      make, missed_heartbeat_callback=_coordinator_lost
    )
  try:
    yield
  finally:
    _jax.get_distributed_runtime_client = make
  with contextlib.suppress(AttributeError):
    utils.absl_set_min_log_level(3)  # Its errors, which peers.py reports.


def _coordinator_lost(*status: Any) -> None:
  time.sleep(peers.seconds())  # peers.py knows more, and ends the process meanwhile.
  reason = errors.cut(" ".join(map(str, status)))
  end(f"JAX's coordinator does not answer: {reason}. {peers.AGAIN}", peers.LOST)


def _wait_in_terminate() -> None:
  """Some versions of jaxlib cannot pass the status to a callback, and C++ terminates over that."""
  set_terminate = getattr(ctypes.CDLL("libstdc++.so.6"), "_ZSt13set_terminatePFvvE")  # noqa: B009
  set_terminate.restype, set_terminate.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
  function, before = ctypes.CFUNCTYPE(None), []

  def wait() -> None:
    time.sleep(peers.seconds())
    function(before[0])()

  handler = function(wait)
  before.append(set_terminate(ctypes.cast(handler, ctypes.c_void_p)))
  _keep.append(handler)
