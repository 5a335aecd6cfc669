"""easy-VQA: questions about 64 x 64 images of a shape; the data is the Python package.

The quick start reads the package itself (data="easy_vqa"); as TFDS data it mixes with others.
"""

from pgjax.datasets import base


def _rows(raw: base.Raw, part: None, split: str):
  import easy_vqa

  questions, images = {
    "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
    "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
  }[split]
  files = {image: base.File(path, f"easy_vqa, image {image}") for image, path in images().items()}
  for i, (question, answer, image) in enumerate(zip(*questions(), strict=True)):
    yield i, dict(image=files[image], question=question, answer=answer, question_id=i)


DATA = base.DataSet(
  name="easyvqa",
  about="questions about a shape, from the package easy-vqa; needs no --raw",
  source="the Python package easy-vqa, which is installed with pgjax",
  features=dict(image=base.Image("png"), question=str, answer=str, question_id="int64"),
  splits={"train": 38_575, "test": 9_673},
  files=lambda part, split: [],
  rows=_rows,
  needs_raw=False,
)
