"""Only regular files of a bounded size are read, and nothing waits for ever."""

import os
import pathlib
import threading
import time

import pytest

from pgjax.data import tokenizer
from pgjax.data.sources import registry
from pgjax.errors import UserError
from pgjax.formats import input_files, npz, safetensors, typed_json


def test_a_file_is_read_whole(tmp_path, monkeypatch):
  (tmp_path / "a").write_bytes(b"0123456789" * 1000)
  assert input_files.read(tmp_path / "a") == b"0123456789" * 1000
  monkeypatch.setattr(input_files, "_CHUNK", 7)
  assert input_files.read(str(tmp_path / "a")) == b"0123456789" * 1000
  (tmp_path / "empty").write_bytes(b"")
  assert input_files.read(tmp_path / "empty") == b""


def odd(folder, kind):
  path = folder / "odd"
  if kind == "FIFO":
    os.mkfifo(path)
  elif kind == "device":
    path.symlink_to("/dev/zero")
  elif kind == "folder":
    path.mkdir()
  elif kind == "or more":
    with path.open("wb") as file:
      file.truncate(input_files.MAX_TEXT_BYTES + 1)  # Takes no space.
  return str(path)


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder", "or more"])
@pytest.mark.parametrize(
  "read",
  [
    input_files.file_bytes,
    lambda path: registry.open(dict(name="jsonl", fname=path)),
    lambda path: registry.open(dict(name="coco", fname=path)),
    lambda path: typed_json.read(path, dict),
    tokenizer.load,
    lambda path: npz.read_npz(pathlib.Path(path)),
    lambda path: safetensors.read_safetensors_file(pathlib.Path(path)),
  ],
)
def test_what_is_no_file_or_too_large_is_refused_at_once(tmp_path, kind, read):
  path = odd(tmp_path, kind)
  with pytest.raises(
    UserError, match=rf"odd.* cannot be read.*{kind}|tokenizer.model|is damaged|header"
  ):
    read(path)


def test_a_disk_that_does_not_answer_is_named_after_a_time(tmp_path, monkeypatch):
  """And the next file is read again."""
  (tmp_path / "a").write_bytes(b"a")
  (tmp_path / "b").write_bytes(b"b")
  returns, stat = threading.Event(), os.stat

  def hanging(path, **more):
    if str(path).endswith("a"):
      returns.wait()
    return stat(path, **more)

  monkeypatch.setattr(os, "stat", hanging)
  monkeypatch.setattr(input_files, "WAIT_SECONDS", 0.1)
  with pytest.raises(UserError, match=r"/a cannot be read: no answer for 0.1 s; is its disk"):
    input_files.file_bytes(tmp_path / "a")
  assert input_files.file_bytes(tmp_path / "b") == b"b"
  returns.set()


def test_waiting_can_be_given_up(monkeypatch):
  monkeypatch.setattr(input_files, "_POLL_SECONDS", 0.05)
  monkeypatch.setattr(input_files, "_given_up", [float("-inf")])
  released = threading.Event()
  threading.Timer(0.2, input_files.give_up).start()
  with pytest.raises(input_files.UnresponsiveError):
    input_files.bounded(lambda alive: released.wait())
  with pytest.raises(input_files.UnresponsiveError):  # It was queued.
    input_files.bounded(lambda alive: released.wait())
  released.set()
  assert input_files.bounded(lambda alive: "the next") == "the next"


def test_a_slow_disk_that_answers_is_waited_for():
  def work(alive):
    for _ in range(6):
      time.sleep(0.1)
      alive()
    return "done"

  assert input_files.bounded(work, seconds=0.4) == "done"


@pytest.mark.parametrize("name", ["../x.png", "/etc/hostname", "a/../../x.png", "a\0.png"])
def test_names_stay_below_the_folder(tmp_path, name):
  with pytest.raises(UserError, match=r"^line 1: image .* is outside of .*; paths must be below"):
    input_files.inside(str(tmp_path), name, "line 1")


def test_links_out_are_refused_where_files_are_copied(tmp_path):
  root = tmp_path / "root"
  root.mkdir()
  (tmp_path / "secret").write_text("x")
  (root / "link").symlink_to(tmp_path / "secret")
  (root / "own").symlink_to(root / "file")
  assert input_files.inside(str(root), "link", "here") == str(root / "link")
  assert input_files.inside(str(root), "own", "here", links=False) == str(root / "own")
  with pytest.raises(UserError, match=r"image 'link' is a link to .*secret, outside of"):
    input_files.inside(str(root), "link", "here", links=False)


def test_an_absolute_name_may_be_in_the_real_folder_of_a_linked_one(tmp_path):
  (tmp_path / "real").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "real")
  name = str(tmp_path / "real/a.png")
  assert input_files.inside(str(tmp_path / "link"), name, "here") == name
