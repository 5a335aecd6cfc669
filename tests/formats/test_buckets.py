"""A call to an object store ends in time, and what is given up does not happen later."""

import asyncio
import errno
import time

import pytest

from pgjax.formats import buckets

fsspec = pytest.importorskip("fsspec")


class Store:
  """An asynchronous file system of fsspec with the answers `behave`, a coroutine function."""

  async_impl = True

  def __init__(self, behave):
    from fsspec import asyn

    self.loop, self.calls, self.written, self._behave = asyn.get_loop(), 0, [], behave

  async def _pipe_file(self, path, data):
    self.calls += 1
    await self._behave(self.calls)
    self.written.append(data)

  async def _info(self, path):
    self.calls += 1
    await self._behave(self.calls)
    return dict(type="file", name=path)

  async def _isfile(self, path):  # As fsspec's.
    try:
      await self._info(path)
    except Exception:
      return False
    return True

  async def _get_file(self, path, file, callback):
    self.calls += 1
    callback.set_size(10)
    callback.relative_update(5)
    await self._behave(self.calls)


@pytest.fixture
def bucket(monkeypatch):
  """bucket(behave) -> (a Bucket, its Store); without pauses, and silent after 0.3 s."""
  monkeypatch.setitem(buckets.DRIVERS, "s3", "fsspec")
  monkeypatch.setattr(buckets, "PAUSE_SECONDS", 0.0)
  monkeypatch.setattr(buckets, "SILENT_SECONDS", 0.3)

  def make(behave):
    store, bucket = Store(behave), buckets.Bucket("s3://bucket/run", "--workdir")
    monkeypatch.setattr(bucket, "_fs", lambda: store)
    return bucket, store

  return make


def test_a_store_that_never_answers_ends_the_call_and_a_late_answer_writes_nothing(bucket):
  async def late(_):
    await asyncio.sleep(0.6)

  slow, store = bucket(late)
  with pytest.raises(buckets.BucketError, match=r"writing metrics.jsonl: no answer for 0.3 s"):
    slow.write("metrics.jsonl", b"old")
  time.sleep(0.5)
  assert (store.calls, store.written) == (1, [])


def test_a_store_that_has_answered_may_fail_more_often_than_a_new_one(bucket):
  async def failing(call):
    if call in (1, 2, 3, 5, 6, 7, 8):
      raise ConnectionResetError("reset by peer")

  other, store = bucket(failing)
  with pytest.raises(buckets.BucketError, match="reset by peer"):
    other.write("a", b"1")
  other.write("b", b"2")
  other.write("c", b"3")
  assert (store.calls, store.written) == (9, [b"2", b"3"])


def test_a_full_disk_of_this_machine_is_not_the_stores_fault(bucket, tmp_path):
  async def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  other, store = bucket(full)
  with pytest.raises(
    buckets.LocalDiskError, match=r"cannot be written \(No space.*PGJAX_CACHE_DIR"
  ):
    other.get("a", tmp_path / "a")
  assert store.calls == 1


def test_a_failure_is_not_taken_for_a_missing_object(bucket):
  async def failing(call):
    if call == 1:
      raise OSError(errno.EREMOTEIO, "Internal Server Error")
    if call == 3:
      raise FileNotFoundError("bucket/run")

  other, store = bucket(failing)
  assert other.is_object()
  assert not other.is_object()
  assert store.calls == 3


def test_bytes_that_come_again_with_each_attempt_do_not_prolong_a_call(bucket, tmp_path):
  async def failing(call):
    if call > 1:
      await asyncio.sleep(0.02)
      raise ConnectionResetError("reset by peer")

  other, _ = bucket(failing)
  other.write("x", b"1")
  with pytest.raises(buckets.BucketError, match="reset by peer"):
    other.get("a", tmp_path / "b")
