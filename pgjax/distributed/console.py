"""What if nobody reads what a command prints? It goes on, without a reader.

After `| head`, in a closed terminal or on a full disk every write fails, and Python's own flush at
exit does, too.
"""

import contextlib
import io
import os
import sys


class _Sink(io.RawIOBase):
  """A file descriptor whose errors are only noted."""

  def __init__(self, fd: int):
    """The descriptor stays open."""
    self._fd = fd
    self.error: OSError | None = None  # The first one.

  def writable(self) -> bool:
    """Always."""
    return True

  def fileno(self) -> int:
    """For libraries that ask for the size of a terminal."""
    return self._fd

  def isatty(self) -> bool:
    """Whether it is a terminal."""
    return os.isatty(self._fd)

  def write(self, data) -> int | None:
    """Bytes written; of a write that fails, all."""
    try:
      return os.write(self._fd, data)
    except BlockingIOError:
      return None
    except OSError as error:
      self.error = self.error or error
      return len(data)


def outlive_readers() -> None:
  """Replaces stdout and stderr of this process; only at its start, before anything is printed."""
  for fd in (0, 1, 2):  # Closed ones first: otherwise the next file opened would be stdout.
    try:
      os.fstat(fd)
    except OSError:
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
  for fd, name in ((1, "stdout"), (2, "stderr")):
    stream = getattr(sys, name)
    if stream is None or stream is getattr(sys, f"__{name}__"):
      with contextlib.suppress(OSError, ValueError, AttributeError):
        stream.flush()
      text = dict(encoding=getattr(stream, "encoding", "utf-8"), errors="backslashreplace")
      buffer = io.BufferedWriter(_Sink(fd))
      setattr(sys, name, io.TextIOWrapper(buffer, **text, line_buffering=True))


def stdout_error() -> OSError | None:
  """Why something that was printed to stdout is lost; None if all of it was written."""
  return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "error", None)
