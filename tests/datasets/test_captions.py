"""The caption, pair and segmentation data sets, from downloads to records, as their builders do.

Miniature downloads are in raw_captions.py; what big_vision's and TFDS's own builders make of them
was recorded by golden/record_caption_data_sets.py.
"""

import json
import pathlib
import pickle
import unicodedata

import data_set_rows
import pytest
import raw_captions
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from pgjax.data.sources import registry as sources
from pgjax.datasets import base, registry, tables, writing
from pgjax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools.
GOLDEN = pathlib.Path(__file__).parents[1] / "golden/caption_data_sets.json"


def prepare(name, raw, out, part=None, splits=None):
  """Prepares a data set; returns its splits by name, as TFDS describes them."""
  data = registry.find(name)
  splits = splits or list(data.counts(part))
  writing.prepare(data, base.Raw(raw), out, part, splits, writing.Options(workers=2))
  return tfds.builder_from_directory(out / data.full_name(part) / data.version).info


def records(split_info):
  found = []
  for path in split_info.filepaths:
    reader = array_record_module.ArrayRecordReader(str(path))
    found += reader.read([*range(reader.num_records())])
  return found


@pytest.fixture
def raw(tmp_path):
  (tmp_path / "raw").mkdir()
  return tmp_path / "raw"


@pytest.mark.parametrize("name", json.loads(GOLDEN.read_text()))
def test_records_and_their_order_are_those_of_the_builder(name, raw, tmp_path):
  raw_captions.MAKERS[name](raw)
  for part, golden in json.loads(GOLDEN.read_text())[name].items():
    info = prepare(name, raw, tmp_path / "out", part or None, list(golden["splits"]))
    assert str(info.version) == golden["version"]
    assert data_set_rows.features(info) == golden["features"]
    for split, rows in golden["splits"].items():
      assert data_set_rows.normal(records(info.splits[split]), raw) == rows, (part, split)


def test_the_name_of_a_prepared_data_set_is_not_that_of_a_source(raw, tmp_path):
  """coco_captions also names files in COCO's format, which have an fname."""
  raw_captions.coco_captions(raw)
  prepare("coco_captions", raw, tmp_path, splits=["val"])
  spec = dict(name="coco_captions", split="val", data_dir=str(tmp_path))
  assert len(sources.open(spec)) == 3
  assert sources.order_name("coco_captions", spec) == "coco_captions"
  assert sources.order_name("coco_captions", dict(fname="captions.json")) == "jsonl"


def test_pairs_have_both_images_and_the_label_as_a_word(raw, tmp_path):
  for name, split in (("nlvr2", "train"), ("nlvr2", "test"), ("marvl", "test_zh")):
    raw_captions.MAKERS[name](raw)
    info = prepare(name, raw, tmp_path / "out", splits=[split])
    rows = data_set_rows.normal(records(info.splits[split]), raw)
    official = {"train": "train", "test": "test1"}.get(split)
    for row in rows:
      key = row["example_id"][0]
      if name == "marvl":
        n = key.removeprefix("zh-")
        folder = f"file marvl-images/zh/images/{n}-Kürbis"
        names = [f"{folder}/{n}-1.jpg", f"{folder}/{n}-2.jpg"]
        sentence, label = f"zh 图 {n}", str(n == "0")
      else:
        number, pair = key.split("-")[1], int(key[-1])
        folder = f"images/train/{7 + int(number)}" if split == "train" else official
        names = [f"file {folder}/{official}-{number}-0-img{side}.png" for side in (0, 1)]
        sentence, label = f"Two dogs, {2 * int(number) + pair}.", str(pair == 0)
      assert [row["image_left"][0], row["image_right"][0]] == names
      assert (row["sentence"], row["label"]) == ([sentence], [label])
    assert len(rows) == (2 if name == "marvl" else 4)


def test_images_of_pairs_may_be_in_one_folder_or_have_names_in_other_unicode_forms(raw, tmp_path):
  raw_captions.nlvr2(raw)
  for inner in sorted((raw / "images/train").glob("*/*.png")):
    inner.rename(raw / "images/train" / inner.name)
  (raw / "dev").rename(raw / "images/dev")
  for split in ("train", "dev"):
    assert len(records(prepare("nlvr2", raw, tmp_path / split, splits=[split]).splits[split])) == 4
  raw_captions.marvl(raw, ["ta"])
  images = raw / "marvl-images/ta/images"
  for folder in list(images.iterdir()):
    folder.rename(images / unicodedata.normalize("NFD", folder.name))
  assert prepare("marvl", raw, tmp_path, splits=["test_ta"]).splits["test_ta"].num_examples == 2


