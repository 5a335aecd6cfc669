"""What happened to a process that reads data (input.num_workers)?"""

import re
import signal

from pgjax.errors import UserError


class WorkerError(UserError):
  """A process that reads data was ended from outside."""


def explained(error: Exception) -> Exception:
  """A WorkerError for Grain's error about a data worker that ended; any other error unchanged."""
  ended = re.search(r"Worker process was terminated .*exit code (-?\d+)", str(error))
  if ended is None:
    return error
  code = int(ended[1])
  how = f"ended with exit code {code}"
  if code < 0:
    how = f"was ended by {signal.Signals(-code).name}"
  if code == -signal.SIGKILL:
    how += ", as the system does when memory runs out"
  return WorkerError(
    f"A data worker (one of the processes of input.num_workers) {how}. Lower input.num_workers or"
    " input.cache_mb, or set input.num_workers=0 to read with threads, and start again."
  )
