"""What a source leaves out, guesses or ignores is counted and said, or refused."""

import json
import logging
import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pgjax.data import video as video_files
from pgjax.data.sources import registry
from pgjax.errors import UserError, naming
from pgjax.formats import input_files


@pytest.fixture
def image(tmp_path):
  """Saves a picture of 8 x 8 pixels below the folder and returns its path."""

  def save(name):
    (path := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (len(name), 1, 2)).save(path)
    return path

  return save


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content)
  return path


def opened(name, fname, **fields):
  return registry.open(dict(name=name, fname=str(fname), **fields))


def test_folders_of_splits_are_no_classes(tmp_path, image):
  for name in ("train/cat/a.png", "val/cat/b.png"):
    image(f"data/{name}")
  with pytest.raises(UserError, match="has the splits train, val, each with folders of classes"):
    opened("folder", tmp_path / "data", prompt="what?")
  assert opened("folder", tmp_path / "data", split="val", prompt="what?")[0]["suffix"] == "cat"
  image("vehicles/train/a.png")  # A class.
  image("vehicles/bus/b.png")
  assert len(opened("folder", tmp_path / "vehicles", prompt="what?")) == 2


def test_pictures_and_links_that_are_not_read_are_counted(tmp_path, image, caplog):
  image("data/cat/a.png")
  image("elsewhere/b.png")
  (tmp_path / "data/dog").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "data/circle").symlink_to("circle")
  write(tmp_path / "data/cat/c.HEIC", "")
  write(tmp_path / "data/cat/notes.md", "")
  with caplog.at_level(logging.WARNING, "pgjax"):
    source = opened("folder", tmp_path / "data", prompt="what?")
  assert len(source) == 1
  assert source.omitted == f"2 that are not read ({os.path.join('cat', 'c.HEIC')}, dog)"
  assert source.omitted in caplog.text


def test_labels_without_images_and_images_without_labels_are_counted(tmp_path, image):
  for name in ("a", "b"):
    image(f"yolo/images/{name}.png")
    write(tmp_path / f"yolo/labels/{name}.txt", "0 0.5 0.5 0.5 0.5\n")
  write(tmp_path / "yolo/data.yaml", "train: images/list.txt\nnames: [cat]\n")
  write(tmp_path / "yolo/images/list.txt", "a.png\n")
  yolo = opened("yolo", tmp_path / "yolo/data.yaml")
  assert yolo.notes == []  # The label of b.png, which is in another split, has an image.
  write(tmp_path / "yolo/labels/gone.txt", "0 0.5 0.5 0.5 0.5\n")
  write(tmp_path / "yolo/labels/classes.txt", "cat\n")
  yolo = opened("yolo", tmp_path / "yolo/data.yaml")
  assert yolo.notes == [f"1 label files have no image, such as {tmp_path / 'yolo/labels/gone.txt'}"]
  for name in ("a", "b", "c"):
    image(f"voc/{name}.png")
  box = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax>"
  xml = f"<object><name>cat</name><bndbox>{box}</bndbox></object>"
  write(tmp_path / "voc/a.xml", f"<annotation><filename>a.png</filename>{xml}</annotation>")
  assert opened("voc", tmp_path / "voc").omitted == "2 images without an XML file"


def test_a_split_that_chooses_nothing_is_said(tmp_path, image, caplog):
  image("a.png")
  row = json.dumps(dict(image="a.png", prefix="p", suffix="s")) + "\n"
  for name in ("rows.jsonl", "val.jsonl"):
    write(tmp_path / name, row)
  pq.write_table(
    pa.table(dict(image=["a.png"], prefix=["p"], suffix=["s"])), tmp_path / "p.parquet"
  )
  for name, fname in (("jsonl", "rows.jsonl"), ("parquet", "p.parquet")):
    with caplog.at_level(logging.WARNING, "pgjax"):
      source = opened(name, tmp_path / fname, split="val")
    assert f"split='val' chooses nothing: all of {tmp_path / fname} is read" in caplog.text
    caplog.clear()
    opened(name, tmp_path / fname)
    assert not caplog.records
  source = opened("jsonl", tmp_path / "val.jsonl", split="val")
  assert not getattr(source, "notes", ())


def test_parquet_files_of_several_splits_are_not_mixed(tmp_path):
  table = pa.table(dict(image=[b""], prefix=["p"], suffix=["s"]))
  for name in ("train-00000-of-00001", "test-00000-of-00001", "notes"):
    (tmp_path / "data").mkdir(exist_ok=True)
    pq.write_table(table, tmp_path / f"data/{name}.parquet")
  for name in ("parquet", "hf"):
    with pytest.raises(UserError, match="of several splits, test, train: choose one with split="):
      opened(name, tmp_path)
    assert len(opened(name, tmp_path, split="train")) == 1


