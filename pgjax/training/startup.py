"""What takes the time from a command to its first training step?"""

import os
import pathlib
import time


class Phases:
  """Seconds and seconds of CPU (of all threads) of each phase, from the start of the process."""

  def __init__(self):
    """The first phase is what the process did until here and does until `end`."""
    self._began = time.monotonic() - seconds_since_start()
    self._wall, self._cpu = 0.0, 0.0
    self._rows: dict[str, tuple[float, float]] = {}
    self._closed = False

  def end(self, name: str) -> None:
    """What was since the last phase belongs to this one; one that comes twice is added up."""
    if self._closed:  # A run goes on to wait for each of its evaluations.
      return
    wall, cpu = time.monotonic() - self._began, time.process_time()
    before = self._rows.get(name, (0.0, 0.0))
    self._rows[name] = before[0] + wall - self._wall, before[1] + cpu - self._cpu
    self._wall, self._cpu = wall, cpu

  def table(self) -> str:
    """A line each, which add up to the first one; later phases are not recorded."""
    self._closed = True
    width = max(map(len, self._rows))
    lines = [f"  {n:<{width}}{wall:>8.1f} s{cpu:>8.1f} s" for n, (wall, cpu) in self._rows.items()]
    head = (
      f"The first step was done {self._wall:.1f} s after the command, of CPU {self._cpu:.1f} s:"
    )
    return "\n".join([head, *lines])


def seconds_since_start() -> float:
  """Of this process, imports included, where Linux reports when it started."""
  try:
    ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
  except (OSError, ValueError, IndexError):
    return time.process_time()
  return uptime - ticks / os.sysconf("SC_CLK_TCK")
