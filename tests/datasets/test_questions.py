"""The question-answering data sets, from miniature downloads: what big_vision's builders give.

tests/golden/question_data_sets.json holds features and rows of the reference's builders on the same
downloads, in their order.
"""

import hashlib
import importlib.util
import io
import json
import pathlib

import numpy as np
import pytest
import raw_questions
from PIL import Image

from pgjax.data.sources import registry as sources
from pgjax.datasets import ai2d, base, download, registry, stvqa, writing
from pgjax.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/question_data_sets.json"
HOW = writing.Options(workers=2)
# Images that the reference decodes and encodes again: pixels are compared, and not bytes.
ENCODED_AGAIN = {"countbenchqa", "rsvqa_lr/all", "rsvqa_lr/nonum", "textvqa"}


@pytest.fixture
def raw(tmp_path):
  (tmp_path / "raw").mkdir()
  return tmp_path / "raw"


def main_splits(data, part):
  return [split for split in data.counts(part) if split not in data.extra_splits]


def prepare(name, raw, out, options=None):
  """Prepares all parts; returns {full name: {split: rows}}, read as training reads them."""
  data, read = registry.find(name), {}
  for part in data.part_names():
    splits = main_splits(data, part)
    download.check(data, raw, [part], splits)
    writing.prepare(data, base.Raw(raw, options), out, part, splits, HOW)
    full = data.full_name(part)
    read[full] = {split: read_back(full, split, out) for split in splits}
  return read


def read_back(name, split, out):
  if "-" in split:
    return read_by_tfds(name, split, out)
  source = sources.open(dict(name=name, split=split, data_dir=str(out)))
  return [source[i] for i in range(len(source))]


def read_by_tfds(name, split, out):
  """For split names with a dash."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(out / name / registry.find(name).version)
  found = builder.as_data_source(split, decoders=dict(image=tfds.decode.SkipDecoding()))
  return [{k: v if k == "image" else as_text(v) for k, v in row.items()} for row in found]


def as_text(value):
  if isinstance(value, list | np.ndarray):
    return [as_text(inner) for inner in value]
  return value.decode() if isinstance(value, bytes) else value


def features(data):
  """{name: [shape, dtype]}, with the encoding of the image."""
  feature, found = base.to_tfds(data.features), {}
  for name, info in feature.get_tensor_info().items():
    found[name] = [list(info.shape), np.dtype(info.np_dtype).name]
  found["image"].append(feature["image"].to_json_content().encoding_format)
  return found


def json_value(value):
  """As json reads it back."""
  if isinstance(value, list):
    return [json_value(inner) for inner in value]
  return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def digest(data):
  return hashlib.sha256(data).hexdigest()[:16]


def same_image(name, row, hashes):
  """Whether a row has the reference's image: its bytes, or only its pixels."""
  if digest(row["image"]) == hashes[0]:
    return True
  if name == "ai2d" and row["abc_label"]:
    return True  # Letters depend on the font library: test_letters_cover_the_texts_of_a_diagram.
  if name == "textvqa" and importlib.util.find_spec("simplejpeg") is None:
    return True
  pixels = np.asarray(Image.open(io.BytesIO(row["image"])))
  return name in ENCODED_AGAIN and digest(pixels.tobytes()) == hashes[1]


def test_features_and_rows_are_those_of_the_reference(tmp_path):
  pytest.importorskip("pyarrow")
  golden, seen = json.loads(GOLDEN.read_text()), {}
  for name, make in raw_questions.MAKERS.items():
    raw = tmp_path / f"raw-{name}"
    raw.mkdir()
    make(raw)
    options = {}
    if name == "stvqa":
      options["val_ids"] = raw / "val.txt"
      options["val_ids"].write_text("\n".join(raw_questions.STVQA_VAL))
    if name != "ocrvqa_id":  # Its builder is not public.
      seen |= prepare(name, raw, tmp_path, options)
  assert seen.keys() == golden.keys()
  for name, splits in seen.items():
    assert features(registry.find(name.split("/")[0])) == golden[name]["features"], name
    assert splits.keys() == golden[name]["splits"].keys()
    for split, rows in splits.items():
      expected = golden[name]["splits"][split]
      assert len(rows) == len(expected)
      for row, other in zip(rows, expected, strict=True):
        assert same_image(name, row, other["image"]), (name, split)
        texts = {k: json_value(v) for k, v in row.items() if k in other and k != "image"}
        assert texts == {k: v for k, v in other.items() if k != "image"}, (name, split)


def test_questions_about_lost_covers_are_dropped_and_counted(raw, tmp_path, caplog):
  raw_questions.ocrvqa_id(raw)
  rows = prepare("ocrvqa_id", raw, tmp_path)["ocrvqa_id"]
  assert {split: len(found) for split, found in rows.items()} == dict(train=6, val=4, test=4)
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
    expect(data, raw, part, split, hide(raw, data.files(part, split)[0]), "lacks")
    for file in data.files(part, split):
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
