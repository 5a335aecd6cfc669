"""An answer: text, tokens with their log-probabilities, boxes and masks in pixels."""

import dataclasses
import html
import math
from typing import Any

import numpy as np
from PIL import Image

from pgjax.data import images, locations
from pgjax.visualization import images as draw_images


@dataclasses.dataclass(frozen=True)
class Box:
  """One object: x0, y0, x1, y1 in pixels of the image, and a score from 0 to 1."""

  label: str
  xyxy: tuple[float, float, float, float]
  score: float


@dataclasses.dataclass(frozen=True)
class Mask:
  """One object with its mask, bool [height, width] of the whole image."""

  label: str
  xyxy: tuple[float, float, float, float]
  score: float
  mask: np.ndarray = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Answer:
  """One answer; a notebook shows it as the image with the objects drawn on it."""

  prompt: str
  text: str
  tokens: tuple[int, ...]  # The last is <eos> if `ended`, else max_decode_len cut the answer.
  token_logps: tuple[float, ...]
  ended: bool
  image_size: tuple[int, int]  # Width and height of the (first) image.
  image: Any = dataclasses.field(repr=False, compare=False)  # As it was passed.
  objects: tuple[locations.Object, ...] = dataclasses.field(repr=False)  # In shares of the image.

  @property
  def logp(self) -> float:
    """The log-probability of the whole answer."""
    return sum(self.token_logps)

  @property
  def boxes(self) -> tuple[Box, ...]:
    """The objects of the text, <loc> tokens and label, in its order."""
    return tuple(Box(*self._fields(o)) for o in self.objects)

  @property
  def masks(self) -> tuple[Mask, ...]:
    """The objects with a mask; decoding it needs the VQ-VAE (docs/boxes.md)."""
    masks_HW = draw_images.masks_of(self.objects, *self.image_size[::-1])
    pairs = zip(self.objects, masks_HW, strict=True)
    return tuple(Mask(*self._fields(o), mask_HW) for o, mask_HW in pairs if mask_HW is not None)

  def draw(self) -> Image.Image:
    """The (first) image with boxes and masks; without the VQ-VAE, a warning and only boxes."""
    encoded = images.encoded(self.image)
    pixels = images.decode(encoded[0] if isinstance(encoded, list) else encoded)
    return draw_images.with_objects(pixels, self.objects)

  def _repr_html_(self) -> str:
    picture = draw_images.data_uri(self.draw(), 480)
    prompt, text = html.escape(self.prompt), html.escape(self.text)
    caption = f"{prompt}<br><b>{text}</b> (probability {math.exp(self.logp):.3g})"
    return f'<figure><img src="{picture}"><figcaption>{caption}</figcaption></figure>'

  def _fields(self, o: locations.Object) -> tuple[str, tuple[float, ...], float]:
    width, height = self.image_size
    return o.label, locations.from_normalised(o.box, "voc", width=width, height=height), o.score