def test_no_label_is_no_answer(tmp_path):
  described = dict(info=dict(features=dict(suffix=dict(_type="ClassLabel", names=["no", "yes"]))))
  table = pa.table(dict(image=[b"x"] * 3, prefix=["p"] * 3, suffix=[1, -1, 0]))
  table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
  pq.write_table(table, tmp_path / "a.parquet")
  source = opened("parquet", tmp_path / "a.parquet")
  assert [source.texts(i)["suffix"] for i in range(3)] == ["yes", None, "no"]
  assert "image" not in source.texts(0)  # Which has no name.


def test_a_json_list_with_a_mistake_is_named_as_one(tmp_path):
  path = write(tmp_path / "a.json", '[\n {"image": "a.png", "prefix": "p", "suffix": "s"},\n]')
  with pytest.raises(
    UserError, match=r"a.json: not JSON \(.*\). It begins as one JSON list of all"
  ):
    opened("json", path)


def test_other_names_and_columns_are_said_by_the_source(tmp_path, image):
  image("images/a.png")
  row = json.dumps(dict(file_name="images\\a.png", prefix="p", suffix="s")) + "\n"
  source = opened("jsonl", write(tmp_path / "rows.jsonl", row))
  renamed, respelled = source.read_as
  assert renamed == "image from 'file_name' (1)"
  assert respelled.startswith("1 of 1 images have another name on the disk (1 by backslashes)")


def test_an_end_of_minus_one_is_that_of_the_video(tmp_path, image):
  for i in range(3):
    image(f"clip/{i}.png")
  row = dict(video="clip", start=0, end=-1, prefix="p", suffix="s")
  path = write(tmp_path / "rows.jsonl", json.dumps(row) + "\n")
  assert len(opened("video", path, num_frames=3, fps=1)[0]["episodic_images"]) == 3
  write(path, json.dumps(row | dict(end=-2)) + "\n")
  with pytest.raises(UserError, match="'end' must be a time in seconds, not -2"):
    opened("video", path, num_frames=3, fps=1)


@pytest.mark.parametrize("name", ["video", "yolo", "folder", "roboflow", "hf", "parquet", "voc"])
def test_a_disk_that_does_not_answer_is_named(tmp_path, image, monkeypatch, name):
  """Whatever a source asks of it: whether a folder is there, what is in it, when it changed."""
  returns, raised = threading.Event(), []
  clip = image("dead/clip/0.png").parent
  row = dict(video="dead/clip", prefix="p", suffix="s")
  path = write(tmp_path / "rows.jsonl", json.dumps(row) + "\n") if name == "video" else clip.parent

  def hanging(real):
    def call(of, *args, **more):
      if str(of).startswith(str(clip.parent)):
        returns.wait(60)
      return real(of, *args, **more)

    return call

  def use():
    with pytest.raises(UserError) as error:
      opened(name, path)[0]
    raised.append(str(error.value))

  for function in ("stat", "scandir"):
    monkeypatch.setattr(os, function, hanging(getattr(os, function)))
  for function in ("isdir", "exists"):
    monkeypatch.setattr(os.path, function, hanging(getattr(os.path, function)))
  monkeypatch.setattr(input_files, "WAIT_SECONDS", 0.1)
  thread = threading.Thread(target=use, daemon=True)
  thread.start()
  thread.join(20)
  returns.set()
  assert "no answer for 0.1 s; is its disk" in "".join(raised)


def test_the_times_of_a_video_on_such_a_disk_are_not_waited_for(monkeypatch):
  returns, raised = threading.Event(), []
  monkeypatch.setattr(os, "stat", lambda *_: returns.wait(60))
  monkeypatch.setattr(input_files, "WAIT_SECONDS", 0.1)

  def use():
    with pytest.raises(UserError) as error:
      video_files.times("/dead/a.mp4")
    raised.append(str(error.value))

  thread = threading.Thread(target=use, daemon=True)
  thread.start()
  thread.join(20)
  returns.set()
  assert "the video cannot be read: no answer for 0.1 s" in "".join(raised)


def test_a_row_without_an_image_says_what_it_has(tmp_path):
  path = write(tmp_path / "a.jsonl", '{"Image": "a.png", "prefix": "p", "suffix": "s"}\n')
  with pytest.raises(UserError, match=r"not None; the row has 'Image', and image= names a column"):
    opened("jsonl", path)


def test_a_range_of_rows_has_whole_numbers(tmp_path):
  for value in ("5", 1.5, True):
    with pytest.raises(UserError, match=f"start={value!r} must be the number of a row"):
      opened("csv", tmp_path / "a.csv", start=value)


def test_a_file_is_named_once(tmp_path, image):
  image("images/a.png")
  path = tmp_path / "data.yaml"
  path.write_bytes("train: images\nnames: [a]\n".encode("utf-16"))
  with pytest.raises(UserError) as error:
    opened("yolo", path)
  assert str(error.value).count(str(path)) == 1
  with pytest.raises(input_files.StalledError, match=r"^row 1: no answer$"), naming("row 1"):
    raise input_files.StalledError("no answer")
