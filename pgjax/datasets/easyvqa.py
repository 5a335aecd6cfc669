"""Converts easy-VQA to a TFDS data set: the smallest example of a builder without TensorFlow.

The quick start reads the package itself (data="easy_vqa"); as TFDS data it mixes with others.
"""

import io

import easy_vqa
import tensorflow_datasets as tfds

from pgjax.datasets.chartqa import vqa_info
from pgjax.formats import input_files

PARTS = ()


class EasyVQA(tfds.core.GeneratorBasedBuilder):
  """38,575 questions in train and 9,673 in test, about 5,000 images."""

  name = "easyvqa"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return vqa_info(self)

  def _split_generators(self, dl_manager):
    train = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    test = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    return dict(train=self._generate_examples(*train), test=self._generate_examples(*test))

  def _generate_examples(self, rows, paths):
    for i, (question, answer, image) in enumerate(zip(*rows, strict=True)):
      encoded = io.BytesIO(input_files.file_bytes(paths[image]))
      yield i, dict(image=encoded, question=question, answer=answer, question_id=i)


def check(raw: str | None, parts: tuple[str, ...]):
  """Everything is in the package."""
