"""Converts ChartQA's official download (arXiv:2203.10244) to a TFDS data set, without TensorFlow.

The download's layout, for the splits train, val and test, with a list of {"imgname", "query",
"label"} in each JSON file:

  DIR/{split}/png/*.png   DIR/{split}/{split}_human.json   DIR/{split}/{split}_augmented.json

"chartqa/human" has questions written by people, "chartqa/augmented" ones generated from captions.
"""

import io
import pathlib

import msgspec
import numpy as np
import tensorflow_datasets as tfds

from pgjax.errors import UserError, naming
from pgjax.formats import input_files, typed_json

PARTS = ("human", "augmented")
SPLITS = ("train", "val", "test")


class _Row(msgspec.Struct):
  imgname: typed_json.Text
  query: str
  label: str | int | float


def vqa_info(builder) -> tfds.core.DatasetInfo:
  """The features of a data set of questions on images."""
  image = tfds.features.Image(encoding_format="png")
  question, answer = tfds.features.Text(), tfds.features.Text()
  features = dict(image=image, question=question, answer=answer, question_id=np.int64)
  return tfds.core.DatasetInfo(builder=builder, features=tfds.features.FeaturesDict(features))


class ChartQA(tfds.core.GeneratorBasedBuilder):
  """One config a part; `manual_dir` of the download config is the official download."""

  name = "chartqa"
  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = "python -m pgjax.prepare chartqa --raw=DIR"
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=part) for part in PARTS]  # noqa: RUF012

  def _info(self):
    return vqa_info(self)

  def _split_generators(self, dl_manager):
    raw = pathlib.Path(dl_manager.manual_dir)
    return {split: self._generate_examples(raw, split) for split in SPLITS}

  def _generate_examples(self, raw, split):
    for i, (image, question, answer) in enumerate(_rows(raw, split, self.builder_config.name)):
      # The bytes of a file object are stored unchanged; an array would need TensorFlow.
      yield i, dict(image=io.BytesIO(image), question=question, answer=answer, question_id=i)


def check(raw: str, parts: tuple[str, ...]):
  """Raises if part of a download is missing, before anything is written."""
  folder = pathlib.Path(raw)
  unknown = sorted(set(parts) - set(PARTS))
  if unknown or not parts:
    raise UserError(f"ChartQA has no part {unknown}; --parts is one or both of {','.join(PARTS)}.")
  if not folder.is_dir():
    raise UserError(f"--raw={raw} is not a folder; it is the one that holds train/, val/, test/.")
  files = {part: [_questions(folder, split, part) for split in SPLITS] for part in PARTS}
  missing = [str(path) for part in parts for path in files[part] if not path.exists()]
  if not missing:
    return
  advice = "--raw is the folder that holds train/, val/ and test/ of the official download"
  if complete := [part for part in PARTS if all(path.exists() for path in files[part])]:
    advice = f"to prepare what is there: --parts={','.join(complete)}"
  raise UserError(f"ChartQA's download lacks {', '.join(missing)}; {advice}.")


def _questions(raw: pathlib.Path, split: str, part: str) -> pathlib.Path:
  return raw / split / f"{split}_{part}.json"


def _rows(raw, split, part):
  path = _questions(raw, split, part)
  charts = (raw / split / "png").absolute()
  for i, row in enumerate(typed_json.read(path, list[_Row])):
    where = f"{path}, entry {i}: imgname"
    image = input_files.inside(str(charts), row.imgname, where, links=False)
    with naming(where):
      yield input_files.file_bytes(image), row.query, str(row.label)
