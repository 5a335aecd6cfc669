"""Two hosts on one machine: network namespaces with addresses of their own, joined by a cable."""

import contextlib
import os
import subprocess

ADDRESSES = ("10.77.13.1", "10.77.13.2")


@contextlib.contextmanager
def hosts():
  """The names of both; needs root and Debian's package iproute2."""
  names = [f"pgjax-{os.getpid()}-{i}" for i in range(2)]
  try:
    for name in names:
      ip("netns", "add", name)
    ends = ["type", "veth", "peer", "name", "cable", "netns", names[1]]
    ip("-n", names[0], "link", "add", "cable", *ends)
    for name, address in zip(names, ADDRESSES, strict=True):
      ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
      ip("-n", name, "link", "set", "cable", "up")
      ip("-n", name, "link", "set", "lo", "up")
    yield names
  finally:
    for name in names:
      subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def cable(name, state):
  """Cuts it ("down") or mends it ("up"), at the host of this name."""
  ip("-n", name, "link", "set", "cable", state)


def inside(name):
  """The beginning of a command that runs on this host."""
  return ("ip", "netns", "exec", name)


def ip(*arguments):
  """Calls it; raises if that fails."""
  subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
