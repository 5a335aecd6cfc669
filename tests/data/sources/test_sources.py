import json
import os
import threading

import numpy as np
import pytest
from PIL import Image

from pgjax.data.sources import easy_vqa, registry
from pgjax.errors import UserError
from pgjax.formats import input_files


@pytest.fixture
def folder(tmp_path):
  """images/0.png ... images/4.png, and train.jsonl with a line for each."""
  (tmp_path / "images").mkdir()
  for i in range(5):
    Image.fromarray(np.full((4, 6, 3), 10 * i, np.uint8)).save(tmp_path / f"images/{i}.png")
  write(tmp_path, [dict(image=f"images/{i}.png", prefix="p", suffix=f"s{i}") for i in range(5)])
  return tmp_path


def write(folder, rows):
  lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def open_jsonl(folder, **more):
  return registry.open(dict(name="jsonl", fname=str(folder / "train.jsonl"), **more))


GOOD = dict(image="images/0.png", prefix="p", suffix="s")


def test_jsonl_gives_bytes_and_all_other_fields(folder):
  write(folder, [GOOD, "", dict(GOOD, image="images/3.png", extra=[1, 2], id="mine")])
  source = open_jsonl(folder)
  assert len(source) == 2
  assert source[0]["image"] == (folder / "images/0.png").read_bytes()
  assert source[0]["id"] == "0"
  assert (source[1]["extra"], source[1]["id"]) == ([1, 2], "mine")
  assert not any(isinstance(value, bytes) for value in source.texts(1).values())
  assert source.where(1).endswith("train.jsonl, line 3 (image images/3.png)")


def test_jsonl_takes_a_root_rows_and_lists_of_images(folder):
  write(folder, [dict(GOOD, image="0.png"), dict(GOOD, image=["1.png", "2.png"])])
  source = open_jsonl(folder, root=str(folder / "images"), start=1)
  assert len(source) == 1
  assert source[0]["image"] == [(folder / f"images/{i}.png").read_bytes() for i in (1, 2)]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"image": "images/0.png", "prefix": }', r"line 2: not JSON \(.*byte 36.*Each line is"),
    ("[1, 2]", r"line 2: \$ is \[1, 2\]; expected `object`"),
    (dict(prefix="p"), "line 2: 'image' must be a file name .* not None"),
    (dict(GOOD, image=7), "line 2: 'image' must be a file name .* not 7"),
    (dict(GOOD, image=[]), "line 2: 'image' must be a file name"),
    (dict(GOOD, image="images/9.png"), "line 2: image 'images/9.png' is not in"),
    (dict(GOOD, image="other/0.png"), "line 2: image 'other/0.png' is not in"),
    (dict(GOOD, image="../secret.png"), "line 2: image '../secret.png' is outside of"),
    (dict(GOOD, image="images/../../x.png"), "line 2: image .* is outside of"),
    (dict(GOOD, image="/etc/hostname"), "line 2: image '/etc/hostname' is outside of"),
  ],
)
def test_a_bad_line_raises_with_file_and_line(folder, line, message):
  write(folder, [GOOD, line])
  with pytest.raises(UserError, match=f"train.jsonl, {message}"):
    open_jsonl(folder)


