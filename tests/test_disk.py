"""An output file is whole or not there, and a full disk is a sentence."""

import errno
import os
import pathlib
import threading

import pytest

from pgjax import disk
from pgjax.errors import UserError


@pytest.fixture
def full(monkeypatch):
  """A disk that fills up after three bytes of each file."""

  def write_bytes(path, content):
    with open(path, "wb") as file:
      file.write(content[:3])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(pathlib.Path, "write_bytes", write_bytes)


def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(tmp_path, full):
  path = tmp_path / "check.html"
  with pytest.raises(UserError, match=r"check.html cannot be written: No space left on device\.$"):
    disk.write(path, "a page")
  assert not list(tmp_path.iterdir())
  path.write_text("earlier")
  with pytest.raises(UserError):
    disk.write(path, b"a page")
  assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("check.html", "earlier")]


def test_links_stay_and_pipes_are_written_to(tmp_path):
  (tmp_path / "link").symlink_to(tmp_path / "file")
  disk.write(tmp_path / "link", "text")
  assert ((tmp_path / "link").is_symlink(), (tmp_path / "file").read_text()) == (True, "text")
  os.mkfifo(tmp_path / "pipe")
  got = []
  reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
  reader.start()
  disk.write(tmp_path / "pipe", "text")
  reader.join()
  assert got == ["text"]


@pytest.mark.parametrize("name", ["s3://bucket/out", "gs://bucket/a.jsonl", "file:///tmp/x"])
def test_a_url_does_not_become_a_folder(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  for opened in (disk.open_folder, disk.open_parent):
    with pytest.raises(UserError, match=r"--out=.* is a URL"):
      opened(name, "--out")
  assert not any(tmp_path.iterdir())
