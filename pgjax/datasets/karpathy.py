"""What does Karpathy's dataset_coco.json hold? The splits and captions of COCO 2014."""

from typing import Annotated

import msgspec
from msgspec import Meta

from pgjax.datasets import base

FILE = "dataset_coco.json"
SOURCE = "cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip), images of COCO 2014"
IMAGES = ("train2014", "val2014")


class Sentence(msgspec.Struct):
  """One caption."""

  raw: str
  sentid: base.Int64


class Image(msgspec.Struct):
  """One image, in folder `filepath`."""

  cocoid: base.Int64
  filename: base.Name
  split: str
  sentences: list[Sentence]
  filepath: Annotated[str, Meta(pattern="^(train|val)2014$")]


class _File(msgspec.Struct):
  images: list[Image]


def images(raw: base.Raw) -> list[Image]:
  """All images of the file."""
  return raw.json(FILE, _File).images


def file(raw: base.Raw, image: Image) -> base.File:
  """The image itself."""
  return raw.image(image.filepath, image.filename, f"{FILE}, cocoid {image.cocoid}")
