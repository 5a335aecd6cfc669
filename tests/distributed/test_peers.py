"""A process that is dead, frozen or cut off ends the others; broken data stops all of them."""

import contextlib
import itertools
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import msgspec
import pytest

import pgjax
from pgjax.data import device_feed
from pgjax.distributed import mesh as mesh_lib, peers, runtime, signals
from pgjax.errors import UserError

ROOT = pathlib.Path(pgjax.__path__[0]).parent


class Ended:
  """Stands for the end of a process."""

  def __init__(self):
    self.how = queue.Queue()

  def __call__(self, text, status):
    self.how.put((text, status))


@pytest.fixture
def group():
  """group(2, 3) -> (members 0 and 1 of 3, their ends, the port of member 0), connected."""
  made = []

  def start(present, count, seconds=600):
    ends = [Ended() for _ in range(present)]
    members = [peers.Group(i, count, seconds, end) for i, end in enumerate(ends)]
    port = members[0].listen()
    for member in members[1:]:
      member.connect("127.0.0.1", port, members[0].token, "alpha")
    made.extend(members)
    for member in members:
      member.start()
    return members, [end.how for end in ends], port

  yield start
  for member in made:
    member.close()


def connect(port, **fields):
  connection = socket.create_connection(("127.0.0.1", port), timeout=10)
  connection.sendall(msgspec.json.encode(peers.Message("hello", **fields)) + b"\n")
  return connection


def test_a_silent_process_is_named_to_all_others(group):
  (hub, _), ends, port = group(2, 3, seconds=1.2)
  frozen = connect(port, process=2, host="beta", token=hub.token)
  for end in ends:
    text, status = end.get(timeout=20)
    assert status == peers.LOST
    assert text.startswith("Process 2 of 3 on host beta has been silent for 1 s: it is frozen, or")
    assert text.endswith("Run the same command again: it resumes from the newest checkpoint.")
  with frozen, frozen.makefile() as lines:  # If it thaws.
    [ended, *_] = [line for line in lines if '"end"' in line]
  assert "Process 2 of 3 on host beta did not answer the others, which have ended." in ended


def test_a_connection_that_breaks_is_an_end_that_is_known_at_once(group):
  (hub, _), ends, port = group(2, 3)
  connect(port, process=2, host="beta", token=hub.token).close()
  for end in ends:
    assert end.get(timeout=20)[0].startswith("Process 2 of 3 on host beta has ended, killed")
  (hub, _), ends, port = group(2, 2)
  hub.close()
  text, status = ends[1].get(timeout=20)
  assert text.startswith("Process 0 of 2 on host alpha has ended, killed perhaps")
  assert status == peers.LOST


def test_the_last_message_arrives_although_the_process_ends_with_others_unread(monkeypatch):
  """TCP throws away what it has not sent yet; without TCP_NODELAY that is the last message."""
  hub = peers.Group(0, 3, 600, Ended())
  port = hub.listen()
  listening = connect(port, process=1, host="alpha", token=hub.token)
  listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

  def name(process):  # The moment at which process 2 is found to be lost.
    listening.sendall(b"{}\n")
    hub.leave(0)
    return f"Process {process}"

  monkeypatch.setattr(hub, "name", name)
  hub.start()
  connect(port, process=2, host="beta", token=hub.token).close()
  received = b""
  with listening, contextlib.suppress(ConnectionResetError):
    while data := listening.recv(1 << 16):
      received += data
  assert b'"bye"' in received
  assert b"Process 2 has ended" in received


def test_a_process_that_says_goodbye_is_not_missed_unless_it_has_an_error(group, monkeypatch):
  monkeypatch.setattr(peers, "GRACE_SECONDS", 0.0)
  (_, one, two), ends, _ = group(3, 4)
  two.leave(0)
  with pytest.raises(queue.Empty):
    ends[0].get(timeout=0.3)
  one.leave(1, "x.jsonl:3: it is no image")
  text, status = ends[0].get(timeout=20)
  assert text.endswith("ended with an error: x.jsonl:3: it is no image")
  assert status == 1
  assert ends[2].get(timeout=20) == ("", 0)  # Which is done, and does not wait any longer.


def test_a_stop_of_one_process_before_it_trains_stops_the_others_with_the_same_status(
  group, monkeypatch
):
  monkeypatch.setattr(peers, "GRACE_SECONDS", 0.0)
  (_, one), ends, _ = group(2, 2)
  one.leave(signals.STOPPED, "Stopped by SIGTERM before training began.")
  assert ends[0].get(timeout=20) == ("Stopped by SIGTERM before training began.", signals.STOPPED)


def test_the_stop_of_another_process_is_no_error(monkeypatch):
  said = []
  end = lambda self, text, status, seconds: said.append((text, status))  # noqa: E731
  monkeypatch.setattr(signals.Stop, "end", end)
  for text, status in (("Stopped.", signals.STOPPED), ("It is lost.", peers.LOST), ("", 0)):
    runtime.end(text, status)
  assert said == [("Stopped.", signals.STOPPED), ("error: It is lost.", peers.LOST), ("", 0)]


