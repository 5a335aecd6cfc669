"""Do the other processes of this run still answer? If one does not, this one ends with a sentence.

A collective operation (Gloo, NCCL) waits for ever for a process that is frozen, and fails with a
stack trace for one that is dead; neither can be interrupted. So a thread watches. Each process has
a connection to process 0, on which both send a sign of life every few seconds, and process 0 tells
all others whom it misses. A connection that breaks is a process that ended: that is known at once.

The same connections carry how many batches each process has ready (batches.py).
"""

import re
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable

import msgspec

from pgjax.distributed import batches, signals
from pgjax.distributed.batches import Message, PeerError as PeerError, StoppedError as StoppedError
from pgjax.errors import UserError, cut

LOST = 76  # EX_PROTOCOL of sysexits.h: nothing is wrong here, and the newest checkpoint is intact.
DEFAULT_SECONDS = 60
LEAST_SECONDS = 5
GRACE_SECONDS = 3.0  # After an error elsewhere: the same error may come up here.
HELLO_SECONDS = 30.0  # For a connection to say whose it is.
CLEAN_SECONDS = 5.0  # For files that must not stay.
_LINE_BYTES = 1 << 16
_TEXT = 2000  # Characters of an error that are passed on.
AGAIN = "Run the same command again: it resumes from the newest checkpoint."


# Of the errors of JAX, Gloo and NCCL about a process that does not answer.
_EXCHANGE = re.compile(
  r"gloo|nccl|UNAVAILABLE|DEADLINE_EXCEEDED|coordination|barrier|Connection (reset|closed)", re.I
)
_seconds = float(DEFAULT_SECONDS)
_group: "list[Group]" = []  # At most one: of this process.


class _Link:
  """A connection, and the process at its other end once that is known."""

  def __init__(self, connection: socket.socket):
    connection.setblocking(False)
    # The last message leaves at once: a process that ends loses what is unsent.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self.connection, self.process, self.host = connection, -1, ""
    self.inbox, self.outbox = bytearray(), bytearray()
    self.opened = self.heard = time.monotonic()
    self.left = False


