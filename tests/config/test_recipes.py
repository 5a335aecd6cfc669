"""Do the configs of the recipes read what people have?"""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from configs import common
from pgjax.config import load, validate
from pgjax.data import loader, pipeline, tokenizer
from pgjax.data.sources import registry

BOXES = {
  "a.png": [("cat", (8, 4, 40, 24)), ("dog", (48, 16, 64, 32))],
  "b.png": [("dog", (0, 0, 32, 32))],
}
WIDTH, HEIGHT = 64, 32
CORNERS = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
XML = f"<object><name>{{}}</name><bndbox>{CORNERS}</bndbox></object>"


def pictures(folder):
  folder.mkdir(parents=True)
  for name in BOXES:
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
  return folder


def coco(folder, name="train.json"):
  images = [dict(id=i, file_name=n, width=WIDTH, height=HEIGHT) for i, n in enumerate(BOXES)]
  boxes = [
    dict(image_id=i, category_id=["cat", "dog"].index(label), bbox=[x0, y0, x1 - x0, y1 - y0])
    for i, objects in enumerate(BOXES.values())
    for label, (x0, y0, x1, y1) in objects
  ]
  categories = [dict(id=i, name=name) for i, name in enumerate(("cat", "dog"))]
  path = pictures(folder) / name
  path.write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
  return path


def yolo(folder):
  for split in ("train", "val"):
    pictures(folder / split / "images")
    (folder / split / "labels").mkdir()
    for name, objects in BOXES.items():
      lines = [
        f"{['cat', 'dog'].index(label)} {(x0 + x1) / 2 / WIDTH} {(y0 + y1) / 2 / HEIGHT}"
        f" {(x1 - x0) / WIDTH} {(y1 - y0) / HEIGHT}"
        for label, (x0, y0, x1, y1) in objects
      ]
      (folder / split / "labels" / name).with_suffix(".txt").write_text("\n".join(lines))
  path = folder / "data.yaml"
  path.write_text("train: train/images\nval: val/images\nnames: [cat, dog]\n")
  return path


def voc(folder):
  for split in ("train", "val"):
    pictures(folder / split)
    for name, objects in BOXES.items():
      found = "".join(XML.format(label, *box) for label, box in objects)
      size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
      text = f"<annotation><filename>{name}</filename>{size}{found}</annotation>"
      (folder / split / name).with_suffix(".xml").write_text(text)
  return folder


def test_detection_reads_the_same_boxes_in_every_format(tmp_path):
  train, val = coco(tmp_path / "coco"), coco(tmp_path / "coco_val")
  for split in ("train", "valid"):
    coco(tmp_path / "project" / split, "_annotations.coco.json")
  files = {
    f"train={train},val={val}",
    f"train={yolo(tmp_path / 'yolo')},val={tmp_path / 'yolo/data.yaml'}",
    f"train=voc:{voc(tmp_path / 'voc')},val=voc:{tmp_path / 'voc'}",
    f"train=roboflow:{tmp_path / 'project'},val=roboflow:{tmp_path / 'project'}",
  }
  found = []
  for text in files:
    c = validate.validated(load.load(f"configs/detect.py:variant=tiny,{text}"))
    for data in (c.input.data, c.evals["val"].data):
      source = registry.open(data.to_dict())
      found.append([(r["prefix"], r["suffix"]) for r in map(source.texts, range(len(source)))])
  assert found == [found[0]] * 8
  assert [prefix for prefix, _ in found[0]] == ["detect cat ; dog"] * 2
  assert (
    found[0][0][1]
    == "<loc0128><loc0128><loc0767><loc0639> cat ; <loc0512><loc0767><loc1023><loc1023> dog"
  )


@pytest.mark.parametrize(
  ("name", "kind", "path"),
  [
    ("a/b.jsonl", "jsonl", "a/b.jsonl"),
    ("a.json", "coco", "a.json"),
    ("a.yml", "yolo", "a.yml"),
    ("yolo:a", "yolo", "a"),
    ("voc:a.json", "voc", "a.json"),
    ("kitti:a:b", "kitti", "a"),
    ("a", "coco", "a"),
  ],
)
def test_the_name_says_how_boxes_are_stored(name, kind, path):
  data, ops = common.boxes_data(SimpleNamespace(images="", classes=""), name)
  assert (data["name"], data["fname"]) == (kind, path)
  assert ops == (["suffix_to_boxes"] if kind == "jsonl" else [])
  assert data.get("split") == {"yolo:a": "train", "a.yml": "train", "voc:a.json": "train",
                               "kitti:a:b": "b"}.get(name)  # fmt: skip


def test_the_noise_recipe_fills_answers_and_scores_by_label(tmp_path):
  train = coco(tmp_path / "coco")
  config = f"configs/detect.py:variant=tiny,res=32,train={train},val={train},num_boxes=4"
  c = validate.validated(load.load(config))
  assert (c.total_epochs, c.evals["val"].grammar) == (50, "boxes(num_boxes=4)")
  assert c.evals["val"].confidence == "label"
  tok = tokenizer.load("tiny")
  (part,) = pipeline.parts(c.input.data)
  layout = loader.Layout(res=32, text_len=c.text_len, num_frames=0, for_training=True)
  row = loader.Loader(part, c.input.pp, tok, layout, seed=0)(0, 0).arrays
  is_loc = row["text"] >= tok.encode("<loc0000>")[0]
  assert is_loc.sum() == 4 * 4
  assert row["mask_loss"][is_loc].sum() == 4 * len(BOXES["a.png"])  # Not those of noise.
