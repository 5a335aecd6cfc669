"""Overfits eight real examples: data, training, checkpoint and decoding agree.

Masks, labels or prompts that differ between training and decoding fail here. The charts, blood
cells and receipts are located as in tests/commands/test_prepare.py.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from PIL import Image, ImageDraw

from pgjax.data import masks
from pgjax.data.sources import coco
from pgjax.formats import seg_vae_npz
from pgjax.models import seg_vae, seg_vae_training

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("PGJAX_SHARED_DATA", ROOT.parent / "shared/data"))


def run(module, *args):
  """A command as a user types it, on one device and with XLA's usual flags; its output."""
  command = [sys.executable, "-m", f"pgjax.{module}", *map(str, args)]
  env = dict(os.environ, XLA_FLAGS="")
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def needs(folder):
  exists = (SHARED / folder).is_dir()
  return pytest.mark.skipif(not exists, reason=f"{SHARED} has no {folder} (PGJAX_SHARED_DATA)")


def overfit(tmp_path, config, data, steps, evaluator="val", others=(), **settings):
  """(metrics, rows) of pgjax.evaluate on the eight examples that pgjax.train has seen.

  Adam forgets the first steps (b2): then all eight answers have the same few gradients, and what
  tells the images apart has a hundredth of them.
  """
  fields = {
    "input.data": data,
    f"evals.{evaluator.removesuffix('.*')}.data": data,
    **{f"evals.{name}.log_percent": None for name in (evaluator.removesuffix(".*"), *others)},
    "total_epochs": None,
    "total_steps": steps,
    "lr": 3e-3,
    "optax.b2": 0.95,
    "ckpt_steps": 10_000,
    **settings,
  }
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  run("train", f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags)
  out = tmp_path / "scores"
  run("evaluate", f"--ckpt={tmp_path / 'run'}", f"--evals={evaluator}", f"--out={out}")
  rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
  return json.loads((out / "metrics.json").read_text()), rows


@pytest.mark.long
@needs("chartqa")
def test_eight_charts_are_answered_exactly(tmp_path):
  run("prepare", "chartqa", f"--raw={SHARED / 'chartqa'}", f"--out={tmp_path}", "--parts=augmented")
  eight = dict(name="chartqa/augmented", split="train[:8]", data_dir=str(tmp_path))
  recipe = f"variant=tiny,parts=augmented,data_dir={tmp_path},batch_size=8"
  parts = [f"chartqa/augmented/{split}" for split in ("minitrain", "minival", "eval")]
  others = [*parts[1:], *(f"{part}/pplx" for part in parts)]
  settings = {"label_smoothing": 0.0, "model.llm.dropout": 0.0}
  _, rows = overfit(
    tmp_path, f"configs/chartqa.py:{recipe}", eight, 150, parts[0], others, **settings
  )
  assert len(rows) == 8
  assert [row["prediction"] for row in rows] == [row["answer"] for row in rows]
  assert len({row["answer"] for row in rows}) > 4  # One answer for all would prove nothing.


@pytest.mark.long
@needs("bccd")
def test_the_boxes_of_eight_blood_images_are_detected(tmp_path):
  """Up to 18 cells a picture, through the grammar of boxes and their scores to COCO's numbers."""
  fname = SHARED / "bccd/train/_annotations.coco.json"
  data = dict(name="coco", fname=str(fname), stop=8)
  recipe = f"variant=tiny,train={fname},val={fname},res=64,text_len=125,batch_size=8,order=given"
  metrics, rows = overfit(tmp_path, f"configs/detect.py:{recipe}", data, 400, "val", ["val/pplx"])
  assert metrics["val/AP"] >= 0.95
  assert metrics["val/malformed"] == metrics["val/duplicates"] == 0
  assert metrics["val/num"] == 8
  assert sum(len(row["objects"]) for row in rows) > 60
  assert {o["label"] for row in rows for o in row["objects"]} == {"WBC", "RBC", "Platelets"}


@pytest.mark.long
@needs("sroie")
def test_the_fields_of_eight_receipts_are_read(tmp_path):
  fname = SHARED / "sroie/train/annotations.jsonl"
  data = dict(name="jsonl", fname=str(fname), stop=8)
  recipe = f"variant=tiny,train={fname},val={fname},res=64,text_len=125,batch_size=8"
  recipe += ",score=json,grammar=json"
  metrics, rows = overfit(tmp_path, f"configs/forkme.py:{recipe}", data, 350, "val", ["val/pplx"])
  assert metrics["val/field_f1"] == metrics["val/exact"] == metrics["val/valid"] == 1
  assert len({row["prediction"] for row in rows}) == 8


@pytest.mark.long
@needs("bccd")
def test_noise_boxes_do_not_hide_the_boxes_of_eight_blood_images(tmp_path):
  """The recipe of PaliGemma 2's paper: 24 objects in every answer, scored by their labels."""
  fname = SHARED / "bccd/train/_annotations.coco.json"
  data = dict(name="coco", fname=str(fname), stop=8)
  recipe = f"variant=tiny,train={fname},val={fname},res=64,text_len=170,batch_size=8,order=given"
  config = f"configs/detect.py:{recipe},num_boxes=24"
  metrics, rows = overfit(tmp_path, config, data, 550, "val", ["val/pplx"])
  assert metrics["val/AP"] >= 0.95
  assert metrics["val/precision"] >= 0.95  # Noise is recognised by its label's probability.
  assert metrics["val/malformed"] == 0
  assert all(len(row["objects"]) == 24 for row in rows)


