"""Names in another spelling are replaced by the one file that matches."""

import json
import logging
import unicodedata

import pytest

from pgjax.data.sources import files, registry
from pgjax.errors import UserError


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "Images").mkdir()
  for name in ("a.jpg", "my cat.jpg", unicodedata.normalize("NFD", "café.png"), "B.png", "b.PNG"):
    (tmp_path / "Images" / name).write_bytes(name.encode())
  return tmp_path


def source(folder, *names):
  rows = (json.dumps(dict(image=name, prefix="p", suffix="s")) + "\n" for name in names)
  (folder / "data.jsonl").write_text("".join(rows))
  return registry.open(dict(name="jsonl", fname=str(folder / "data.jsonl")))


@pytest.mark.parametrize(
  ("name", "file"),
  [
    ("Images/a.jpg", "a.jpg"),
    ("Images\\a.jpg", "a.jpg"),
    (".\\images\\A.JPG", "a.jpg"),
    ("images/a.jpeg".replace("jpeg", "JPG"), "a.jpg"),
    ("Images/my%20cat.jpg", "my cat.jpg"),
    (
      "Images/" + unicodedata.normalize("NFC", "café.png"),
      unicodedata.normalize("NFD", "café.png"),
    ),
    ("Images/caf%C3%A9.png", unicodedata.normalize("NFD", "café.png")),
    ("file://Images/a.jpg", "a.jpg"),
    ("file://{root}/Images/my%20cat.jpg", "my cat.jpg"),
    ("{root}/Images/a.jpg", "a.jpg"),
    ("Images/B.png", "B.png"),
  ],
)
def test_the_one_file_that_matches_is_read(folder, name, file):
  opened = source(folder, name.replace("{root}", str(folder)))
  assert opened[0]["image"] == file.encode()
  assert opened.texts(0)["image"] == name.replace("{root}", str(folder))


def test_other_spellings_are_counted_and_logged_once(folder, caplog):
  with caplog.at_level(logging.WARNING, "pgjax"):
    source(folder, "Images/a.jpg", "Images\\a.jpg", "Images\\a.jpg", "images/my%20cat.jpg")
  (record,) = caplog.records
  assert record.getMessage() == (
    f"{folder}/data.jsonl: 3 of 4 images have another name on the disk (2 by backslashes, 1 by %"
    " and case), such as 'Images/a.jpg' for 'Images\\\\a.jpg'; exactly one file matches each."
  )


def test_exact_names_are_not_logged(folder, caplog):
  with caplog.at_level(logging.WARNING, "pgjax"):
    source(folder, "Images/a.jpg", "./Images/B.png", f"{folder}/Images/b.PNG")
  assert not caplog.records


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (
      "Images/b.png",
      "several files differ from it only in their case: 'Images/B.png', 'Images/b.PNG'",
    ),
    ("https://example.org/a.jpg", "is a URL; nothing is downloaded"),
    ("gs://bucket/a.jpg", "is a URL; nothing is downloaded"),
    ("data:image/png;base64,AAAA", "is a URL; nothing is downloaded"),
    ("..\\..\\etc\\passwd", "is not in"),
    ("%2e%2e/%2e%2e/etc/passwd", "is not in"),
    ("file:///etc/passwd", "is not in"),
    ("../a.jpg", "is outside of"),
    ("Images/a.jpeg", r"is not in .*\. Did you mean 'Images/a.jpg'\?"),
    ("C:\\pictures\\a.jpg", "is not in"),
  ],
)
def test_other_names_raise_with_the_difference(folder, name, message):
  with pytest.raises(UserError, match=f"^{folder}/data.jsonl, line 1: image .*{message}"):
    source(folder, name)


def test_coco_finds_the_same_files(folder):
  images = [dict(id=1, file_name="Images\\a.jpg", width=4, height=4)]
  content = dict(images=images, annotations=[], categories=[dict(id=1, name="cat")])
  (folder / "data.json").write_text(json.dumps(content))
  opened = registry.open(dict(name="coco", fname=str(folder / "data.json")))
  assert opened[0]["image"] == b"a.jpg"


def test_a_folder_that_may_not_be_listed_is_a_sentence(folder, monkeypatch):
  def refused(path):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(files.os, "scandir", refused)
  with pytest.raises(UserError, match="cannot be listed: Permission denied"):
    source(folder, "Images/a.jpg")


def test_accents_that_look_alike_are_shown_with_escapes(folder, caplog):
  with caplog.at_level(logging.WARNING, "pgjax"):
    source(folder, "Images/" + unicodedata.normalize("NFC", "café.png"))
  assert r"'Images/cafe\u0301.png' for 'Images/caf\xe9.png'" in caplog.text