def test_strangers_are_not_heard(group):
  (hub, _), ends, port = group(2, 2)
  for fields in (dict(process=1, token="é"), dict(process=7, token=hub.token)):
    assert connect(port, **fields).recv(1) == b""
  noise = socket.create_connection(("127.0.0.1", port), timeout=10)
  noise.sendall(b"GET / HTTP/1.1\r\n\r\n")
  assert noise.recv(1) == b""
  assert ends[0].empty()


def batches(number, broken_at, error):
  for i in range(20):
    if i == broken_at:
      raise error
    yield number, i


def test_a_broken_example_stops_all_processes_after_the_same_batch(group, monkeypatch):
  """Also two of them, the later one in the process that is ahead."""
  monkeypatch.setattr(mesh_lib, "global_batch", lambda batch, mesh: batch)
  for at in ((None, 4), (7, 4), (4, 4), (2, 9)):
    members, _, _ = group(2, 2)
    monkeypatch.setattr(device_feed, "_numbers", iter((0, 0)))
    feeds = []
    for i, member in enumerate(members):
      monkeypatch.setattr(peers, "group", lambda member=member: member)
      feeds.append(device_feed.to_device(batches(i, at[i], UserError(f"broken in {i}")), None))
    first = min(n for n in at if n is not None)
    for n in range(first):
      assert [next(feed) for feed in feeds] == [(0, n), (1, n)]
    for i, feed in enumerate(feeds):
      with pytest.raises(UserError, match=f"broken in {i if at[i] == first else 1 - i}") as error:
        next(feed)
      assert error.value.in_all_processes


def stuck(number, released):
  yield from ((number, i) for i in range(4))
  released.wait()


@pytest.mark.parametrize("signalled", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_signal_while_one_waits_for_data_ends_all_feeds_after_the_same_batch(
  group, monkeypatch, signalled
):
  """Process 1 has no fifth batch; the signal comes to it, or to others, which have theirs."""
  monkeypatch.setattr(mesh_lib, "global_batch", lambda batch, mesh: batch)
  monkeypatch.setattr(device_feed, "_CLOSE_SECONDS", 0.1)
  monkeypatch.setattr(device_feed, "PATIENCE_SECONDS", 0.1)
  monkeypatch.setattr(device_feed, "_numbers", itertools.repeat(0))
  members, _, _ = group(3, 3)
  released, feeds = threading.Event(), []
  for i, member in enumerate(members):
    monkeypatch.setattr(peers, "group", lambda member=member: member)
    rows = stuck(i, released) if i == 1 else zip(itertools.repeat(i), itertools.count())
    feeds.append(device_feed.to_device(rows, None))
  for n in range(4):
    assert [next(feed) for feed in feeds] == [(i, n) for i in range(3)]
  for i in signalled:
    feeds[i].interrupted = lambda: True
  with futures.ThreadPoolExecutor() as pool:
    assert list(pool.map(lambda feed: next(feed, "ended"), feeds)) == ["ended"] * 3
  released.set()
  for feed in feeds:
    assert feed.was_interrupted
    feed.close()


def test_errors_of_an_exchange_wait_for_the_missing_process(group, monkeypatch):
  error = ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer\n  more")
  assert peers.explained(error) is error  # A single process.
  monkeypatch.setattr(peers, "_group", group(1, 2)[0])
  monkeypatch.setattr(peers, "_seconds", 0.01)
  assert "all of them answer: UNKNOWN: Gloo AllGather failed" in str(peers.explained(error))
  error = ZeroDivisionError()
  assert peers.explained(error) is error


PROGRAM = """
import sys, time
from pgjax import cli
from pgjax.distributed import signals
signals.begin()
def main(args):
  from pgjax.distributed import processes
  processes.join()
  print("ready", flush=True)
  while True:
    processes.gather_objects([1])
cli.run(main, "doc", [cli.PEER_TIMEOUT], config="none")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "name"), [(0, "SIGKILL"), (1, "SIGKILL"), (1, "SIGSTOP")])
def test_a_dead_or_frozen_process_ends_the_other_with_one_sentence(victim, name):
  with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
  processes = []
  for i in range(2):
    variables = dict(PGJAX_COORDINATOR=f"127.0.0.1:{port}", PGJAX_NUM_PROCESSES="2")
    flags = dict(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=1")
    processes.append(
      subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--peer_timeout=6"],
        cwd=ROOT,
        env=os.environ | variables | flags | dict(PGJAX_PROCESS_ID=str(i)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  other = processes[1 - victim]
  for process in processes:
    assert "ready" in [process.stdout.readline().strip() for _ in range(2)]
  time.sleep(1)
  processes[victim].send_signal(getattr(signal, name))
  try:
    _, err = other.communicate(timeout=60)
  finally:
    processes[victim].kill()
    processes[victim].communicate()
  assert other.returncode == peers.LOST
  [sentence] = [line for line in err.splitlines() if "started by" not in line]
  what = "has ended" if name == "SIGKILL" else "has been silent for"
  assert sentence.startswith(f"error: Process {victim} of 2 on host {socket.gethostname()} {what}")
