r"""Records what big_vision's TFDS builders make of the downloads of tests/raw_questions.py.

Needs TensorFlow, tensorflow-datasets, pandas, tifffile, and a checkout of big_vision (0127fb6):
PYTHONPATH=tests:BIG_VISION python tests/golden/record_question_data_sets.py \
  tests/golden/question_data_sets.json
"""

import importlib
import json
import pathlib
import sys
import tempfile
import types

import data_set_rows
import raw_questions
import tensorflow_datasets as tfds
import tifffile
from absl import flags
from array_record.python import array_record_module

# name -> (module, class, parts or splits to read, {constant: path below the raw folder}).
BUILDERS = {
  "ai2d": ("ai2d", "Ai2d", {}),
  "aokvqa": ("aokvqa", "AOkVqa", dict(_AOKVQA_PATH="")),
  "chartqa": ("chartqa", "ChartQA", dict(_CHARTQA_PATH="/")),
  "countbenchqa": (
    "countbenchqa",
    "CountbenchQA",
    dict(
      _COUNTBENCH_PARQUET_PATH="/train-00000-of-00001-0.parquet",
      _QA_JSON_PATH="/countbench_paired_questions.json",
    ),
  ),
  "docvqa": ("docvqa", "DocVQA", dict(_DOCVQA_PATH="/")),
  "gqa": ("gqa", "GQA", dict(_DATA_PATH="/")),
  "infovqa": ("infovqa", "Infovqa", dict(_INFOVQA_PATH="/")),
  "okvqa": ("okvqa", "OkVqa", dict(_OKVQA_PATH="")),
  "pope_random": ("pope", "POPE", dict(_POPE_PATH="/")),
  "pope_popular": ("pope", "POPE", dict(_POPE_PATH="/")),
  "pope_adversarial": ("pope", "POPE", dict(_POPE_PATH="/")),
  "rsvqa_hr": ("rsvqa_hr", "RsvqaHr", dict(PATH="/")),
  "rsvqa_lr": ("rsvqa_lr", "RsvqaLr", dict(PATH="/")),
  "science_qa": ("science_qa", "ScienceQA", dict(_SCIQA_PATH="/")),
  "stvqa": ("stvqa", "Stvqa", dict(_STVQA_PATH="/")),
  "tallyqa": (
    "tallyqa",
    "TallyQA",
    dict(_TALLYQA_PATH="/", _VISUAL_GENOME_PATH="/", _COCO_PATH="/"),
  ),
  "textvqa": (
    "textvqa",
    "TextVqa",
    dict(
      _FILEPATH="/",
      _TRAIN_FILES="/TextVQA_0.5.1_train.json",
      _VAL_FILES="/TextVQA_0.5.1_val.json",
      _TEST_FILES="/TextVQA_0.5.1_test.json",
    ),
  ),
  "vizwizvqa": ("vizwizvqa", "VizWizVQA", dict(_VIZWIZVQA_PATH="/")),
  "vqa": ("vqa", "Vqa", dict(_VQAV2_PATH="", _IMAGE_PATH="")),
  "xgqa": ("xgqa", "XGQA", dict(_DATA_PATH="/", _IMAGE_PATH="/images/")),
}
GQA_SPLITS = ("train_balanced", "val_balanced", "testdev_balanced")


class Pipe:
  """As much of Beam as the builder of GQA uses, run at once."""

  def __init__(self, function):
    """function: from an iterable to an iterable."""
    self.function = function

  def __ror__(self, rows):
    return self.function(rows)


class Source(list):
  """The rows of beam.Create."""

  def __or__(self, pipe):
    return Source(pipe.function(self))


BEAM = types.SimpleNamespace(
  Create=Source,
  FlatMap=lambda f: Pipe(lambda rows: [out for row in rows for out in f(row)]),
  Map=lambda f: Pipe(lambda rows: [f(row) for row in rows]),
  Reshuffle=lambda: Pipe(list),
)


def builder_of(name: str, part: str | None, raw: pathlib.Path, out: str):
  """The builder with its constants set to the raw folder."""
  stem, class_name, paths = BUILDERS[name]
  if stem == "stvqa":
    ids = types.ModuleType("big_vision.datasets.stvqa.val_ids")
    ids.PSEUDO_VAL_IMAGE_PATHS = list(raw_questions.STVQA_VAL)
    sys.modules["big_vision.datasets.stvqa.val_ids"] = ids
    importlib.import_module("big_vision.datasets.stvqa").val_ids = ids
  module = importlib.import_module(f"big_vision.datasets.{stem}.{stem}")
  for constant, path in paths.items():
    setattr(module, constant, f"{raw}{path}")
  if stem == "ai2d":
    flags.FLAGS(["x", f"--input_path={raw}", f"--font_path={raw}/DMSans-Regular.ttf"])
  cls = getattr(module, class_name)
  if stem == "gqa":
    tfds.core.lazy_imports = types.SimpleNamespace(apache_beam=BEAM, tifffile=tifffile)
    cls._split_generators = lambda self, _: {
      s: iter(self._generate_examples(s)) for s in GQA_SPLITS
    }
  return cls(data_dir=out, config=part, file_format="array_record")


def records(info) -> list[bytes]:
  """The records of a split, in their order."""
  found = []
  for path in info.filepaths:
    reader = array_record_module.ArrayRecordReader(str(path))
    found += reader.read([*range(reader.num_records())])
  return found


def main():
  recorded = {}
  for name in BUILDERS:
    with tempfile.TemporaryDirectory() as folder:
      raw = pathlib.Path(folder) / "raw"
      raw.mkdir()
      raw_questions.MAKERS[name](raw)
      parts = {"rsvqa_lr": ["nonum", "all"], "rsvqa_hr": ["nonum", "all"]}.get(name, [None])
      parts = ["human", "augmented"] if name == "chartqa" else parts
      parts = [name] if name.startswith("pope") else parts
      for part in parts:
        builder = builder_of(name, part, raw, folder + "/out")
        builder.download_and_prepare(
          download_config=tfds.download.DownloadConfig(manual_dir=str(raw))
        )
        full = name if part in (None, name) else f"{name}/{part}"
        recorded[full] = dict(
          version=str(builder.info.version),
          encoding=builder.info.features["image"].to_json_content().encoding_format,
          features=data_set_rows.features(builder.info),
          splits={
            split: data_set_rows.normal(records(info), raw)
            for split, info in builder.info.splits.items()
            if "_fs" not in split
          },
        )
  lines = [f"{json.dumps(n)}: {json.dumps(v, ensure_ascii=False)}" for n, v in recorded.items()]
  pathlib.Path(sys.argv[1]).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
  main()