def shapes(folder, count=8, size=96):
  """A COCO file with two polygons, of two classes, in each image; its path."""
  rng = np.random.default_rng(0)
  images, annotations = [], []
  for i in range(count):
    picture = Image.new("RGB", (size, size), tuple(rng.integers(0, 90, 3).tolist()))
    for k, centre in enumerate([(0.27, 0.3), (0.7, 0.68)]):
      angles = np.linspace(0, 2 * np.pi, 9)[:-1] + rng.uniform(0, 1)
      points = (np.array(centre) + 0.24 * np.c_[np.cos(angles), np.sin(angles)]) * size
      points = points + rng.uniform(-5, 5, (8, 2))
      colour = tuple(rng.integers(130, 256, 3).tolist())
      ImageDraw.Draw(picture).polygon([tuple(p) for p in points], fill=colour)
      outline = points.ravel().round(2).tolist()
      annotations.append(dict(image_id=i, category_id=k, segmentation=[outline], iscrowd=0))
    picture.save(folder / f"{i}.png")
    images.append(dict(id=i, file_name=f"{i}.png", width=size, height=size))
  categories = [dict(id=0, name="blob"), dict(id=1, name="stone")]
  path = folder / "shapes.json"
  content = dict(images=images, annotations=annotations, categories=categories)
  path.write_text(json.dumps(content))
  return path


def mask_weights(path, fname, steps=400):
  """Trains a small VQ-VAE on the masks of a COCO file, and writes it."""
  source = coco.Coco(str(fname))
  crops = []
  for i in range(len(source)):
    row = source.texts(i)
    for outline, box in zip(row["segmentations"], row["boxes"], strict=True):
      mask = masks.from_coco(outline, row["height"], row["width"])
      crops.append(masks.crop(mask, box))
  batch = np.stack(crops)[..., None]
  tx = optax.adam(2e-3)
  vae = seg_vae.init(jax.random.key(0), width=16, embed_dim=32)
  state = seg_vae_training.start(vae, tx)
  update = jax.jit(functools.partial(seg_vae_training.update, tx=tx))
  for i in range(steps):
    state, _ = update(state, batch, jax.random.key(i))
  seg_vae_npz.save(path, state.params)


@pytest.mark.long
def test_the_masks_of_eight_pictures_are_as_good_as_their_codes(tmp_path):
  fname = shapes(tmp_path)
  mask_weights(tmp_path / "masks.npz", fname)
  recipe = f"variant=tiny,train={fname},val={fname},masks={tmp_path / 'masks.npz'},res=64"
  recipe += ",text_len=60,batch_size=8,order=given"
  data = dict(name="coco", fname=str(fname))
  metrics, _ = overfit(tmp_path, f"configs/segment.py:{recipe}", data, 300, "val", ["val/pplx"])
  assert metrics["val/best_miou"] > 0.8  # Otherwise equality would say little.
  assert metrics["val/miou"] >= metrics["val/best_miou"] - 0.02
  assert metrics["val/f1"] == 1


@pytest.mark.long
def test_forty_sprites_are_captioned_word_for_word(tmp_path):
  run("prepare", "sprites", f"--out={tmp_path}")
  data = dict(name="sprites", split="train[:40]", data_dir=str(tmp_path))
  recipe = f"variant=tiny,tune=full,res=64,batch_size=40,data_dir={tmp_path}"
  config, others = f"configs/sprites.py:{recipe}", ["test", "test/pplx"]
  _, rows = overfit(tmp_path, config, data, 250, "test/exact", others)
  assert [[row["prediction"]] for row in rows] == [row["answer"] for row in rows]
  assert len({row["prediction"] for row in rows}) == 40


@pytest.mark.long
def test_the_crossings_of_thirty_pictures_are_counted(tmp_path):
  run("prepare", "intersections", f"--out={tmp_path}", "--splits=val")
  data = dict(name="intersections", split="val[:30]", data_dir=str(tmp_path))
  recipe = f"variant=tiny,res=96,batch_size=30,data_dir={tmp_path}"
  config, others = f"configs/intersections.py:{recipe}", ["val/pplx"]
  settings = {"lr": 1e-3, "model.img.patch_size": 8}  # Thin lines are little of a larger patch.
  metrics, rows = overfit(tmp_path, config, data, 200, "val", others, **settings)
  assert metrics["val/acc"] == 1
  assert {row["prediction"] for row in rows} == {"0", "1", "2"}


@pytest.mark.long
@needs("sroie")
def test_receipts_are_extracted_by_beams_with_a_frozen_image_tower(tmp_path):
  fname = SHARED / "sroie/train/annotations.jsonl"
  data = dict(name="jsonl", fname=str(fname), stop=4)
  recipe = f"variant=tiny,tune=no_vit,train={fname},val={fname},res=64,text_len=125,batch_size=4"
  settings = {"evals.val/text.data": data, "evals.val/text.log_percent": None}
  config = f"configs/extract.py:{recipe}"
  metrics, rows = overfit(tmp_path, config, data, 350, "val.*", ["val/pplx"], **settings)
  assert metrics["val/field_f1"] == metrics["val/exact"] == 1
  assert metrics["val/text/bleu-4"] == pytest.approx(1)
  assert metrics["val/text/rouge"] == pytest.approx(1)
  said = {row["prediction"] for row in rows if "prediction" in row}  # val/pplx only scores.
  assert len(said) == 4
