"""A second run in a workdir is refused; a dead one does not hold it."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from pgjax.checkpoints import run_lock
from pgjax.errors import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Short waits."""
  for name, seconds in dict(BEAT=0.05, SILENT=0.5, POLL=0.02, SETTLE=0.05).items():
    monkeypatch.setattr(run_lock, f"{name}_SECONDS", seconds)


@pytest.fixture
def lock(tmp_path):
  opened = []

  def make(lines=None):
    opened.append(run_lock.RunLock(tmp_path, (lines if lines is not None else []).append))
    return opened[-1]

  yield make
  for each in opened:
    each.release()


def written(tmp_path, **fields):
  """A lock file of this process with other fields."""
  mine = run_lock._this_process()  # noqa: SLF001
  holder = msgspec.structs.replace(mine, **fields)
  path = tmp_path / run_lock.TRAINING.file
  path.write_bytes(msgspec.json.encode(holder))
  return path


def acquired_at_once(lock, tmp_path):
  """Takes the lock, which says nothing about waiting, and whose file names this process."""
  lines = []
  holder = lock(lines)
  holder.acquire()
  content = msgspec.json.decode((tmp_path / run_lock.TRAINING.file).read_bytes())
  assert (content["pid"], content["token"]) == (os.getpid(), holder._mine.token)  # noqa: SLF001
  assert lines == []


def dead_pid():
  process = subprocess.Popen([sys.executable, "-S", "-c", ""])
  process.wait()
  return process.pid


def test_a_second_run_is_refused_with_host_process_and_start(lock, tmp_path):
  lock().acquire()
  holder = msgspec.json.decode((tmp_path / run_lock.TRAINING.file).read_bytes())
  assert holder["pid"] == os.getpid()
  with pytest.raises(UserError) as refused:
    lock().acquire()
  for part in (holder["host"], f"process {os.getpid()}", holder["started"], "--workdir"):
    assert part in str(refused.value)
  assert [p.name for p in tmp_path.iterdir()] == [run_lock.TRAINING.file]


def test_it_is_free_after_the_first_run(lock, tmp_path):
  first = lock()
  first.acquire()
  first.release()
  assert not list(tmp_path.iterdir())
  lock().acquire()
  first.release()  # Not its own any more.
  assert (tmp_path / run_lock.TRAINING.file).exists()


def test_a_killed_run_of_this_host_does_not_hold_it(lock, tmp_path):
  written(tmp_path, pid=dead_pid(), token="a")
  acquired_at_once(lock, tmp_path)


def test_a_process_that_nobody_waited_for_is_dead(lock, tmp_path):
  process = subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE)
  process.stdout.read()
  while pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
    time.sleep(0.01)
  written(tmp_path, pid=process.pid, token="a")
  acquired_at_once(lock, tmp_path)
  process.wait()


def test_the_number_of_a_killed_run_may_be_another_process_by_now(lock, tmp_path):
  written(tmp_path, pid_started=1, token="a")
  acquired_at_once(lock, tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 3}', None])
def test_a_silent_run_elsewhere_is_dead(lock, tmp_path, content):
  path, lines = written(tmp_path, machine="another", token="a"), []
  if content is not None:
    path.write_bytes(content)
  lock(lines).acquire()
  assert "sign of life" in lines[0]


def test_a_run_elsewhere_that_touches_its_file_is_alive(lock, tmp_path):
  path, done = written(tmp_path, machine="another", token="a", host="node7"), threading.Event()

  def touch():
    while not done.wait(0.02):
      os.utime(path)

  thread = threading.Thread(target=touch)
  thread.start()
  try:
    with pytest.raises(UserError, match="run on host node7"):
      lock().acquire()
  finally:
    done.set()
    thread.join()


def test_the_holder_touches_its_file(lock, tmp_path):
  lock().acquire()
  before = (tmp_path / run_lock.TRAINING.file).stat().st_mtime_ns
  deadline = time.monotonic() + 20
  while (tmp_path / run_lock.TRAINING.file).stat().st_mtime_ns == before:
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.mark.parametrize("earlier", ["none", "dead"])
def test_of_many_that_start_at_once_one_gets_it(lock, tmp_path, earlier):
  if earlier == "dead":
    written(tmp_path, pid=dead_pid(), token="a")
  barrier, won, refused = threading.Barrier(12), [], []

  def start(each):
    barrier.wait()
    try:
      each.acquire()
      won.append(each)
    except UserError as error:
      refused.append(str(error))

  threads = [threading.Thread(target=start, args=(lock(),)) for _ in range(12)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(won) == 1
  assert len(refused) == 11
  assert [p.name for p in tmp_path.iterdir()] == [run_lock.TRAINING.file]


def test_a_run_that_was_suspended_while_another_took_over_stops(lock, tmp_path):
  first = lock()
  first.acquire()
  first.check()
  written(tmp_path, machine="another", host="node8", token="b")
  deadline = time.monotonic() + 20
  while first._taken_by is None and time.monotonic() < deadline:  # noqa: SLF001
    time.sleep(0.01)
  with pytest.raises(UserError, match=r"was suspended for over .* host node8"):
    first.check()
  first.release()
  assert (tmp_path / run_lock.TRAINING.file).exists()


def test_a_disk_without_hard_links(lock, tmp_path, monkeypatch):
  def link(*_):
    raise PermissionError(1, "Operation not permitted")

  monkeypatch.setattr(run_lock.os, "link", link)
  lock().acquire()
  with pytest.raises(UserError, match="in use"):
    lock().acquire()


def test_an_evaluation_and_a_run_share_a_folder_but_not_two_evaluations(lock, tmp_path):
  lock().acquire()
  first, second = (run_lock.RunLock(tmp_path, print, run_lock.EVALUATION) for _ in range(2))
  first.acquire()
  with pytest.raises(UserError, match=r"another evaluation on host .* another --out\.$"):
    second.acquire()
  first.release()
  second.acquire()
  second.release()
  assert [p.name for p in tmp_path.iterdir()] == [run_lock.TRAINING.file]
