"""How does an example look in a page or a file? As its image with the objects drawn on it.

boxes.py draws them. Masks need the weights of their VQ-VAE (formats/seg_vae_npz.py).
"""

import base64
import io
import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from pgjax.data import locations, masks
from pgjax.errors import UserError
from pgjax.formats import seg_vae_npz
from pgjax.models import seg_vae
from pgjax.visualization import boxes as draw_boxes

log = logging.getLogger("pgjax")

_PNG_PIXELS = 16_384  # Pictures up to this size become PNG, which is lossless; others JPEG.


def to_grid(image: np.ndarray) -> np.ndarray:
  """The model's input, float [H, W, 3] or [N, H, W, 3] in [-1, 1], as uint8; frames in a grid."""
  pixels = draw_boxes.to_uint8(image)
  if pixels.ndim == 3:
    return pixels
  across = math.isqrt(len(pixels) - 1) + 1
  down = -(-len(pixels) // across)
  missing = np.full((across * down - len(pixels), *pixels.shape[1:]), 127, np.uint8)
  grid = np.concatenate([pixels, missing]).reshape(down, across, *pixels.shape[1:])
  return np.concatenate(np.concatenate(grid, axis=1), axis=1)


def with_objects(
  pixels: np.ndarray,
  objects: Sequence[locations.Object],
  classes: Sequence[str] = (),
  *,
  mask_weights: str | None = "oi",
  warn: Callable[[str], None] = log.warning,
) -> Image.Image:
  """uint8 [H, W, 3] with boxes and masks drawn on it.

  mask_weights: those of the VQ-VAE (formats/seg_vae_npz.py); None draws no masks. If they are
  missing, `warn` is called and only boxes are drawn.
  """
  masks_HW = ()
  try:
    if mask_weights:
      masks_HW = masks_of(objects, *pixels.shape[:2], mask_weights)
  except UserError as error:
    warn(f"Masks are not drawn, only their boxes. {error}")
  return draw_boxes.objects(pixels, objects, masks=masks_HW, classes=classes)


def masks_of(
  objects: Sequence[locations.Object], height: int, width: int, mask_weights: str = "oi"
) -> list[np.ndarray | None]:
  """Bool [height, width] for each object with codes, None for the others."""
  codes = np.array([o.codes for o in objects if o.codes is not None])
  if not len(codes):
    return [None] * len(objects)
  decoded = iter(np.asarray(seg_vae.decode(seg_vae_npz.load(mask_weights), codes))[:, :, :, 0])
  return [
    None if o.codes is None else masks.paste(next(decoded), o.box, height, width) for o in objects
  ]


def data_uri(image: np.ndarray | Image.Image, most_pixels: int) -> str:
  """The picture as a data URI, shrunk to at most `most_pixels` a side."""
  small = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)
  small.thumbnail((most_pixels, most_pixels))
  kind = "png" if small.width * small.height <= _PNG_PIXELS else "jpeg"
  file = io.BytesIO()
  small.save(file, kind, quality=78)  # PNG ignores it.
  return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