def half(data):
  return data[: len(data) // 2]


def swap(old, new):
  return lambda data: data.replace(old, new)


REFS = "refcoco/refs(unc).p"
BAD = [  # Data set, file, what happens to its bytes (None: it is missing), and the message.
  ("coco35l", "coco_mt_dev.jsonl", half, r"coco_mt_dev.jsonl, line \d+: not JSON"),
  ("coco35l", "dataset_coco.json", half, "dataset_coco.json: not JSON"),
  ("xm3600", "images/000411001ff7dd41.jpg", None, "lacks 1 of 3 images"),
  ("xm3600", "captions.jsonl", swap(b'"caption":', b'"c":'), "line 1: .*caption"),
  ("coco_captions", "train2014/COCO_train2014_000000164009.jpg", None, "cocoid 164009: .* exist"),
  ("nocaps", "nocaps_val_4500_captions.json", lambda _: b"[]", "nocaps_val.*object"),
  ("text_caps", "TextCaps_0.1_val.json", swap(b'name": "val', b'name": "../x'), "is outside of"),
  ("scicap", "SciCap-Caption-All/val/1001.0025v0-Figure0-N.json", None, "cannot be read"),
  ("screen2_words", "screen2words/screen_summaries.csv", lambda b: b[:-8], "line 18: .* not CSV"),
  (
    "screen2_words",
    "screen2words/screen_summaries.csv",
    lambda b: b + b"9",
    "20: .* not have 2 columns",
  ),
  ("screen2_words", "screen2words/screen_summaries.csv", lambda _: b"a,b", "no column screenId"),
  ("screen2_words", "screen2words/split/dev_screens.txt", lambda _: b"ten", "'ten' is not a whole"),
  ("widgetcap", "combined/30010.json", half, "30010.json: not JSON"),
  ("widgetcap", "combined/30010.jpg", half, "30010.jpg is a JPEG that is cut short"),
  ("nlvr2", "data/dev.json", swap(b'"True"', b'"Yes"'), "dev.json, line 1: label is 'Yes'"),
  ("nlvr2", "dev/dev-1-0-img1.png", None, "dev.json, line 3: .*img1.png does not exist"),
  ("marvl", "marvl-images/sw/images/1-Kürbis/1-2.jpg", None, "marvl-sw.jsonl, line 2: .* exist"),
  ("ref_coco_bv", REFS, half, r"refs\(unc\).p is damaged at byte"),
  ("ref_coco_bv", REFS, lambda _: pickle.dumps(pathlib.Path("/")), "names pathlib"),
  ("ref_coco_bv", REFS, lambda _: pickle.dumps([{"x": 1}]), "field `image_id`"),
  (
    "ref_coco_bv",
    "annotations/instances_train2017.json",
    swap(b"[5, 7,", b"[5, 9,"),
    r"annotation \d+: pycocotools cannot draw",
  ),
  (
    "ref_coco_bv",
    "annotations/instances_train2017.json",
    swap(b"[2, 2, 6.5,", b"[2, 2e30, 6.5,"),
    r"annotation \d+: .* is 2e\+30; expected",
  ),
]


@pytest.mark.parametrize(("name", "file", "change", "message"), BAD)
def test_a_bad_download_is_one_sentence(name, file, change, message, raw, tmp_path):
  raw_captions.MAKERS[name](raw)
  path = raw / file
  path.write_bytes(change(path.read_bytes())) if change else path.unlink()
  part = {"scicap": "first_sentence_subfig_no", "ref_coco_bv": "refcoco_unc"}.get(name)
  known = registry.find(name).counts(part)
  splits = [s for s in ("train", "val", "dev", "dev_zh", "en", "test_sw") if s in known]
  with pytest.raises(UserError, match=message) as caught:
    prepare(name, raw, tmp_path / "out", part, splits)
  assert "\n" not in str(caught.value)


def test_rows_that_fall_out_are_counted(raw, tmp_path, caplog):
  raw_captions.widgetcap(raw)
  view = raw / "combined/30000.json"
  view.write_text(
    view.read_text().replace("[7, 84", "[7, -84", 1).replace("[null, ", "[null, null, ")
  )
  raw_captions.ref_coco_bv(raw)
  coco = raw / "annotations/instances_train2017.json"
  coco.write_text(coco.read_text().replace('"id": 2230000000,', '"id": 5,'))
  raw_captions.xm3600(raw)
  captions = raw / "captions.jsonl"
  captions.write_text(captions.read_text().replace('"sw":', '"xx":', 2))
  caplog.set_level("WARNING", "pgjax.prepare")
  assert prepare("widgetcap", raw, tmp_path, splits=["train"]).splits["train"].num_examples == 2
  flat = prepare("ref_coco_bv", raw, tmp_path, "refcoco_unc", ["train_flat"])
  assert flat.splits["train_flat"].num_examples > 0
  assert prepare("xm3600", raw, tmp_path, splits=["sw"]).splits["sw"].num_examples == 1
  for message in (
    "widgetcap train: 1 dropped: widgets whose box is not on the screen (the first: 30000_0.0)",
    "widgetcap train: 1 dropped: widgets that are not in the view tree of their screen (the first",
    "refcoco_unc train_flat: 1 dropped: objects of sentences that annotations/instances_train2017",
    "xm3600 sw: 2 dropped: images without a caption in 'sw' (the first: 000411001ff7dd40)",
  ):
    assert message in caplog.text


def test_odd_csv_is_read_as_builders_read_it(tmp_path, caplog):
  (tmp_path / "a.csv").write_text('id,text\n1,"a" b\n2,"c, d"\n3,e,f\n')
  expected = [{"id": "1", "text": "a b"}, {"id": "2", "text": "c, d"}, {"id": "3", "text": "e"}]
  assert [row for _, row in tables.rows(base.Raw(tmp_path), "a.csv", ("id", "text"))] == expected
  assert "a.csv: 1 rows have more columns than names" in caplog.text


def test_the_size_of_a_screen_is_read_behind_a_large_profile(raw, tmp_path):
  raw_captions.widgetcap(raw)
  path = raw / "combined/30000.jpg"
  with Image.open(path) as image:
    image.save(path, icc_profile=b"x" * 200_000)
  info = prepare("widgetcap", raw, tmp_path, splits=["train"])
  for row in data_set_rows.normal(records(info.splits["train"]), raw):
    assert (row["width"], row["height"]) == ([54], [96])