class Group:
  """This process among the others of its run; its thread runs until the process ends.

  seconds: within this time after a process fell silent, all others have ended. end: called with a
  sentence and an exit status, from the thread.
  """

  def __init__(self, index: int, count: int, seconds: float, end: Callable[[str, int], None]):
    """Opens no connection; `listen` or `connect` does."""
    self.index, self.count, self.token = index, count, secrets.token_hex(16)
    self._end_process, self._beat_seconds = end, min(5.0, seconds / 12)
    self._silent_seconds = seconds - 2 * self._beat_seconds
    self._links: dict[int, _Link] = {}  # By process.
    self._unknown: list[_Link] = []
    self._selector, self._listener = selectors.DefaultSelector(), None
    self.batches = batches.Batches(index, count, self._send_to_all)
    self._changed = self.batches.changed
    self._ending: tuple[float, str, int] | None = None  # When, why, with which status.
    self._closed = threading.Event()
    self._bye: Message | None = None
    self._left: int | None = None  # The exit status, once this process is on its way out.

  def listen(self) -> int:
    """For process 0; returns the port for the others."""
    has_ipv6 = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if has_ipv6 else socket.AF_INET
    self._listener = socket.create_server(
      ("", 0), family=family, dualstack_ipv6=has_ipv6, backlog=max(128, self.count)
    )
    self._selector.register(self._listener, selectors.EVENT_READ)
    return self._listener.getsockname()[1]

  def connect(self, address: str, port: int, token: str, host: str) -> None:
    """For the other processes: to the port of process 0, whose host has a name; raises OSError."""
    link = _Link(socket.create_connection((address, port), timeout=HELLO_SECONDS))
    link.process, link.host = 0, host
    self._links[0] = link
    self._selector.register(link.connection, selectors.EVENT_READ, link)
    self._send(link, Message("hello", self.index, socket.gethostname(), token))

  def start(self) -> None:
    """Begins to watch."""
    threading.Thread(target=self._watch, name="peers", daemon=True).start()

  def close(self) -> None:
    """Ends the thread and the connections."""
    self._closed.set()

  def name(self, process: int) -> str:
    """For people, with its host if that is known."""
    link = self._links.get(process)
    where = f" on host {link.host}" if link and link.host else ""
    return f"Process {process} of {self.count}{where}"

  def leave(self, status: int, text: str = "") -> None:
    """Tells the others that this process ends; a text is the reason why they must end, too."""
    with self._changed:
      already, self._left = self._left, status
      if already is None:
        self._bye = Message("bye", self.index, status=status, text=text[:_TEXT])
        self._send_to_all(self._bye)

  def _watch(self) -> None:
    """The thread."""
    beaten = seen = time.monotonic()
    while not self._closed.is_set():
      for key, _ in self._selector.select(min(0.5, self._beat_seconds / 2)):
        self._accept() if key.data is None else self._read(key.data)
      now = time.monotonic()
      if now - seen > self._silent_seconds / 2:  # This process itself was suspended.
        for link in self._links.values():
          link.heard = now
      seen = now
      if now - beaten >= self._beat_seconds:
        beaten = now
        self._send_to_all(Message("beat", self.index))
      for link in list(self._links.values()):
        self._flush(link)
        if not link.left and now - link.heard > self._silent_seconds:
          self._lost(
            link.process,
            f"has been silent for {now - link.heard:.0f} s: it is frozen, or the network is cut",
          )
      self._drop_strangers(now)
      if self._ending and now >= self._ending[0]:
        self._end(*self._ending[1:])
    for key in list(self._selector.get_map().values()):
      key.fileobj.close()
    self._selector.close()

  def _accept(self) -> None:
    try:
      connection, _ = self._listener.accept()
    except OSError:
      return
    link = _Link(connection)
    self._unknown.append(link)
    self._selector.register(connection, selectors.EVENT_READ, link)

  def _read(self, link: _Link) -> None:
    try:
      data = link.connection.recv(1 << 16)
    except BlockingIOError:
      return None
    except OSError:
      data = b""
    link.heard = time.monotonic()
    link.inbox += data
    *lines, rest = link.inbox.split(b"\n")
    link.inbox = bytearray(rest)
    for line in lines:
      try:
        message = msgspec.json.decode(line, type=Message)
      except msgspec.DecodeError:
        return self._drop(link)
      if link.process < 0 and not self._welcome(link, message):
        return self._drop(link)
      self._take(link, message)
    if len(rest) > _LINE_BYTES:
      return self._drop(link)
    if not data:
      self._disconnected(link)
    return None

  def _welcome(self, link: _Link, message: Message) -> bool:
    """Whether a new connection is from a process of this run."""
    token, expected = message.token.encode(), self.token.encode()
    right = message.kind == "hello" and secrets.compare_digest(token, expected)
    if not right or not 0 < message.process < self.count or message.process in self._links:
      return False
    link.process, link.host = message.process, message.host
    self._unknown.remove(link)
    with self._changed:
      self._links[link.process] = link
      for news in self.batches.news():  # It came after these were sent.
        self._send(link, news)
      if self._bye:
        self._send(link, self._bye)
    return True

  def _drop(self, link: _Link) -> None:
    if link.process >= 0:
      return self._disconnected(link)
    self._forget(link)
    self._unknown.remove(link)
    return None

  def _forget(self, link: _Link) -> None:
    self._selector.unregister(link.connection)
    link.connection.close()

  def _drop_strangers(self, now: float) -> None:
    for link in [link for link in self._unknown if now - link.opened > HELLO_SECONDS]:
      self._drop(link)

  def _disconnected(self, link: _Link) -> None:
    self._forget(link)
    if not link.left:
      link.left = True
      self._lost(link.process, "has ended, killed perhaps, without a message")

  def _take(self, link: _Link, message: Message) -> None:
    if self.index == 0:
      message.process = link.process
    if message.kind in ("ready", "broken", "stop"):
      self.batches.take(message)
    elif message.kind == "end":
      self._end(message.text, message.status)
    elif message.kind == "bye":
      link.left = True
      self._said_bye(message)

  def _said_bye(self, message: Message) -> None:
    if self._ending is None and message.text:
      name = self.name(message.process)
      stopped = message.status == signals.STOPPED
      why = message.text if stopped else f"{name} ended with an error: {message.text}"
      when = time.monotonic() + GRACE_SECONDS
      self._ending = when, why, message.status

  def _lost(self, process: int, what: str) -> None:
    name = self.name(process)
    if self.index == 0:  # It may be thawed.
      text = f"{name} did not answer the others, which have ended. {AGAIN}"
      self._send(self._links[process], Message("end", text=text, status=LOST))
    self._end(f"{name} {what}. {AGAIN}", LOST)

  def _end(self, text: str, status: int) -> None:
    if self.index == 0:
      self._send_to_all(Message("end", text=text, status=status))
    if self._left is not None:  # It is done, and waits for the others.
      text, status = "", self._left
    self._closed.set()
    self._end_process(text, status)

  def _send_to_all(self, message: Message) -> None:
    with self._changed:
      for link in self._links.values():
        self._send(link, message)

  def _send(self, link: _Link, message: Message) -> None:
    with self._changed:
      link.outbox += msgspec.json.encode(message) + b"\n"
      self._flush(link)

  def _flush(self, link: _Link) -> None:
    """Without waiting; a connection that is broken is detected where it is read."""
    with self._changed:
      try:
        while link.outbox:
          del link.outbox[: link.connection.send(link.outbox)]
      except BlockingIOError:
        pass
      except OSError:
        link.outbox.clear()


def set_seconds(seconds: float) -> None:
  """How long a process may be silent (--peer_timeout); before the processes join."""
  global _seconds
  _seconds = float(seconds)


def seconds() -> float:
  """Of `set_seconds`."""
  return _seconds


def set_group(group: Group) -> None:
  """The processes of this run; a signal to this one is reported to the others."""
  _group.append(group)
  signals.of_process().tell_others.append(group.leave)


def group() -> Group | None:
  """The processes of this run; None if it is a single one."""
  return _group[0] if _group else None


def leave(status: int, text: str = "") -> None:
  """What a command does last, with the text of its error."""
  if _group:
    _group[0].leave(status, text)


def explained(error: Exception) -> Exception:
  """A UserError if the exchange of data has failed; any other error unchanged.

  It waits until the thread has found a process that is missing, and has ended this one.
  """
  if not _group or not _EXCHANGE.search(str(error)):
    return error
  time.sleep(_seconds)
  reason = cut(str(error).partition("\n")[0])
  return UserError(f"The processes could not exchange data, although all of them answer: {reason}")
