"""What do the builders of big_vision and TFDS make of tests/raw_captions.py's downloads?

Writes tests/golden/caption_data_sets.json, which the tests read. This program needs what they do
not: tensorflow-cpu, tensorflow-datasets and pycocotools in this Python, and a checkout of
big_vision at 0127fb6, whose builders are run and no part of which is kept:

  PYTHONPATH=.:tests python tests/golden/record_caption_data_sets.py --big_vision=DIR
"""

import argparse
import importlib.util
import json
import pathlib
import shutil
import sys
import tempfile

import data_set_rows
import raw_captions
import tensorflow as tf
import tensorflow_datasets as tfds

GOLDEN = pathlib.Path(__file__).parent / "caption_data_sets.json"
# {name: (file of big_vision/datasets, class, {constant: path below the raw folder})}.
BUILDERS = {
  "coco35l": (
    "coco35l/coco35l.py",
    "Coco35l",
    dict(_CAPTIONS_PATH="", _IMAGES_PATH="", _COCOCAPS_PATH="dataset_coco.json"),
  ),
  "xm3600": ("xm3600/xm3600.py", "Xm3600", dict(_CAPTIONS_PATH="", _IMAGES_PATH="images")),
  "nocaps": (
    "nocaps/nocaps.py",
    "NoCaps",
    dict(
      _FILEPATH="Images/",
      _VAL_FILES="nocaps_val_4500_captions.json",
      _TEST_FILES="nocaps_test_image_info.json",
    ),
  ),
  "text_caps": (
    "textcaps/textcaps.py",
    "TextCaps",
    {"_FILEPATH": ""}
    | {f"_{s.upper()}_FILES": f"TextCaps_0.1_{s}.json" for s in ("train", "val", "test")},
  ),
  "scicap": ("scicap/scicap.py", "Scicap", dict(_SCICAP_DIR="")),
  "screen2_words": (
    "screen2words/screen2words.py",
    "Screen2Words",
    dict(_SCREEN2WORDS_DIR="screen2words", _RICO_DIR="combined"),
  ),
  "widgetcap": (
    "widgetcap/widgetcap.py",
    "Widgetcap",
    dict(_DATASET_DIR="", _IMAGE_DIR="combined"),
  ),
  "ref_coco_bv": ("refcoco/refcoco.py", "RefCocoBv", {}),
}
SPLITS = {  # Of what has dozens that are alike.
  "coco35l": ("train_en", "dev_en", "train_de", "dev_zh"),
  "xm3600": ("en", "quz"),
  "ref_coco_bv": ("train", "train_flat", "validation", "test_flat"),
}
PARTS = (
  *("first_sentence_subfig_no", "leq_100_tokens_subfig_yes"),
  *("refcocox_combined", "refcocog_umd"),
)


def builder_class(checkout, name, raw):
  """The class of a builder that reads `raw`."""
  if name == "coco_captions":
    return _coco_captions(raw)
  file, class_name, paths = BUILDERS[name]
  spec = importlib.util.spec_from_file_location(name, checkout / "big_vision/datasets" / file)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  for constant, path in paths.items():
    setattr(module, constant, f"{raw}/{path}" if path else f"{raw}/")
  return getattr(module, class_name)


def _coco_captions(raw):
  """TFDS's own, with the download's folder instead of a download."""
  from tensorflow_datasets.object_detection import coco_captions

  class CocoCaptions(coco_captions.CocoCaptions):
    name = "coco_captions_"

    def _split_generators(self, dl_manager):
      class Manager:
        def download_and_extract(self, urls):
          return {name: str(raw) for name in urls}

      splits = self.builder_config.splits
      self.builder_config.splits = [s for s in splits if "test" not in s.name]
      return super()._split_generators(Manager())

  return CocoCaptions


def record(checkout, name):
  """{part: {features, version, splits}} of one data set."""
  with tempfile.TemporaryDirectory() as folder:
    raw, out = pathlib.Path(folder, "raw"), pathlib.Path(folder, "out")
    raw.mkdir()
    raw_captions.MAKERS[name](raw)
    if name == "ref_coco_bv":  # Its builder looks for this file, to see if all are there.
      (raw / "train2017/000000147328.jpg").write_text("of no row")
    made = builder_class(checkout, name, raw)
    parts = [c for c in made.BUILDER_CONFIGS if c.name in PARTS] or [None]
    found = {}
    for part in parts:
      builder = made(data_dir=str(out), config=part)
      config = tfds.download.DownloadConfig(manual_dir=str(raw), register_checksums=False)
      builder.download_and_prepare(download_config=config)
      found[part.name if part else ""] = dict(
        version=str(builder.info.version),
        features=data_set_rows.features(builder.info),
        splits={
          split: data_set_rows.normal(_records(info), raw)
          for split, info in builder.info.splits.items()
          if split in SPLITS.get(name, (split,))
        },
      )
    shutil.rmtree(out)
    return found


def _records(info):
  return [r for f in info.filepaths for r in tf.data.TFRecordDataset(str(f)).as_numpy_iterator()]


def main():
  """Writes the file."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--big_vision", required=True, type=pathlib.Path)
  checkout = parser.parse_args().big_vision
  tfds.disable_progress_bar()
  names = [*BUILDERS, "coco_captions"]
  rows = {name: record(checkout, name) for name in names}
  lines = [f"{json.dumps(n)}: {json.dumps(v, ensure_ascii=False)}" for n, v in rows.items()]
  GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
  main()
