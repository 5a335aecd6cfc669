"""What a run raises when reading ends, hangs or is interrupted."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pgjax import train
from pgjax.data import device_feed, loader, pipeline, tokenizer, workers
from pgjax.errors import UserError


@pytest.fixture
def mesh():
  return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def stuck(released):
  """One batch, and then none until it is released."""
  yield dict(text=np.zeros((8, 2), np.int32))
  released.wait()


def test_a_feed_that_waits_can_be_interrupted_and_closed(mesh, monkeypatch, caplog):
  monkeypatch.setattr(device_feed, "_CLOSE_SECONDS", 0.1)
  monkeypatch.setattr(device_feed, "SLOW_SECONDS", 0.0)
  released, polled = threading.Event(), []
  feed = device_feed.to_device(stuck(released), mesh)
  feed.interrupted = lambda: len(polled) >= 3 or polled.append(1)
  with contextlib.closing(feed):
    assert len(list(feed)) == 1
  assert feed.was_interrupted
  assert [r.getMessage() for r in caplog.records] == [
    "No batch for 0 s: the data is read slowly, or not at all."
  ]
  released.set()


def test_an_example_that_does_not_come_is_named(mesh, monkeypatch, caplog):
  """Of any kind of source; a file that does not answer ends the run after a minute anyway."""
  monkeypatch.setattr(device_feed, "_CLOSE_SECONDS", 0.1)
  monkeypatch.setattr(device_feed, "SLOW_SECONDS", 0.2)
  released, one = threading.Event(), object.__new__(loader.Loader)
  one.part = SimpleNamespace(source=SimpleNamespace(where=lambda i: f"x.jsonl:{i + 1}"))
  monkeypatch.setattr(one, "_read", lambda position, index: released.wait(), raising=False)
  feed = device_feed.to_device((one(0, 6) for _ in range(1)), mesh)
  feed.interrupted = lambda: bool(caplog.records)
  assert not list(feed)
  [message] = [record.getMessage() for record in caplog.records]
  assert message.startswith("No batch for 0 s: x.jsonl:7 has been read for 0 s; is its disk")
  released.set()
  feed.close()


def test_a_signal_reaches_the_thread_that_waits_for_a_batch(mesh, monkeypatch):
  monkeypatch.setattr(device_feed, "_CLOSE_SECONDS", 0.1)
  released, taken = threading.Event(), []
  before = signal.signal(signal.SIGUSR1, lambda number, frame: taken.append(number))
  try:
    feed = device_feed.to_device(stuck(released), mesh)
    feed.interrupted = lambda: bool(taken)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    assert len(list(feed)) == 1
  finally:
    signal.signal(signal.SIGUSR1, before)
    released.set()
  assert feed.was_interrupted


def test_a_run_that_is_stopped_while_it_waits_for_data_is_saved():
  class Feed:
    wait_seconds = 0.0

    def __next__(self):
      raise StopIteration

  saved = []
  lock = SimpleNamespace(check=lambda: None)
  save = saved.append
  run = SimpleNamespace(total_steps=9, feed=Feed(), lock=lock, save=lambda *args: save(args))
  stop = SimpleNamespace(signal=None)
  assert train.fit(run, "state", dict(step=4, evaluated=True), stop) == (4, False)
  assert saved == [(4, "state", {})]


def test_a_feed_that_ends_was_not_interrupted(mesh):
  feed = device_feed.to_device(iter([dict(text=np.zeros((8, 2), np.int32))]), mesh)
  assert len(list(feed)) == 1
  assert not feed.was_interrupted


@pytest.mark.parametrize(
  ("code", "how"),
  [
    (-9, "was ended by SIGKILL, as the system does when memory runs out"),
    (-11, r"was ended by SIGSEGV\."),
    (3, r"ended with exit code 3\."),
  ],
)
def test_a_worker_that_ended_is_explained(mesh, code, how):
  """In Grain's words, which the next test checks."""
  text = f"Worker process was terminated unexpectedly with exit code {code}. Search the logs above"

  def broken():
    yield dict(text=np.zeros((8, 2), np.int32))
    raise RuntimeError(text)

  feed = device_feed.to_device(broken(), mesh)
  next(feed)
  with pytest.raises(UserError, match=rf"A data worker \(.*\) {how}"):
    next(feed)


def test_other_errors_stay_as_they_are():
  error = RuntimeError("something else")
  assert workers.explained(error) is error


def test_a_data_worker_names_the_example_that_it_waits_for_once(monkeypatch, caplog):
  """The log of its run does not know of it."""
  monkeypatch.setattr(loader, "slowest", lambda: (61.0, "x.jsonl:7"))
  assert workers.report_slow(workers.report_slow("")) == "x.jsonl:7"
  monkeypatch.setattr(loader, "slowest", lambda: (3.0, "x.jsonl:8"))
  assert workers.report_slow("x.jsonl:7") == "x.jsonl:7"
  [message] = [record.getMessage() for record in caplog.records]
  assert message.startswith("x.jsonl:7 has been read for 61 s; is its disk or network share")


def test_data_workers_that_hang_are_killed(monkeypatch):
  """Grain waits 25 s for each of them."""
  monkeypatch.setattr(workers, "_CLOSE_SECONDS", 0.1)
  dead = threading.Event()
  children = [
    SimpleNamespace(name="grain-process-prefetch-0", kill=dead.set),
    SimpleNamespace(name="Process-1", kill=lambda: pytest.fail("it is somebody else's")),
  ]
  monkeypatch.setattr(multiprocessing, "active_children", lambda: children)

  def batches():
    try:
      yield
    finally:
      assert dead.wait(20)

  stream = workers.Stream(batches())
  next(stream)
  stream.close()


def easy_vqa_batches(num_workers):
  config = ConfigDict(dict(seed=3, res=16, text_len=16, num_frames=0))
  config.input = dict(
    data=dict(name="easy_vqa", split="train[:50]"), batch_size=8, num_threads=2,
    num_workers=num_workers, cache_mb=0, allow_truncated=False,
    pp='decode|resize(16)|value_range(-1, 1)|copy("question", "prefix")|copy("answer", "suffix")',
  )  # fmt: skip
  return pipeline.train_batches(config, tokenizer.load("tiny"))


@pytest.mark.slow  # A process that imports everything.
def test_a_killed_worker_ends_the_stream_with_a_sentence():
  data = easy_vqa_batches(num_workers=1)
  next(data)
  for child in multiprocessing.active_children():
    os.kill(child.pid, signal.SIGKILL)
  with pytest.raises(UserError, match=r"A data worker .* was ended by SIGKILL"):
    list(itertools.islice(data, 1000))  # Some batches are ready.


@pytest.mark.slow  # Two processes that import everything.
def test_workers_make_the_batches_of_threads_also_where_threads_share_a_batch(monkeypatch):
  monkeypatch.setattr(pipeline, "WHOLE_BATCH_BYTES", 0)
  ours, theirs = (itertools.islice(easy_vqa_batches(n), 5) for n in (0, 2))
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
