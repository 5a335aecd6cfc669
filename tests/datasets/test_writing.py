"""How pgjax.prepare writes: resumed after a stop, never half, in TFDS's order, split by split."""

import dataclasses
import errno
import json
import os
import re

import numpy as np
import pytest
import raw_questions
import tensorflow_datasets as tfds

from pgjax import disk
from pgjax.data.sources import registry as sources
from pgjax.datasets import base, download, encoding, registry, writing
from pgjax.errors import UserError

HOW = writing.Options(workers=2)
ROWS = 12


def rows(raw, part, split):
  for i in range(ROWS):
    image = raw.image("images", f"{i % 3}.png", f"rows.json, entry {i}")
    yield f"key{i}", dict(number=i, image=image, words=[split] * (i % 3), boxes=[[0.0, i, 1, 2]])


DATA = base.DataSet(
  name="drawn",
  about="for this test",
  source="nowhere",
  features=dict(
    number="int32", image=base.Image(), words=[str], boxes=[base.Array((4,), "float32")]
  ),
  splits={"train": ROWS, "test": None},
  files=lambda part, split: ["images/", f"{split}.json"],
  rows=rows,
)


@pytest.fixture
def raw(tmp_path):
  for i in range(3):
    raw_questions.picture(tmp_path / "raw/images" / f"{i}.png", i)
  for split in DATA.splits:
    raw_questions.write(tmp_path / f"raw/{split}.json", [])
  return base.Raw(tmp_path / "raw")


def prepare(raw, data=DATA, splits=("train",), how=HOW):
  return writing.prepare(data, raw, raw.folder.parent, None, list(splits), how)


def read(raw, split="train"):
  source = sources.open(dict(name="drawn", split=split, data_dir=str(raw.folder.parent)))
  return [source[i] for i in range(len(source))]


def files(raw):
  folder = raw.folder.parent / "drawn/1.0.0"
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


def test_a_stopped_run_continues_with_the_shards_that_it_lacks(raw, monkeypatch):
  monkeypatch.setattr(writing, "SHARD_BYTES", 4000)
  assert prepare(raw).startswith("drawn: train 12 in ")
  whole = files(raw)
  assert len(whole) > 3
  disk_folder = raw.folder.parent / "drawn"
  disk_folder.rename(raw.folder.parent / "whole")

  seen, record = [], encoding.Encoder.record

  def stopping(self, key, example):
    seen.append(key)
    if len(seen) == 8:
      raise KeyboardInterrupt
    return record(self, key, example)

  monkeypatch.setattr(encoding.Encoder, "record", stopping)
  with pytest.raises(KeyboardInterrupt):
    prepare(raw, how=writing.Options(workers=1))
  with pytest.raises(UserError, match="is not prepared"):
    read(raw)
  left = {path.name for path in (disk_folder / ".1.0.0.incomplete").glob("drawn-*")}
  assert 0 < len(left) < len(whole)
  first = len(seen)
  assert prepare(raw).startswith("drawn: train 12 in ")
  assert 12 - 7 <= len(seen) - first < 12
  assert files(raw) == whole
  assert not (disk_folder / ".1.0.0.incomplete").exists()
  assert "prepared earlier" in prepare(raw)


def test_shards_of_other_rows_are_not_taken_up(raw, monkeypatch):
  monkeypatch.setattr(writing, "SHARD_BYTES", 4000)
  monkeypatch.setattr(encoding, "publish", lambda *_: (_ for _ in ()).throw(UserError("stopped")))
  with pytest.raises(UserError, match="stopped"):
    prepare(raw)
  monkeypatch.undo()
  monkeypatch.setattr(writing, "SHARD_BYTES", 4000)
  raw_questions.picture(raw.folder / "images/1.png", 99, (30, 30))
  prepare(raw)
  assert read(raw)[0]["image"] in {(raw.folder / f"images/{i}.png").read_bytes() for i in range(3)}
  images = {row["number"]: row["image"] for row in read(raw)}
  assert images[1] == images[4] == (raw.folder / "images/1.png").read_bytes()


