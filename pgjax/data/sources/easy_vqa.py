"""Which examples are in easy-VQA, from the package of that name?"""

import functools
import re

from pgjax.data.sources import files
from pgjax.errors import UserError


class EasyVqa:
  """Questions about 64 x 64 images of one coloured shape; 38,575 in train and 9,673 in test.

  Fields: image, question, answer, id, image_id. `answers` selects questions by their answer. An
  image is read once, for all questions on it, and stays in memory (all together: a few MB).
  """

  def __init__(self, split, answers=None):
    self.split, part = cut_split(split)
    if self.split not in ("train", "test"):
      raise UserError(f"easy_vqa has no split '{split}'; it has train and test.")
    rows, paths = _read(self.split)
    indices = range(len(rows))[part(len(rows))]
    self._ids = [i for i in indices if answers is None or rows[i][1] in answers]
    self._rows = [rows[i] for i in self._ids]
    if not self._rows:
      among = f" with an answer among {list(answers)}" if answers is not None else ""
      raise UserError(f"easy_vqa has no examples in split '{split}'{among}.")
    self._paths = {image: paths[image] for image in sorted({row[2] for row in self._rows})}
    self._images: dict[int, bytes] = {}

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, i):
    image = self._rows[i][2]
    if image not in self._images:
      self._images[image] = files.file_bytes(self._paths[image])
    return {**self.texts(i), "image": self._images[image]}

  def texts(self, i):
    """The example without its image."""
    question, answer, image = self._rows[i]
    return dict(question=question, answer=answer, id=self._ids[i], image_id=image)

  def where(self, i):
    """Split, row and image file."""
    return f"easy_vqa {self.split} row {self._ids[i]} (image {self._paths[self._rows[i][2]]})"


@functools.cache  # Training and validation questions are in one file.
def _read(split):
  """(its questions, the path of each image)."""
  try:
    import easy_vqa
  except ImportError:
    raise UserError("data='easy_vqa' needs its package: pip install easy-vqa.") from None
  questions = getattr(easy_vqa, f"get_{split}_questions")()
  return list(zip(*questions, strict=True)), getattr(easy_vqa, f"get_{split}_image_paths")()


def cut_split(split: str):
  """ "train[:5%]" -> ("train", f), where f(len) is the slice; for sources that are lists."""
  match = re.fullmatch(r"(\w+)(?:\[(-?\d{1,18}%?)?:(-?\d{1,18}%?)?\])?", split)
  if not match:
    raise UserError(f"Split '{split}' is invalid; write train, train[:5%] or train[10:20].")
  name, *ends = match.groups()

  def position(end, length):
    if end is None:
      return None
    return round(int(end[:-1]) / 100 * length) if end.endswith("%") else int(end)

  return name, lambda length: slice(*(position(end, length) for end in ends))
