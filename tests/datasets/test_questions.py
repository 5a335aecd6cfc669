"""The question-answering data sets, from miniature downloads: what big_vision's builders give.

tests/golden/question_data_sets.json holds features and rows of the reference's builders on the same
downloads, in their order.
"""

import io
import json
import pathlib

import data_set_rows
import numpy as np
import pytest
import raw_questions
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from pgjax.data.sources import registry as sources
from pgjax.datasets import ai2d, base, download, registry, stvqa, writing
from pgjax.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/question_data_sets.json"
HOW = writing.Options(workers=2)


@pytest.fixture
def raw(tmp_path):
  (tmp_path / "raw").mkdir()
  return tmp_path / "raw"


def main_splits(data, part):
  return [split for split in data.counts(part) if split not in data.extra_splits]


def prepare(name, raw, out, options=None):
  """Prepares all parts; returns {full name: TFDS's description of it}."""
  data, infos = registry.find(name), {}
  for part in data.part_names():
    splits = main_splits(data, part)
    download.check(data, raw, [part], splits)
    writing.prepare(data, base.Raw(raw, options), out, part, splits, HOW)
    full = data.full_name(part)
    infos[full] = tfds.builder_from_directory(out / full / data.version).info
  return infos


def records(split_info):
  found = []
  for path in split_info.filepaths:
    reader = array_record_module.ArrayRecordReader(str(path))
    found += reader.read([*range(reader.num_records())])
  return found


def read_back(name, split, out):
  """The rows as training reads them."""
  source = sources.open(dict(name=name, split=split, data_dir=str(out)))
  return [source[i] for i in range(len(source))]


def comparable(name, row):
  """A row without pixels that depend on the version of a library."""
  if name == "ai2d" and row["abc_label"] == [1]:  # Drawn by the font library: tested below.
    return {k: v for k, v in row.items() if k != "image"}
  return row


def test_features_and_rows_are_those_of_the_reference(tmp_path):
  pytest.importorskip("pyarrow")
  golden, seen = json.loads(GOLDEN.read_text()), set()
  for name, make in raw_questions.MAKERS.items():
    if name == "ocrvqa_id":  # Its builder is not public.
      continue
    raw = tmp_path / f"raw-{name}"
    raw.mkdir()
    make(raw)
    options = {}
    if name == "stvqa":
      options["val_ids"] = raw / "val.txt"
      options["val_ids"].write_text("\n".join(raw_questions.STVQA_VAL))
    for full, info in prepare(name, raw, tmp_path, options).items():
      expected = golden[full]
      seen.add(full)
      assert str(info.version) == expected["version"]
      assert info.features["image"].to_json_content().encoding_format == expected["encoding"]
      assert data_set_rows.features(info) == expected["features"], full
      assert info.splits.keys() == expected["splits"].keys()
      for split, rows in expected["splits"].items():
        found = data_set_rows.normal(records(info.splits[split]), raw)
        assert len(found) == len(rows)
        for row, other in zip(found, rows, strict=True):
          assert comparable(name, row) == comparable(name, other), (full, split)
  assert seen == golden.keys()


def test_the_archives_of_later_years_are_read(raw, tmp_path):
  raw_questions.docvqa(raw)
  raw_questions.infovqa(raw)
  before = {name: prepare(name, raw, tmp_path / "a")[name] for name in ("docvqa", "infovqa")}
  later = {"spdocvqa_qas": "*v1.0*.json", "infographicsvqa_qas": "info*.json"}
  for folder, pattern in reversed(later.items()):
    (raw / folder).mkdir()
    for path in raw.glob(pattern):
      path.rename(raw / folder / path.name)
  (raw / "images").rename(raw / "infographicsvqa_images")
  (raw / "val/documents").rename(raw / "spdocvqa_images")  # As if all splits were together.
  expected = read_back("docvqa", "val", tmp_path / "a")
  data = registry.find("docvqa")
  download.check(data, raw, [None], ["val"])
  writing.prepare(data, base.Raw(raw), tmp_path / "b", None, ["val"], HOW)
  found = read_back("docvqa", "val", tmp_path / "b")
  assert [row["image"] for row in found] == [row["image"] for row in expected]
  assert found[0]["image/filename"].startswith("documents/")
  info = prepare("infovqa", raw, tmp_path / "b")["infovqa"]
  for split in before["infovqa"].splits:
    assert records(info.splits[split]) == records(before["infovqa"].splits[split])


