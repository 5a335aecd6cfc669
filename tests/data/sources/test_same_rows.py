"""The same rows in every format are the same batches, bit for bit."""

import csv
import io
import json
import tarfile
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pgjax.data import loader as loader_lib, locations, pipeline, tokenizer
from pgjax.data.sources import registry

ROWS, CLASSES = 24, ("cat", "dog")
LAYOUT = loader_lib.Layout(res=16, text_len=400, num_frames=0, for_training=True)
PP = "decode|resize(16)|value_range(-1, 1)|drop('boxes')|flip_lr(0.5)|drop('segmentations')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """images/00.png ... of 60 x 44 pixels."""
  return write_images(tmp_path_factory.mktemp("rows"))


def write_images(folder):
  (folder / "images").mkdir()
  rng = np.random.default_rng(0)
  for i in range(ROWS):
    Image.fromarray(rng.integers(256, size=(44, 60, 3), dtype=np.uint8)).save(path_of(folder, i))
  return folder


def path_of(folder, i):
  return folder / f"images/{i:02d}.png"


def objects(i):
  """(class, x0, y0, x1, y1) of row i, in whole pixels; every third row has none."""
  rng = np.random.default_rng(i)
  boxes = []
  for _ in range(i % 3):
    x0, y0 = rng.integers(0, 40), rng.integers(0, 30)
    x1, y1 = rng.integers(x0 + 3, 61), rng.integers(y0 + 3, 45)
    boxes.append((CLASSES[rng.integers(2)], *map(int, (x0, y0, x1, y1))))
  return boxes


def texts(i):
  shares = [(y0 / 44, x0 / 60, y1 / 44, x1 / 60) for _, x0, y0, x1, y1 in objects(i)]
  suffix = locations.detection_suffix(shares, [o[0] for o in objects(i)])
  return dict(prefix="detect cat ; dog", suffix=suffix)


def rows_in_training_order(spec, pp=PP):
  (part,) = pipeline.parts(spec)
  loader = loader_lib.Loader(part, pp, tokenizer.load("tiny"), LAYOUT, seed=3)
  mixed = pipeline.mixture([loader], seed=3)
  return [mixed[i].arrays for i in range(ROWS)]


@pytest.fixture(scope="module")
def expected(folder):
  return rows_in_training_order(dict(name="jsonl", fname=write_rows(folder)))


def write_rows(folder):
  rows = [dict(image=f"images/{i:02d}.png", **texts(i)) for i in range(ROWS)]
  return lines(folder / "rows.jsonl", rows)


def assert_same(expected, spec, pp=PP):
  for row, other in zip(expected, rows_in_training_order(spec, pp), strict=True):
    assert row.keys() == other.keys()
    for name, array in row.items():
      np.testing.assert_array_equal(array, other[name], err_msg=name, strict=True)


def lines(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


# Rows of texts


def test_json_csv_and_conversations(folder, expected):
  rows = [dict(file=f"images/{i:02d}.png", q=texts(i)["prefix"], a=texts(i)["suffix"])
          for i in range(ROWS)]  # fmt: skip
  mapped = dict(image="file", prefix="q", suffix="a")
  spec = dict(name="json", fname=str(folder / "rows.json"), **mapped)
  (folder / "rows.json").write_text("\ufeff" + json.dumps(rows, indent=1))
  assert_same(expected, spec)
  for name, delimiter in (("rows.csv", ","), ("semicolons.csv", ";"), ("rows.tsv", "\t")):
    with (folder / name).open("w", encoding="utf-8-sig", newline="") as file:
      writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
      writer.writeheader()
      writer.writerows(rows)
    assert_same(expected, dict(name="csv", fname=str(folder / name), **mapped))
  llava = [
    dict(image=row["file"], conversations=[
      {"from": "human", "value": "<image>\n" + row["q"]}, {"from": "gpt", "value": row["a"]}
    ])
    for row in rows
  ]  # fmt: skip
  assert_same(expected, dict(name="llava", fname=lines(folder / "llava.jsonl", llava)))
  chat = [
    dict(messages=[
      dict(role="user", content=[dict(type="image", image=row["file"]),
                                 dict(type="text", text=row["q"])]),
      dict(role="assistant", content=[dict(type="text", text=row["a"])]),
    ])
    for row in rows
  ]  # fmt: skip
  assert_same(expected, dict(name="chat", fname=lines(folder / "chat.jsonl", chat)))


def test_parquet_and_datasets(folder, expected, monkeypatch):
  encoded = [path_of(folder, i).read_bytes() for i in range(ROWS)]
  columns = {name: [texts(i)[name] for i in range(ROWS)] for name in ("prefix", "suffix")}
  structs = [dict(bytes=data, path=None) for data in encoded]
  pq.write_table(pa.table(columns | dict(picture=encoded)), folder / "bytes.parquet")
  spec = dict(name="parquet", fname=str(folder / "bytes.parquet"), image="picture")
  assert_same(expected, spec)
  paths = [f"images/{i:02d}.png" for i in range(ROWS)]
  pq.write_table(pa.table(columns | dict(image=paths)), folder / "paths.parquet", row_group_size=5)
  assert_same(expected, dict(name="parquet", fname=str(folder / "paths.parquet")))
  table = pa.table(columns | dict(image=structs))
  (folder / "hub/data").mkdir(parents=True)
  for k in range(2):
    name = folder / f"hub/data/train-0000{k}-of-00002.parquet"
    pq.write_table(table.slice(10 * k, 10 + 4 * k), name)
  hub = dict(name="hf", fname=str(folder / "hub"), split="train")
  assert_same(expected, hub)
  monkeypatch.setattr("pgjax.data.sources.arrow_rows.MEMORY_BYTES", 0)
  monkeypatch.setenv("PGJAX_CACHE_DIR", str(folder / "cache"))
  assert_same(expected, hub)
  assert len(list((folder / "cache/arrow").glob("*.arrow"))) == 2
  save_to_disk(folder / "saved/train", table)
  (folder / "saved/dataset_dict.json").write_text('{"splits": ["train"]}')
  assert_same(expected, dict(name="hf", fname=str(folder / "saved"), split="train"))


def save_to_disk(folder, table):
  """As datasets' save_to_disk, after the rows were reordered and then put back in order."""
  folder.mkdir(parents=True)
  order = np.random.default_rng(1).permutation(ROWS)
  back = pa.table(dict(indices=np.argsort(order).astype(np.uint64)))
  for name, content in (("data.arrow", table.take(order)), ("indices.arrow", back)):
    with pa.ipc.new_stream(str(folder / name), content.schema) as out:
      out.write_table(content, max_chunksize=7)
  state = dict(
    _data_files=[dict(filename="data.arrow")], _indices_files=[dict(filename="indices.arrow")]
  )
  (folder / "state.json").write_text(json.dumps(state))


