"""Does a run on another machine use this folder of an object store? An object in it says so.

It is written anew every BEAT_SECONDS; a run whose object does not change for SILENT_SECONDS is
dead. run_lock.py does the same for runs that share a disk.
"""

import contextlib
import os
import socket
import threading
import time

import msgspec

from pgjax.errors import UserError
from pgjax.formats import buckets, typed_json

FILE = "in-use.json"
BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
POLL_SECONDS = 2.0
SETTLE_SECONDS = 2.0  # Two that take over from a dead run see each other within this time.


class _User(msgspec.Struct):
  host: str
  pid: int
  started: str
  token: str  # Of its local copy.
  beat: int = 0


class TakenError(UserError):
  """Another run has taken the folder over, because this one was silent for too long."""


class BucketLock:
  """Held by a run from `acquire` to `release`."""

  def __init__(self, bucket: buckets.Bucket, flag: str, token: str):
    """token: of the local copy, which only one process uses at a time."""
    self._bucket, self._flag = bucket, flag
    started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    self._mine = _User(socket.gethostname(), os.getpid(), started, token)
    self._done = threading.Event()
    self.taken_by: str | None = None  # A sentence, if another run has taken over.

  def acquire(self) -> None:
    """Raises a UserError if a run elsewhere is alive, and OSError."""
    if not self._bucket.create(FILE, self._encoded()):
      self._take_over()
    threading.Thread(target=self._beat, daemon=True).start()

  def check(self) -> None:
    """Raises TakenError, before something is written, and OSError."""
    if self.taken_by is None and (other := self._read()) and not self._is_mine(other):
      self.taken_by = f"{self._bucket.url} has been taken over by {_described(other)}"
    if self.taken_by:
      raise TakenError(f"Nothing more is uploaded: {self.taken_by}")

  def leave(self) -> None:
    """Without a word to the store; another machine waits for SILENT_SECONDS then."""
    self._done.set()

  def release(self) -> None:
    """Another run may start at once."""
    self._done.set()
    with contextlib.suppress(OSError):
      if self.taken_by is None and self._is_mine(self._read()):
        self._bucket.delete([FILE])

  def _take_over(self) -> None:
    other, deadline = self._read(), time.monotonic() + SILENT_SECONDS
    while other and not self._is_mine(other):
      if time.monotonic() > deadline:
        break
      time.sleep(POLL_SECONDS)
      if (later := self._read()) and later != other:
        raise UserError(f"{self._flag}={self._bucket.url} is in use by {_described(later)}")
      other = later
    self._bucket.write(FILE, self._encoded())
    if other:
      time.sleep(SETTLE_SECONDS)
      if (last := self._read()) and not self._is_mine(last):
        raise UserError(f"{self._flag}={self._bucket.url} is in use by {_described(last)}")

  def _beat(self) -> None:
    while not self._done.wait(BEAT_SECONDS) and self.taken_by is None:
      with contextlib.suppress(OSError, TakenError):
        self.check()
        self._mine.beat += 1
        if not self._done.is_set():
          self._bucket.write(FILE, self._encoded())

  def _is_mine(self, user: _User | None) -> bool:
    """Of this copy: an earlier run of it is dead, as this process holds the copy's own lock."""
    return user is not None and user.token == self._mine.token

  def _encoded(self) -> bytes:
    return msgspec.json.encode(self._mine)

  def _read(self) -> _User | None:
    data = self._bucket.read(FILE)
    if data is None:
      return None
    with contextlib.suppress(UserError):
      return typed_json.decode(data, _User, FILE)
    return _User("unknown", 0, "an unknown time", "", hash(data))


def _described(user: _User) -> str:
  return (
    f"another run on host {user.host}, process {user.pid}, which started at {user.started}: stop"
    " that one first, or name another folder."
  )