def test_rows_are_in_the_order_of_tfds_and_their_values_are_kept(raw, tmp_path):
  prepare(raw)
  found = read(raw)

  class Drawn(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {k: base.to_tfds(v) for k, v in DATA.features.items()}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {"train": ((k, {**v, "image": v["image"].path}) for k, v in rows(raw, None, "train"))}

    def _generate_examples(self):
      raise NotImplementedError

  tfds.disable_progress_bar()
  builder = Drawn(data_dir=tmp_path / "tfds", file_format="array_record")
  builder.download_and_prepare()
  source = sources.open(dict(name="drawn", split="train", data_dir=str(tmp_path / "tfds")))
  assert [row["number"] for row in found] == [source[i]["number"] for i in range(ROWS)]
  assert [row["number"] for row in found] != list(range(ROWS))
  for i, row in enumerate(found):
    assert row["words"] == ["train"] * (row["number"] % 3) == source[i]["words"]
    boxes = [np.asarray(which["boxes"]).tolist() for which in (row, source[i])]
    assert boxes[0] == boxes[1] == [[0, row["number"], 1, 2]]
    assert row["image"] == source[i]["image"]


def test_a_split_can_be_added_later(raw):
  prepare(raw)
  assert prepare(raw, splits=["train", "test"]).startswith("drawn: train 12, test 12 in ")
  assert [row["words"] for row in read(raw, "test")].count(["test"]) == 4
  assert len(read(raw, "train+test")) == 24
  other = dataclasses.replace(DATA, features={**DATA.features, "more": str})
  with pytest.raises(UserError, match="was prepared with other features"):
    prepare(raw, other)


def test_what_tfds_build_wrote_is_not_taken_for_prepared(raw):
  prepare(raw)
  info = raw.folder.parent / "drawn/1.0.0/dataset_info.json"
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  with pytest.raises(UserError, match="holds tfrecord files, as tfds build writes them"):
    prepare(raw)


def test_bad_images_are_an_error_or_dropped_and_counted(raw, caplog):
  image = raw.folder / "images/1.png"
  image.write_bytes(image.read_bytes()[:-30])
  (raw.folder / "images/2.png").unlink()
  message = (
    r"rows.json, entry 2: .*2.png does not exist; drawn, split 'train', lacks 1 of 3 images "
  )
  message += r"\(in images\)\. Complete the download"
  with pytest.raises(UserError, match=message):
    prepare(raw)
  skip = dataclasses.replace(HOW, skip_bad_images=True)
  assert prepare(raw, how=skip).startswith("drawn: train 4 in ")
  assert {row["number"] % 3 for row in read(raw)} == {0}
  assert "drawn train: 8 of 12 rows dropped" in caplog.text
  assert "train 4 of 12. Is the download complete?" in caplog.text


def test_what_is_no_whole_image_is_named(raw, tmp_path):
  encoder = encoding.Encoder(DATA)

  def error(name, content):
    (raw.folder / "images" / name).write_bytes(content)
    file = base.File(str(raw.folder / "images" / name), "rows.json, entry 0")
    try:
      encoder.record("key", dict(number=0, image=file, words=[], boxes=[]))
    except UserError as raised:
      return str(raised)

  kinds = {}
  for kind in ("jpg", "png", "gif", "webp"):
    raw_questions.picture(tmp_path / f"whole.{kind}", 5, (64, 64))
    kinds[kind] = (tmp_path / f"whole.{kind}").read_bytes()
    assert error(f"a.{kind}", kinds[kind]) is None
    cut = error(f"a.{kind}", kinds[kind][:-90])
    name = dict(jpg="JPEG").get(kind, kind.upper())
    message = rf"rows.json, entry 0: \S+/images/a.{kind} is (a {name} that is cut short|damaged) \("
    assert re.match(message, cut), cut
    assert "--skip_bad_images" in cut
  assert error("b.png", kinds["png"] + b"junk" * 2000) is None
  assert "c.jpg is empty" in error("c.jpg", b"")
  assert "c.jpg is damaged (" in error("c.jpg", kinds["jpg"][:10])
  for content in (b"<html>404</html>", b"PK\x03\x04"):
    assert "c.jpg is not an image" in error("c.jpg", content)


def test_two_rows_with_one_id_are_an_error(raw):
  twice = dataclasses.replace(DATA, rows=lambda *_: [(5, {}), (6, {}), ("5", {})])
  with pytest.raises(UserError, match=r"rows 0 and 2 have the same id 5\."):
    prepare(raw, twice)
  with pytest.raises(UserError, match="no rows for the split 'train'"):
    prepare(raw, dataclasses.replace(DATA, rows=lambda *_: iter(())))


def test_a_full_disk_is_one_sentence(raw, monkeypatch):
  monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
  with pytest.raises(UserError, match=r"needs about 0.0 GB and its disk has 0.0 GB free"):
    prepare(raw)
  monkeypatch.undo()

  def full(_):
    raise RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; writing x")  # As the library.

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
    prepare(raw)


def test_two_runs_do_not_write_one_folder(raw):
  work = raw.folder.parent / "drawn/.1.0.0.incomplete"
  message = r"Another pgjax\.prepare is writing"
  with writing.lock(work), pytest.raises(UserError, match=message):
    prepare(raw)


def test_a_linked_folder_of_images_is_read(raw, tmp_path):
  (raw.folder / "images").rename(tmp_path / "elsewhere")
  (raw.folder / "images").symlink_to(tmp_path / "elsewhere")
  prepare(raw)
  assert len(read(raw)) == ROWS


def test_all_missing_files_are_named_at_once_with_what_to_do(raw):
  def lacking():
    with pytest.raises(UserError) as error:
      download.check(DATA, raw.folder, [None], ["train", "test"])
    return str(error.value)

  (raw.folder / "test.json").unlink()
  assert f"lacks {raw.folder}/test.json; to prepare what is there: --splits=train" in lacking()
  (raw.folder / "train.json").unlink()
  (raw.folder / "images").rename(raw.folder / "photos")
  message = lacking()
  assert all(name in message for name in ("images/,", "train.json,", "test.json;"))
  assert message.endswith("they come from nowhere.")
  (raw.folder / "images.zip").touch()
  assert f"unpack {raw.folder}/images.zip" in lacking()
  (raw.folder / "images.zip").unlink()
  inner = raw.folder / "inner"
  inner.mkdir()
  (raw.folder / "photos").rename(inner / "images")
  for split in DATA.splits:
    (inner / f"{split}.json").write_text(json.dumps([]))
  assert f"they are in {inner}: use --raw={inner}" in lacking()


def test_every_data_set_is_described(capsys):
  known = registry.all_data_sets()
  table = registry.help_table()
  for name, data in known.items():
    assert name in table
    text = download.describe(data)
    part = data.part_names()[0]
    files = {file for split in data.counts(part) for file in data.files(part, split)}
    assert all(one.rstrip("?") in text for file in files for one in file.split("|"))
    assert data.source in text
