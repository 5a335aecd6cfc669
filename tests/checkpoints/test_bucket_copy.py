"""A run in an object store loses nothing and deletes nothing too early; here the store is memory.

tests/commands/test_buckets.py runs the commands against servers.
"""

import errno
import logging
import os

import pytest

from pgjax import train
from pgjax.checkpoints import bucket_copy, bucket_lock, bucket_view, workdir as workdir_lib
from pgjax.config import load
from pgjax.errors import UserError
from pgjax.formats import buckets

fsspec = pytest.importorskip("fsspec")
URL = "memory://bucket/runs/one"


@pytest.fixture
def store(tmp_path, monkeypatch):
  """fsspec's memory as an object store, and its files; `store.down` is an error of every call."""
  monkeypatch.setitem(buckets.DRIVERS, "memory", "fsspec")
  monkeypatch.setattr(buckets, "PAUSE_SECONDS", 100.0)  # One attempt.
  monkeypatch.setattr(bucket_copy, "SYNC_SECONDS", 0.02)
  for name, seconds in dict(BEAT=0.02, SILENT=0.4, POLL=0.02, SETTLE=0.02).items():
    monkeypatch.setattr(bucket_lock, f"{name}_SECONDS", seconds)
  monkeypatch.setattr(bucket_copy, "END_SECONDS", 0.0)
  monkeypatch.setenv("PGJAX_CACHE_DIR", str(tmp_path / "here"))
  memory = fsspec.filesystem("memory")
  memory.store.clear()
  memory.down = None
  monkeypatch.setattr(buckets.Bucket, "_fs", lambda self: reachable(memory))
  yield memory
  memory.store.clear()


def reachable(memory):
  if memory.down is not None:
    raise memory.down
  return memory


def names(store):
  start = "/bucket/runs/one/"
  return {path.removeprefix(start) for path in store.store if path.startswith(start)}


def add_step(folder, step):
  path = folder / "checkpoints" / str(step)
  for item in ("params", "optimizer"):
    (path / item).mkdir(parents=True)
    (path / item / "data").write_bytes(b"%d" % step)
  position = dict(step=step, total_steps=9, evaluated=True)
  shapes = {"params/w": ["float32", [4]], "optimizer/n": ["int32", []]}
  run = dict(step=step, config={}, identity={}, position=position, shapes=shapes, planned=True)
  workdir_lib.add_files(path, run | dict(sums=dict.fromkeys(shapes, 5), scores={}), b"pieces")
  return path


def run_while_the_store_fails(store):
  place = bucket_copy.writable(URL, "--workdir")
  with place.synced():
    store.down = RuntimeError("HTTP 500")
    add_step(place.folder, 7)


def run_while_another_takes_over(store, other):
  place = bucket_copy.writable(URL, "--workdir")
  with place.synced():
    store.pipe_file("/bucket/runs/one/in-use.json", other)
    add_step(place.folder, 5)


def other_machine(monkeypatch, tmp_path):
  monkeypatch.setenv("PGJAX_CACHE_DIR", str(tmp_path / "there"))


def test_another_machine_finds_what_was_uploaded_and_downloads_arrays_when_they_are_read(
  store, tmp_path, monkeypatch
):
  place = bucket_copy.writable(URL, "--workdir")
  with place.synced():
    (place.folder / "metrics.jsonl").write_text("{}\n")
    (place.folder / "running.json").write_text("of this machine")
    add_step(place.folder, 5)
  assert {"metrics.jsonl", "checkpoints/5/files.json", "copy.json"} < names(store)
  assert "running.json" not in names(store)
  other_machine(monkeypatch, tmp_path)
  second = bucket_copy.writable(URL, "--workdir")
  with second.synced():
    assert (second.folder / "metrics.jsonl").read_text() == "{}\n"
    assert workdir_lib.steps(second.folder) == [5]
    path = second.folder / "checkpoints/5"
    assert not (path / "params/data").exists()
    second.fetch(path)
    assert workdir_lib.read(path).step == 5
  assert "checkpoints/5/params/data" in names(store)


