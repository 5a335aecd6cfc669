"""The recipes' configs whose data must be downloaded run on a few rows of the same form."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(module, *args):
  """A command as a user types it, on one device."""
  command = [sys.executable, "-m", f"pgjax.{module}", *map(str, args)]
  env = dict(os.environ, XLA_FLAGS="")
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
  assert done.returncode == 0, done.stdout + done.stderr


def pictures(folder, count=4):
  folder.mkdir(parents=True)
  for i in range(count):
    pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.jpg")
  return folder


def lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def colab(folder):
  rows = [dict(image=f"{i}.jpg", suffix=f"A picture, number {i}.") for i in range(4)]
  train = lines(pictures(folder / "longcap") / "data_train90.jsonl", rows)
  return f"configs/colab.py:train={train},val={lines(folder / 'longcap/val.jsonl', rows)}"


def chartqa_blog(folder):
  """The columns of the hub's data set, as save_to_disk writes them."""
  images = [dict(bytes=p.read_bytes(), path=None) for p in sorted(pictures(folder / "p").iterdir())]
  columns = dict(image=images, query=["how many?"] * 4, label=[["4"]] * 4)
  table = pa.table(columns | dict(human_or_machine=[0, 1, 0, 1]))
  for split in ("train", "val"):
    place = folder / "chartqa" / split
    place.mkdir(parents=True)
    with pa.ipc.new_stream(str(place / "data.arrow"), table.schema) as out:
      out.write_table(table)
    (place / "state.json").write_text(json.dumps(dict(_data_files=[dict(filename="data.arrow")])))
  (folder / "chartqa/dataset_dict.json").write_text('{"splits": ["train", "val"]}')
  return f"configs/chartqa_blog.py:data={folder / 'chartqa'},microbatches=2"


def docci(folder):
  pictures(folder / "raw/images")
  splits = ("train", "qual_dev", "test", "qual_test")
  rows = [
    dict(example_id=f"{split}_{i}", split=split, image_file=f"{i}.jpg",
         description=f"A long text about picture {i}. It has two sentences.")
    for split in splits
    for i in range(4)
  ]  # fmt: skip
  lines(folder / "raw/docci_descriptions.jsonlines", rows)
  run("prepare", "docci", f"--raw={folder / 'raw'}", f"--out={folder}")
  return f"configs/docci.py:data_dir={folder}"


@pytest.mark.long
@pytest.mark.parametrize("recipe", [colab, chartqa_blog, docci])
def test_a_recipe_trains_and_scores_at_tiny_size(tmp_path, recipe):
  config = f"{recipe(tmp_path)},variant=tiny,res=32,batch_size=4"
  flags = ["--config.total_epochs=None", "--config.total_steps=3", "--config.log_training_steps=1"]
  run("train", f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags)
  run("evaluate", f"--ckpt={tmp_path / 'run'}", f"--out={tmp_path / 'scores'}")
  metrics = json.loads((tmp_path / "scores/metrics.json").read_text())
  assert {name.split("/")[-1] for name in metrics} >= {"num", "avg"}
  if recipe is docci:
    assert {"docci/test/chars", "docci/test/sents", "docci/val/cider"} <= metrics.keys()
