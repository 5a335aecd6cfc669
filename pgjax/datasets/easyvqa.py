"""How does easy-VQA look as a TFDS data set?

The quick start reads the package itself (data="easy_vqa"), which is quicker; this is the smallest
example of a builder without TensorFlow, and of how to mix easy-VQA with other TFDS data sets.
Features: image, question, answer, question_id.
"""

import io
import pathlib

import easy_vqa
import numpy as np
import tensorflow_datasets as tfds

PARTS = ()


class EasyVQA(tfds.core.GeneratorBasedBuilder):
  """38,575 questions in train and 9,673 in test, about 5,000 images."""

  name = "easyvqa"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = tfds.features.FeaturesDict(
      dict(
        image=tfds.features.Image(encoding_format="png"),
        question=tfds.features.Text(),
        answer=tfds.features.Text(),
        question_id=np.int64,
      )
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    train = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    test = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    return dict(train=self._generate_examples(*train), test=self._generate_examples(*test))

  def _generate_examples(self, rows, paths):
    for i, (question, answer, image) in enumerate(zip(*rows, strict=True)):
      encoded = io.BytesIO(pathlib.Path(paths[image]).read_bytes())
      yield i, dict(image=encoded, question=question, answer=answer, question_id=i)


def check(raw: str | None, parts: tuple[str, ...]):
  """Everything is in the package."""