def test_tar_files(folder, expected):
  for k in range(2):
    with tarfile.open(folder / f"rows-{k}.tar", "w") as tar:
      for i in range(12 * k, 12 * k + 12):
        tar.add(path_of(folder, i), f"./{i:02d}.png")
        for name, data in (
          (f"./{i:02d}.json", json.dumps(dict(prefix=texts(i)["prefix"])).encode()),
          (f"./{i:02d}.txt", texts(i)["suffix"].encode()),
        ):
          info = tarfile.TarInfo(name)
          info.size = len(data)
          tar.addfile(info, io.BytesIO(data))
  spec = dict(name="webdataset", fname=str(folder / "rows-{0..1}.tar"), suffix="txt")
  assert_same(expected, spec)


def test_class_folders_and_captions(folder):
  for i in range(ROWS):
    (folder / "classes" / CLASSES[i // 12]).mkdir(parents=True, exist_ok=True)
    target = folder / "classes" / CLASSES[i // 12] / f"{i:02d}.png"
    target.write_bytes(path_of(folder, i).read_bytes())
  rows = [dict(image=f"images/{i:02d}.png", prefix="what?", suffix=CLASSES[i // 12])
          for i in range(ROWS)]  # fmt: skip
  expected = rows_in_training_order(dict(name="jsonl", fname=lines(folder / "b.jsonl", rows)))
  assert_same(expected, dict(name="folder", fname=str(folder / "classes"), prompt="what?"))
  images = [dict(id=100 + i, file_name=f"{i:02d}.png") for i in range(ROWS)]
  captions = [dict(id=i, image_id=100 + i, caption=CLASSES[i // 12]) for i in range(ROWS)]
  (folder / "captions.json").write_text(json.dumps(dict(images=images, annotations=captions)))
  spec = dict(name="coco_captions", fname=str(folder / "captions.json"), prompt="what?")
  assert_same(expected, spec | dict(images=str(folder / "images")))


# Boxes


def coco(path, file_names):
  images = [dict(id=i, file_name=file_names(i), width=60, height=44) for i in range(ROWS)]
  annotations = [
    dict(id=0, image_id=i, category_id=CLASSES.index(label), bbox=[x0, y0, x1 - x0, y1 - y0])
    for i in range(ROWS)
    for label, x0, y0, x1, y1 in objects(i)
  ]
  categories = [dict(id=k, name=name) for k, name in enumerate(CLASSES)]
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
  return str(path)


def yolo_line(label, x0, y0, x1, y1):
  shares = ((x0 + x1) / 2 / 60, (y0 + y1) / 2 / 44, (x1 - x0) / 60, (y1 - y0) / 44)
  return " ".join([str(CLASSES.index(label)), *(f"{share:.6f}" for share in shares)])


def voc_xml(i):
  boxes = "".join(
    f"<object><name>{escape(label)}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
    f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
    for label, x0, y0, x1, y1 in objects(i)
  )
  size = "<size><width>60</width><height>44</height><depth>3</depth></size>"
  return f"<annotation><filename>{i:02d}.png</filename>{size}{boxes}</annotation>"


def test_boxes_of_every_format(folder, expected):
  images = folder / "images"

  def boxes(name, fname, **fields):
    return {"rows": dict(name=name, fname=str(fname), weight=1, **fields)}

  rows = {"rows": dict(name="jsonl", fname=str(folder / "rows.jsonl"), weight=1)}
  named = rows_in_training_order(rows)  # COCO has an order of its own; here all are called rows.
  assert_same(named, boxes("coco", coco(folder / "a.json", lambda i: f"images/{i:02d}.png")))

  roboflow = folder / "roboflow"
  for i in range(ROWS):
    for kind in (
      "coco/train",
      "paligemma/dataset",
      "jsonl/train",
      "yolo/train/images",
      "voc/train",
    ):
      target = roboflow / kind / f"{i:02d}.png"
      target.parent.mkdir(parents=True, exist_ok=True)
      target.hardlink_to(path_of(folder, i))
    label = roboflow / f"yolo/train/labels/{i:02d}.txt"
    label.parent.mkdir(exist_ok=True)
    label.write_text("".join(yolo_line(*o) + "\n" for o in objects(i)))
    (roboflow / f"voc/train/{i:02d}.xml").write_text(voc_xml(i))
  coco(roboflow / "coco/train/_annotations.coco.json", lambda i: f"{i:02d}.png")
  own = [dict(image=f"{i:02d}.png", **texts(i)) for i in range(ROWS)]
  lines(roboflow / "paligemma/dataset/_annotations.train.jsonl", own)
  lines(roboflow / "jsonl/train/annotations.jsonl", own)
  content = f"train: ../train/images\nval: ../valid/images\nnc: 2\nnames: {list(CLASSES)}\n"
  (roboflow / "yolo/data.yaml").write_text(content)
  for kind in ("coco", "paligemma", "jsonl", "yolo", "voc"):
    assert_same(named, boxes("roboflow", roboflow / kind, split="train"))
  assert_same(named, boxes("yolo", roboflow / "yolo/data.yaml", split="train"))

  voc = folder / "VOC"
  for name in ("Annotations", "ImageSets/Main"):
    (voc / name).mkdir(parents=True)
  (voc / "JPEGImages").symlink_to(images)
  (voc / "ImageSets/Main/train.txt").write_text("".join(f"{i:02d}\n" for i in range(ROWS)))
  kitti, labelme = folder / "kitti", folder / "labelme"
  (kitti / "label_2").mkdir(parents=True)
  (kitti / "image_2").symlink_to(images)
  labelme.mkdir()
  for i in range(ROWS):
    (voc / f"Annotations/{i:02d}.xml").write_text(voc_xml(i))
    lines_of = [f"{label} 0.00 0 -1.57 {x0}.00 {y0}.00 {x1}.00 {y1}.00 1 1 1 0 0 9 0\n"
                for label, x0, y0, x1, y1 in objects(i)]  # fmt: skip
    (kitti / f"label_2/{i:02d}.txt").write_text("".join(lines_of))
    shapes = [dict(label=label, points=[[x0, y0], [x1, y1]], shape_type="rectangle")
              for label, x0, y0, x1, y1 in objects(i)]  # fmt: skip
    content = dict(shapes=shapes, imagePath=f"{i:02d}.png", imageWidth=60, imageHeight=44)
    (labelme / f"{i:02d}.json").write_text(json.dumps(content))
  assert_same(named, boxes("voc", voc, split="train"))
  assert_same(named, boxes("kitti", kitti))
  assert_same(named, boxes("labelme", labelme, images=str(images)))


def test_the_order_of_training_is_that_of_jsonl_in_every_format():
  others = {"coco", "easy_vqa", "bv:jsonl"}  # Orders of runs that may be resumed.
  for name in registry.SOURCES:
    assert registry.order_name(name) == (name if name in others else "jsonl")
  assert registry.order_name("hf:a/b") == "jsonl"
  assert registry.order_name("chartqa/human") == "chartqa/human"