def test_a_store_that_fails_delays_uploads_and_deletes_nothing(store, caplog):
  caplog.set_level(logging.WARNING, "pgjax")
  place = bucket_copy.writable(URL, "--workdir")
  with place.synced():
    add_step(place.folder, 5)
    place.push()
    store.down = ConnectionResetError("reset by peer")
    add_step(place.folder, 6)
    (place.folder / "checkpoints/5").rename(place.folder / "gone")  # As retention does.
    with pytest.raises(OSError, match="reset by peer"):
      place.push()
    assert "checkpoints/5/params/data" in names(store)
    store.down = None
    place.push()
    assert "checkpoints/5/params/data" not in names(store)
    assert "checkpoints/6/files.json" in names(store)


def test_what_was_not_uploaded_at_the_end_is_named_and_uploaded_by_the_next_start(store):
  with pytest.raises(UserError, match=r"HTTP 500.*rerun the same command on this machine"):
    run_while_the_store_fails(store)
  assert "checkpoints/7/files.json" not in names(store)
  store.down = None
  with bucket_copy.writable(URL, "--workdir").synced():
    pass
  assert "checkpoints/7/files.json" in names(store)


def test_a_copy_does_not_overwrite_what_another_machine_did_since(
  store, tmp_path, monkeypatch, caplog
):
  caplog.set_level(logging.WARNING, "pgjax")
  with pytest.raises(UserError, match="HTTP 500"):
    run_while_the_store_fails(store)
  store.down = None
  with monkeypatch.context() as patch:
    other_machine(patch, tmp_path)
    second = bucket_copy.writable(URL, "--workdir")
    with second.synced():
      add_step(second.folder, 3)
  again = bucket_copy.writable(URL, "--workdir")
  with again.synced():
    assert workdir_lib.steps(again.folder) == [3]
  assert "files that were not uploaded" in caplog.text
  assert {n.split("/")[1] for n in names(store) if n.startswith("checkpoints/")} == {"3"}


def test_a_step_without_its_last_file_does_not_exist(store, tmp_path, monkeypatch):
  place = bucket_copy.writable(URL, "--workdir")
  with place.synced():
    add_step(place.folder, 4)
    add_step(place.folder, 5)
  store.rm("/bucket/runs/one/checkpoints/5/files.json")
  other_machine(monkeypatch, tmp_path)
  copy = bucket_copy.writable(URL, "--workdir")
  with copy.synced():
    assert workdir_lib.steps(copy.folder) == [4]
  assert bucket_view.readable(URL).joinpath("checkpoints").is_dir()


def test_a_reader_downloads_one_step_without_its_optimizer(store, monkeypatch, tmp_path):
  place = bucket_copy.writable(URL, "--workdir")
  with place.synced():
    add_step(place.folder, 4)
    add_step(place.folder, 5)
  other_machine(monkeypatch, tmp_path)
  folder = bucket_view.readable(URL)
  assert (folder / "checkpoints/5/params/data").read_bytes() == b"5"
  assert (folder / "checkpoints/5/optimizer/data").read_bytes() == b"\0"
  assert workdir_lib.find(str(folder)).step == 5
  assert not (folder / "checkpoints/4/params/data").exists()
  store.rm("/bucket/runs/one/checkpoints/5", recursive=True)
  assert workdir_lib.steps(bucket_view.readable(URL, step=4)) == [4]


def test_a_second_machine_is_refused_while_the_first_runs_and_takes_over_from_a_dead_one(
  store, tmp_path, monkeypatch
):
  first = bucket_copy.writable(URL, "--workdir")
  with first.synced():
    with monkeypatch.context() as patch:
      other_machine(patch, tmp_path)
      second = bucket_copy.writable(URL, "--workdir")
      with pytest.raises(UserError, match=r"is in use by another run on host .*, process \d+"):
        second.synced().__enter__()
    held = store.cat_file("/bucket/runs/one/in-use.json")
  assert "in-use.json" not in names(store)
  store.pipe_file("/bucket/runs/one/in-use.json", held)  # As a killed run leaves it.
  other_machine(monkeypatch, tmp_path)
  with second.synced():
    assert store.cat_file("/bucket/runs/one/in-use.json") != held


