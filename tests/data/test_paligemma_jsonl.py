"""PaliGemma's JSONL, as Roboflow exports it, is trained on and scored by configs/detect.py."""

import json

import numpy as np
import pytest
from PIL import Image

from pgjax.config import load as config_load, validate as config_validate
from pgjax.data import loader as loader_lib, locations, pipeline, tokenizer
from pgjax.errors import UserError

TWO = "<loc0458><loc0205><loc0833><loc0537> WBC ; <loc0375><loc0649><loc0580><loc0822> RBC"
PREFIX = "detect Platelets ; RBC ; WBC"


@pytest.fixture
def config(tmp_path, root):
  """A training and a validation file, and their images of 40 x 20 pixels in the same folder."""
  for i in range(3):
    Image.fromarray(np.full((20, 40, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.jpg")
  row = lambda i, suffix: dict(image=f"{i}.jpg", prefix=PREFIX, suffix=suffix)  # noqa: E731
  write(tmp_path, "train", [row(0, TWO), row(1, "")])
  write(tmp_path, "valid", [row(2, TWO), row(1, "")])
  files = ",".join(
    f"{name}={tmp_path}/_annotations.{split}.jsonl"
    for name, split in dict(train="train", val="valid").items()
  )
  spec = f"{root}/configs/detect.py:variant=tiny,res=32,text_len=48,{files}"
  return config_validate.validated(config_load.load(spec, {}))


def write(folder, split, rows):
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / f"_annotations.{split}.jsonl").write_text(lines)


def loader_of(config, section, *, for_training):
  [part] = pipeline.parts(section.data)
  layout = loader_lib.Layout(config.res, config.text_len, config.num_frames, for_training)
  return loader_lib.Loader(part, section.pp, tokenizer.load("tiny"), layout, config.seed)


def test_answers_are_trained_in_any_order(config):
  loader = loader_of(config, config.input, for_training=True)
  suffixes = {loader.texts(0)[0]["suffix"] for _ in range(2)}
  suffixes |= {loader.text_ops(loader._start(loader.part.source.texts(0), n, 0))["suffix"]  # noqa: SLF001
               for n in range(20)}  # fmt: skip
  assert suffixes == {TWO, locations.SEPARATOR.join(reversed(TWO.split(" ; ")))}
  assert loader.texts(1)[0]["suffix"] == ""
  assert loader(0, 0).arrays["image"].shape == (32, 32, 3)


def test_the_boxes_and_sizes_that_scores_need_are_read(config):
  loader = loader_of(config, config.evals.val, for_training=False)
  columns = loader(0, 0).columns
  assert (columns["height"], columns["width"], columns["id"]) == (20, 40, "0")
  assert columns["labels"] == ["WBC", "RBC"]
  np.testing.assert_array_equal(
    np.round(np.array(columns["boxes"]) * 1023), [[458, 205, 833, 537], [375, 649, 580, 822]]
  )
  assert loader(0, 1).columns["boxes"] == []
  pplx = loader_of(config, config.evals["val/pplx"], for_training=True)
  assert pplx.texts(0)[0]["suffix"].endswith("WBC")  # From the top.


def test_a_suffix_that_is_no_boxes_names_its_line(config, tmp_path):
  write(tmp_path, "train", [dict(image="0.jpg", prefix=PREFIX, suffix="two cells")])
  loader = loader_of(config, config.input, for_training=True)
  with pytest.raises(UserError, match=r"train.jsonl, line 1 .* four <loc> .* is 'two cells'"):
    pipeline.scan([loader], allow_truncated=False)