def test_questions_about_lost_covers_are_dropped_and_counted(raw, tmp_path, caplog):
  raw_questions.ocrvqa_id(raw)
  info = prepare("ocrvqa_id", raw, tmp_path)["ocrvqa_id"]
  assert {name: split.num_examples for name, split in info.splits.items()} == dict(
    train=6, val=4, test=4
  )
  rows = {split: read_back("ocrvqa_id", split, tmp_path) for split in info.splits}
  assert sorted(row["int_id"] for row in rows["train"]) == [0, 1, 2, 3, 8, 9]
  row = next(row for row in rows["val"] if row["int_id"] == 13)
  assert (row["question"], row["answer"], row["image/id"]) == ("Is this 6?", "Yes", "006")
  assert row["image"] == (raw / "images/006.jpg").read_bytes()
  assert "ocrvqa_id train: 2 of 8 rows dropped" in caplog.text
  assert "covers that can no longer be downloaded" in caplog.text


def test_letters_cover_the_texts_of_a_diagram(raw):
  raw_questions.ai2d(raw)
  diagram = np.asarray(Image.open(raw / "ai2d/images/0.png"))
  found = dict(ai2d.DATA.rows(base.Raw(raw), None, "train"))
  file = found["2.png-0"]["image"]
  drawn = np.asarray(Image.open(io.BytesIO(file.edit(pathlib.Path(file.path).read_bytes()))))
  box = drawn[10:41, 10:61]
  assert (drawn[0, 0] == np.asarray(Image.open(raw / "ai2d/images/2.png"))[0, 0]).all()
  assert box.max(axis=(0, 1)).tolist() == [255] * 3
  assert box.min() == 0
  dark = np.argwhere(box.max(axis=2) < 128)
  assert np.ptp(dark[:, 0]) > 15  # The letter is as high as fits, and in the middle.
  assert abs(dark[:, 1].mean() - 25) < 4
  assert diagram.shape == drawn.shape
  assert found["2.png-1"]["image"].edit is None  # Its choices are words.


def test_the_validation_split_of_stvqa_is_seeded_or_listed(raw, caplog):
  rows = [dict(question_id=i, question="?", file_path=f"a/{i % 900}.jpg") for i in range(1800)]
  raw_questions.write(raw / "train_task_3.json", dict(data=rows))

  def ids(split, **options):
    return {key for key, _ in stvqa.DATA.rows(base.Raw(raw, options), None, split)}

  train, val = ids("train"), ids("val")
  assert train | val == set(range(1800))
  assert not train & val
  assert 0.08 < len(val) / 1800 < 0.13
  assert all((i + 900) % 1800 in val for i in val)  # By image.
  assert "scores are not comparable" in caplog.text
  listed = raw / "val.txt"
  listed.write_text("a/3.jpg\r\n\na/5.jpg\n")
  assert ids("val", val_ids=listed) == {3, 903, 5, 905}
  listed.write_text("a/3.jpg\nb/5.jpg\n")
  with pytest.raises(UserError, match=r"1 of 2 lines are no file_path .* the first is 'b/5.jpg'"):
    ids("val", val_ids=listed)


def test_what_is_wrong_with_a_download_is_one_sentence(tmp_path):
  """For each data set: a file is missing, a JSON is cut short, an image is missing or cut short."""
  pytest.importorskip("pyarrow")
  for name, make in raw_questions.MAKERS.items():
    raw, data = tmp_path / name, registry.find(name)
    raw.mkdir()
    make(raw)
    part = data.part_names()[0]
    split = main_splits(data, part)[0]
    needed = [file.split("|")[0] for file in data.files(part, split)]
    expect(data, raw, part, split, hide(raw, needed[0]), "lacks")
    for file in needed:
      if file.endswith(".json"):
        path = raw / file
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        expect(data, raw, part, split, lambda p=path, c=content: p.write_bytes(c), file)
    files = [f for _, row in data.rows(base.Raw(raw), part, split) for f in writing.files_of(row)]
    if not files:
      continue  # Images inside of a Parquet file.
    path = next(pathlib.Path(f.path) for f in files if pathlib.Path(f.path).exists())
    if split not in data.lost_images:
      expect(data, raw, part, split, hide(raw, str(path.relative_to(raw))), "does not exist")
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    expect(data, raw, part, split, lambda p=path, c=content: p.write_bytes(c), path.name)


def hide(raw, name):
  """Moves a file or folder away; returns a function that brings it back."""
  path = next(iter(raw.glob(name.rstrip("/"))))
  away = path.rename(path.with_name("away"))
  return lambda: away.rename(path)


def expect(data, raw, part, split, mend, text):
  """One sentence with the text, and nothing that reads as a data set."""
  out, message = raw.parent / "out", None
  try:
    download.check(data, raw, [part], [split])
    writing.prepare(data, base.Raw(raw), out, part, [split], HOW)
  except UserError as error:
    message = str(error)
  mend()
  assert message is not None, (data.name, text)
  assert text in message, (data.name, message)
  assert "\n" not in message
  assert not (out / data.full_name(part) / data.version).exists()
