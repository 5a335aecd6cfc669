"""Which batches do all processes of a run have? None is handed out that one of them cannot make.

Each process counts the batches that it has of each feed, process 0 announces those that all have. A
broken example in one of them, or a signal while one waits for its data, ends the feed in all of
them after the same batch. peers.py has the connections.
"""

import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from pgjax.errors import UserError

_TEXT = 2000  # Characters of an error that are passed on.


class Message(msgspec.Struct, omit_defaults=True):
  """One line on a connection between two processes."""

  kind: Literal["hello", "beat", "ready", "broken", "stop", "bye", "end"]
  process: int = -1
  host: str = ""
  token: str = ""
  feed: int = 0
  batch: int = 0
  status: int = 0
  text: str = ""


class Broken(NamedTuple):
  """The first batch that a process could not make; without a text, did not make before a signal."""

  batch: int
  process: int
  text: str


class PeerError(UserError):
  """An error of another process, which reports it, too."""

  in_all_processes = True


class StoppedError(Exception):
  """A signal to one of the processes ended the feed."""


class Batches:
  """The batches of this process and of all; feeds have numbers, the same in all processes."""

  def __init__(self, index: int, count: int, send: Callable[[Message], None]):
    """send: passes a message to process 0, or from there to all others; called under `changed`."""
    self._index, self._count, self._send = index, count, send
    self.changed = threading.Condition()
    self._ready: dict[int, list[int]] = {}  # By feed: the last batch of each process.
    self._all_ready: dict[int, int] = {}
    self._broken: dict[int, Broken] = {}
    self._made: dict[int, int] = {}  # By feed: the last batch of this process.
    self._own: dict[int, int] = {}  # By feed: the batch that this process cannot make.
    self._stopped: set[int] = set()  # Feeds.

  def ready(self, feed: int, batch: int) -> None:
    """This process has the batches of a feed up to this one."""
    message = Message("ready", self._index, feed=feed, batch=batch)
    with self.changed:
      self._made[feed] = batch
      self.take(message) if self._index == 0 else self._send(message)

  def broken(self, feed: int, batch: int, text: str) -> None:
    """This process cannot make this batch."""
    self._own[feed] = batch
    text = text[:_TEXT] or "an error without a text"
    self.take(Message("broken", self._index, feed=feed, batch=batch, text=text))

  def stop(self, feed: int) -> None:
    """Ends the feed in all processes, before the first batch that one of them does not have yet.

    So nobody has been handed out that batch, and all stop after the same one.
    """
    with self.changed:
      if feed not in self._stopped:
        self._stopped.add(feed)
        self.take(Message("broken", self._index, feed=feed, batch=self._made.get(feed, -1) + 1))
        self._send(Message("stop", self._index, feed=feed))

  def wait(self, feed: int, batch: int, seconds: float, name: Callable[[int], str]) -> bool:
    """Whether all processes have this batch.

    Raises PeerError where another one cannot make it, and StoppedError after `stop`. name: of a
    process, for people.
    """
    with self.changed:
      self.changed.wait_for(lambda: self._is_decided(feed, batch), seconds)
      broken = self._broken.get(feed)
      if broken and broken.batch <= batch:
        if not broken.text:
          raise StoppedError
        if self._own.get(feed) == broken.batch:
          return True  # Its own error is next.
        raise PeerError(f"{name(broken.process)}: {broken.text}")
      return self._all_ready.get(feed, -1) >= batch

  def _is_decided(self, feed: int, batch: int) -> bool:
    broken = self._broken.get(feed)
    return (broken and broken.batch <= batch) or self._all_ready.get(feed, -1) >= batch

  def news(self) -> list[Message]:
    """For a process that connects later: what ended feeds."""
    return [
      Message("broken", process, feed=feed, batch=batch, text=text)
      for feed, (batch, process, text) in self._broken.items()
    ]

  def take(self, message: Message) -> None:
    """A message of this process or another one: "ready", "broken" or "stop"."""
    with self.changed:
      if message.kind == "ready":
        self._take_ready(message)
      elif message.kind == "broken":
        self._take_broken(message)
      else:
        self.stop(message.feed)
      self.changed.notify_all()

  def _take_ready(self, message: Message) -> None:
    """At process 0 one process's batches, elsewhere those that all processes have."""
    if self._index:
      self._all_ready[message.feed] = message.batch
      return
    batches = self._ready.setdefault(message.feed, [-1] * self._count)
    batches[message.process] = message.batch
    before, after = self._all_ready.get(message.feed, -1), min(batches)
    if after > before:
      self._all_ready[message.feed] = after
      self._send(Message("ready", feed=message.feed, batch=after))

  def _take_broken(self, message: Message) -> None:
    broken = Broken(message.batch, message.process, message.text)
    self._broken[message.feed] = min(broken, self._broken.get(message.feed, broken))
    if self._index == 0 or message.process == self._index:
      self._send(message)