def test_unreadable_files_raise(folder):
  with pytest.raises(UserError, match=r"nothing\.jsonl cannot be read: No such file"):
    registry.open(dict(name="jsonl", fname=str(folder / "nothing.jsonl")))
  write(folder, [""])
  with pytest.raises(UserError, match="has no examples"):
    open_jsonl(folder)
  (folder / "train.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"image": "\xff"}')
  with pytest.raises(UserError, match="line 2: this is not UTF-8"):
    open_jsonl(folder)


def test_big_vision_spells_root_as_fopen_keys(folder):
  write(folder, [dict(GOOD, image="2.png")])
  spec = dict(fname=str(folder / "train.jsonl"), fopen_keys=dict(image=str(folder / "images/")))
  source = registry.open(dict(name="bv:jsonl", **spec))
  assert source[0]["image"] == (folder / "images/2.png").read_bytes()


def test_easy_vqa_is_whole():
  train = registry.open(dict(name="easy_vqa", split="train"))
  test = registry.open(dict(name="easy_vqa", split="test"))
  assert (len(train), len(test)) == (38_575, 9_673)
  assert train[0]["question"] == "what is the blue shape?"
  assert train[0]["answer"] == "rectangle"
  assert train[0]["image"] is train[1]["image"]  # Four questions on one image share its bytes.
  assert test[9_672]["id"] == 9_672


def test_splits_can_be_cut():
  assert len(registry.open(dict(name="easy_vqa", split="test[:5%]"))) == 484
  middle = registry.open(dict(name="easy_vqa", split="test[10:20]"))
  assert [middle[i]["id"] for i in range(len(middle))] == list(range(10, 20))
  assert len(registry.open(dict(name="easy_vqa", split="test[-7:]"))) == 7


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    (dict(split="train"), "has no name"),
    (dict(name="easy_vqa", split="val"), "no split 'val'; it has train and test"),
    (dict(name="easy_vqa", split="train[5%"), "is invalid"),
    (dict(name="easy_vqa", split="train[:" + "9" * 5000 + "]"), "is invalid"),
    (dict(name="easy_vqa"), "missing a required argument: 'split'"),
    (dict(name="easy_vqa", split="train[:0]"), "has no examples"),
    (dict(name="jsonl", fnam="x"), "missing a required argument: 'fname'; its fields are fname"),
    (dict(name="easy_vqa", split="test", spilt=1), "unexpected keyword argument 'spilt'"),
  ],
)
def test_a_mistake_in_the_description_raises(spec, message):
  with pytest.raises(UserError, match=message):
    registry.open(spec)


def test_a_missing_data_set_raises_with_how_to_prepare_it(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError, match=r"not prepared in .*: python -m pgjax.prepare chartqa --raw"):
    registry.open(dict(name="chartqa/human", split="train"))
  with pytest.raises(UserError, match=r"'voc' is not prepared in .*other: prepare it with TFDS"):
    registry.open(dict(name="voc", split="train", data_dir=str(tmp_path / "other")))


@pytest.mark.parametrize("name", ["coco", "jsonl", "csv"])
def test_a_file_of_examples_on_a_disk_that_does_not_answer_is_named(tmp_path, monkeypatch, name):
  path, returns, stat, raised = tmp_path / "rows.dead", threading.Event(), os.stat, []

  def hanging(of, *args, **more):
    if str(of) == str(path):
      returns.wait(60)
    return stat(of, *args, **more)

  def opened():
    with pytest.raises(UserError) as error:
      registry.open(dict(name=name, fname=str(path)))
    raised.append(str(error.value))

  monkeypatch.setattr(os, "stat", hanging)
  monkeypatch.setattr(input_files, "WAIT_SECONDS", 0.1)
  thread = threading.Thread(target=opened, daemon=True)
  thread.start()
  thread.join(20)
  returns.set()
  assert f"{path} cannot be read: no answer for 0.1 s; is its disk" in "".join(raised)


def test_easy_vqa_reads_an_image_once_and_only_when_asked(monkeypatch):
  read, file_bytes = [], easy_vqa.files.file_bytes
  monkeypatch.setattr(
    easy_vqa.files, "file_bytes", lambda path: read.append(path) or file_bytes(path)
  )
  source = registry.open(dict(name="easy_vqa", split="test"))
  assert not read
  images = [source[i]["image"] for i in (0, 1, 0)]
  assert len(read) == len({source.texts(i)["image_id"] for i in (0, 1)})
  assert images[0] == images[2]
  assert images[0].startswith(b"\x89PNG")


def test_easy_vqa_reads_a_file_of_questions_once_for_all_its_parts(monkeypatch):
  package = pytest.importorskip("easy_vqa")
  read, questions = [], package.get_train_questions
  monkeypatch.setattr(package, "get_train_questions", lambda: read.append(1) or questions())
  parts = [registry.open(dict(name="easy_vqa", split=f"train[{k}:9]")) for k in (0, 3)]
  assert len(read) <= 1  # 0 if another test has read it.
  assert [row["id"] for part in parts for row in map(part.texts, range(len(part)))] == [
    *range(9), *range(3, 9),
  ]  # fmt: skip
