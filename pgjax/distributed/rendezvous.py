"""Do the processes that were started together find each other? If not, one sentence says why.

JAX's runtime ends the process with a stack trace of C++ where one fails, so this comes before it.
"""

import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Iterator

from pgjax.distributed.launchers import Launch
from pgjax.errors import UserError


def seconds() -> int:
  """How long a process waits for the others: PGJAX_JOIN_SECONDS, or 300."""
  text = os.environ.get("PGJAX_JOIN_SECONDS") or "300"
  if not text.isdecimal() or int(text) < 1:
    raise UserError(f"PGJAX_JOIN_SECONDS={text} must be a whole number of seconds from 1.")
  return int(text)


def check_port(launch: Launch) -> None:
  """Raises in process 0 if another program listens on the coordinator's port of this host."""
  if launch.index:
    return
  with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # One in TIME_WAIT is free.
    try:
      probe.bind(("", launch.port))
    except OSError as error:
      raise UserError(
        f"Port {launch.port} of this host, where the {launch.count} processes are to meet, cannot"
        f" be used ({error.strerror}); give every process another one, in PGJAX_COORDINATOR or,"
        " under a scheduler, in JAX_COORDINATOR_PORT."
      ) from error


@contextlib.contextmanager
def limit(launch: Launch) -> Iterator[None]:
  """In this context the others have `seconds` to come; after that, this one exits with status 1."""
  timer = threading.Timer(seconds(), _give_up, (launch,))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _give_up(launch: Launch) -> None:
  text = (
    f"error: Process {launch.index} of {launch.count} ({launch.launcher}) waited {seconds()} s at"
    f" the start: {_reason(launch)}. docs/cluster.md lists what to check.\n"
  )
  with contextlib.suppress(OSError):
    os.write(2, text.encode(errors="replace"))
  os._exit(1)


def _reason(launch: Launch) -> str:
  missing = f"not all {launch.count} processes came"
  if launch.index == 0 or not launch.coordinator:
    return missing
  host, _, port = launch.coordinator.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
  except socket.gaierror:
    return f"this host does not know the name {host} of the coordinator"
  except OSError as error:
    return f"the coordinator {launch.coordinator} cannot be reached ({error.strerror or error})"
  return missing


def own_address(coordinator: str) -> str:
  """The address of this host towards the coordinator; "" if that is a loopback one."""
  host, _, port = coordinator.rpartition(":")
  [(family, *_, address), *_] = socket.getaddrinfo(
    host.strip("[]"), int(port), type=socket.SOCK_DGRAM
  )
  with socket.socket(family, socket.SOCK_DGRAM) as probe:
    probe.connect(address)  # Sends nothing.
    own = probe.getsockname()[0]
  return "" if ipaddress.ip_address(own.partition("%")[0]).is_loopback else own


def is_reachable_by_name() -> bool:
  """Whether this host's name means an address of it that others reach."""
  try:
    resolved = socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)
  except OSError:
    return False
  for family, *_, address in resolved:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
      try:
        probe.bind(address)
      except OSError:
        continue
    return not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback
  return False
