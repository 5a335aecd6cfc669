"""Which examples are in a COCO file of images with boxes and masks, or with captions?

dict(name="coco", fname="data/train.json", images="data/train", classes=["cat", "dog"]): `images` is
the folder of the images (default: the file's folder), `classes` the classes in the prompt (default:
all in the file), `start` and `stop` a range of images. `classes_from` is the file of the training
data, whose classes are asked for instead. annotated.py lists the columns.
"""

import os

from pgjax.data.sources import annotated, coco_file


class Coco(annotated.Annotated):
  """One example for each image, in the order of the file."""

  def __init__(
    self, fname, images=None, classes=None, split=None, start=None, stop=None, classes_from=None
  ):
    del split  # A file is its own split.
    fname = os.path.expanduser(fname)
    super().__init__(
      coco_file.read(fname),
      fname,
      images or os.path.dirname(fname),
      classes=classes,
      classes_from=classes_from,
      read_classes=coco_file.classes,
      start=start,
      stop=stop,
    )
