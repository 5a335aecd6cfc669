"""Any source as JSONL with images, or as ArrayRecord: the same rows."""

import json

import numpy as np
import pytest
from PIL import Image

from pgjax.data import export, loader as loader_lib, pipeline, tokenizer
from pgjax.data.sources import registry
from pgjax.errors import UserError


@pytest.fixture
def folder(tmp_path):
  """a/0.png, b/0.png and c.jpg; rows.csv with the columns file, question and answer."""
  rng = np.random.default_rng(0)
  for name in ("a/0.png", "b/0.png", "c.jpg"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8)).save(tmp_path / name)
  rows = ["file,question,answer", "a/0.png,what?,1", 'b/0.png,"a, b?",é', "a/0.png,<image>x,2"]
  (tmp_path / "rows.csv").write_text("\n".join([*rows, "c.jpg,y,3"]) + "\n", encoding="utf-8")
  return tmp_path


def spec(folder):
  return dict(name="csv", fname=str(folder / "rows.csv"), image="file", prefix="question",
              suffix="answer")  # fmt: skip


def arrays(data):
  (part,) = pipeline.parts(data)
  layout = loader_lib.Layout(res=8, text_len=64, num_frames=0, for_training=True)
  pp = "decode|resize(8)|value_range(-1, 1)"
  load = loader_lib.Loader(part, pp, tokenizer.load("tiny"), layout, seed=0)
  return [load(0, i).arrays for i in range(len(part.source))]


def test_what_is_written_as_jsonl_is_read_as_the_same_batches(folder):
  text = (
    f"csv(fname={str(folder / 'rows.csv')!r}, image='file', prefix='question', suffix='answer')"
  )
  assert export.data_of(text) == spec(folder)
  out = folder / "out"
  rows = export.Rows(export.data_of(text))
  line = export.to_jsonl(rows, out, "train", workers=2)
  assert line == f"{out}/train.jsonl: 4 rows, 3 images in {out}/train"
  rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
  assert [list(row) for row in rows] == [["image", "prefix", "suffix"]] * 4
  assert sorted({row["image"] for row in rows}) == ["train/0-2.png", "train/0.png", "train/c.jpg"]
  assert rows[0]["image"] == rows[2]["image"]
  assert (out / rows[3]["image"]).read_bytes() == (folder / "c.jpg").read_bytes()
  written = arrays(dict(name="jsonl", fname=str(out / "train.jsonl")))
  for one, other in zip(arrays(spec(folder)), written, strict=True):
    for name in one:
      np.testing.assert_array_equal(one[name], other[name], strict=True)
  with pytest.raises(UserError, match=r"train.jsonl is there already; delete it"):
    export.to_jsonl(export.Rows(spec(folder)), out, "train", workers=1)


def test_columns_come_from_ops_and_what_is_missing_is_named(folder):
  data = {name: spec(folder)[name] for name in ("name", "fname", "image")}
  rows = export.Rows(data, 'strfmt("{question} en", outkey="prefix")|copy("answer", "suffix")',
                     keep=["answer"])  # fmt: skip
  assert rows.texts(0) == dict(prefix="what? en", suffix="1", answer="1")
  with pytest.raises(
    UserError, match=r"line 2 .*there is no 'prefix', only answer, file, id, imag"
  ):
    export.Rows(data).texts(0)
  with pytest.raises(UserError, match=r"--data: there is no 'cvs'. Did you mean 'csv'"):
    export.data_of("cvs(fname='a')")
  with pytest.raises(UserError, match="must be the name of a file"):
    registry.open(dict(name="csv", fname=3))


def test_boxes_of_another_image_are_not_written(folder):
  images = [dict(id=1, file_name="c.jpg", width=6, height=8)]
  boxes = [dict(image_id=1, category_id=1, bbox=[0, 0, 5, 5])]
  content = dict(images=images, annotations=boxes, categories=[dict(id=1, name="cat")])
  (folder / "coco.json").write_text(json.dumps(content))
  rows = export.Rows(dict(name="coco", fname=str(folder / "coco.json")))
  with pytest.raises(UserError, match="another aspect ratio"):
    export.to_jsonl(rows, folder, "turned", workers=1)
  assert not (folder / "turned.jsonl").exists()


@pytest.mark.slow
def test_array_record_has_the_same_rows(folder):
  rows = export.Rows(spec(folder))
  line = export.to_array_record(rows, folder, "my_rows", "train", workers=2)
  assert line.startswith("my_rows: train 4 in ")
  source = registry.open(dict(name="my_rows", split="train", data_dir=str(folder)))
  read = {source[i]["id"]: source[i] for i in range(4)}
  for i in range(4):
    for name, value in rows.texts(i).items():
      assert read[str(i)][name] == value
    assert read[str(i)]["image"] == rows.images(i)[0]
  with pytest.raises(UserError, match="is the name of a source"):
    export.to_array_record(rows, folder, "csv", "train", workers=2)


@pytest.mark.slow
def test_array_record_keeps_other_columns(folder):
  kept = [dict(n=1, names=[], x=0.5), dict(n=2, names=["a", "b"], x=1.5)]
  rows = [dict(image="c.jpg", prefix="p", suffix="s", **row) for row in kept]
  (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  data = dict(name="jsonl", fname=str(folder / "rows.jsonl"))
  export.to_array_record(export.Rows(data, keep=["n", "names", "x"]), folder, "kept", "train", 2)
  source = registry.open(dict(name="kept", split="train", data_dir=str(folder)))
  read = sorted((source.texts(i) for i in range(2)), key=lambda row: row["n"])
  assert [{name: row[name] for name in kept[0]} for row in read] == kept
  (folder / "rows.jsonl").write_text(json.dumps(rows[0] | dict(n={"a": 1})) + "\n")
  for name, message in (("n", "line 1.*--keep=n is {'a': 1}"), ("names", "no row has a value")):
    with pytest.raises(UserError, match=message):
      export.to_array_record(export.Rows(data, keep=[name]), folder, "other", "train", 2)