@pytest.mark.parametrize(
  ("url", "match"),
  [
    ("http://host/run", "only s3:// and gs://"),
    ("file:///etc", "only s3:// and gs://"),
    ("s3://bucket/../x", "plain names"),
    ("s3://key:secret@bucket/x", "without credentials"),
    ("s3://", "s3://BUCKET/NAME"),
    ("s3://bucket::file://x", "plain names"),
  ],
)
def test_other_urls_are_refused_in_a_sentence(url, match):
  with pytest.raises(UserError, match=match):
    bucket_copy.writable(url, "--workdir")


def test_metrics_json_of_results_is_uploaded_after_the_other_files(store, monkeypatch):
  order, put = [], buckets.Bucket.put
  monkeypatch.setattr(
    buckets.Bucket, "put", lambda self, file, name: (order.append(name), put(self, file, name))
  )
  place = bucket_copy.writable(URL, "--out")
  with place.synced():
    for name in ("metrics.json", "predictions.jsonl", "report.html"):
      (place.folder / "step_5").mkdir(exist_ok=True)
      (place.folder / "step_5" / name).write_text("x")
  assert order[-1] == "step_5/metrics.json"


def test_a_step_is_not_uploaded_without_its_rows_of_metrics(store, monkeypatch):
  place = bucket_copy.writable(URL, "--workdir")
  stamp = bucket_copy._stamp  # noqa: SLF001
  with place.synced():
    rows = place.folder / "metrics.jsonl"
    rows.write_text("1\n")
    place.push()
    step = add_step(place.folder, 5)

    def logged_meanwhile(path):
      if step in path.parents:
        rows.write_text("1\n2\n")
      return stamp(path)

    monkeypatch.setattr(bucket_copy, "_stamp", logged_meanwhile)
    place.push()
    assert store.cat_file("/bucket/runs/one/metrics.jsonl") == b"1\n2\n"


def test_a_run_that_was_taken_over_uploads_nothing(store, caplog):
  caplog.set_level(logging.WARNING, "pgjax")
  other = b'{"host": "h", "pid": 7, "started": "12:00", "token": "other"}'
  with pytest.raises(UserError, match=r"Nothing more is uploaded: .* taken over by another run on"):
    run_while_another_takes_over(store, other)
  assert not any(name.startswith("checkpoints") for name in names(store))
  assert store.cat_file("/bucket/runs/one/in-use.json") == other


def test_a_full_disk_of_this_machine_does_not_stop_uploads(store, monkeypatch):
  place = bucket_copy.writable(URL, "--workdir")
  with place.synced():
    add_step(place.folder, 5)

    def full(path, content):
      raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bucket_copy.disk, "replace", full)
    place.push()
  assert "checkpoints/5/files.json" in names(store)


@pytest.mark.slow
def test_a_stopped_run_whose_bucket_fails_ends_resumable(store, monkeypatch, root, capsys):
  config = load.load(str(root / "configs/easyvqa.py"), {})

  def stopped(config, mesh, place, *_):
    add_step(place.folder, 5)
    store.down = RuntimeError("HTTP 500")
    return 5, 10, False

  monkeypatch.setattr(train, "train", stopped)
  assert train.execute(config, URL, "again", whole_process=False) == (5, 10, False)
  assert "cannot be written" in capsys.readouterr().out


def test_a_folder_that_is_renamed_while_it_is_listed_is_no_error(store, monkeypatch):
  place = bucket_copy.writable(URL, "--workdir")
  with place.synced():
    unfinished = place.folder / "checkpoints/5.tmp"
    (unfinished / "params").mkdir(parents=True)
    scandir = os.scandir

    def renamed_meanwhile(path="."):
      if os.fspath(path) == str(unfinished) and unfinished.exists():
        unfinished.rename(unfinished.with_suffix(""))
      return scandir(path)

    monkeypatch.setattr(os, "scandir", renamed_meanwhile)
    place.push()
    assert not unfinished.exists()
