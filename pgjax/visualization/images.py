"""How does an example look in a page or a file: its image, with what was answered drawn on it?

boxes.py draws the lines. Masks need the weights of their VQ-VAE (formats/seg_vae_npz.py).
"""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pgjax.data import locations, masks
from pgjax.errors import UserError
from pgjax.formats import seg_vae_npz
from pgjax.models import seg_vae
from pgjax.visualization import boxes as draw_boxes

_PNG_PIXELS = 16_384  # Up to here a PNG is small, and nothing of it is lost.


def seen(image: np.ndarray) -> np.ndarray:
  """What the model gets, float [H, W, 3] or [N, H, W, 3] in [-1, 1], as uint8; frames in a grid."""
  pixels = draw_boxes.to_uint8(image)
  if pixels.ndim == 3:
    return pixels
  across = math.isqrt(len(pixels) - 1) + 1
  down = -(-len(pixels) // across)
  missing = np.full((across * down - len(pixels), *pixels.shape[1:]), 127, np.uint8)
  grid = np.concatenate([pixels, missing]).reshape(down, across, *pixels.shape[1:])
  return np.concatenate(np.concatenate(grid, axis=1), axis=1)


def marked(
  pixels: np.ndarray,
  found: Sequence[locations.Object],
  classes: Sequence[str] = (),
  *,
  mask_weights: str | None = "oi",
) -> tuple[Image.Image, str]:
  """(uint8 [H, W, 3] with boxes and masks, what could not be drawn: a sentence, or "").

  mask_weights: what decodes masks (formats/seg_vae_npz.py); None leaves them out.
  """
  masks_HW, said = [None] * len(found), ""
  try:
    if mask_weights:
      masks_HW = masks_of(found, *pixels.shape[:2], mask_weights)
  except UserError as error:  # The weights are not there.
    said = f"Masks are not drawn, only their boxes. {error}"
  return draw_boxes.objects(pixels, found, masks=masks_HW, classes=classes), said


def masks_of(
  found: Sequence[locations.Object], height: int, width: int, mask_weights: str = "oi"
) -> list[np.ndarray | None]:
  """Bool [height, width] for each object with codes, None for the others."""
  codes = np.array([o.codes for o in found if o.codes is not None])
  if not len(codes):
    return [None] * len(found)
  decoded = iter(np.asarray(seg_vae.decode(seg_vae_npz.load(mask_weights), codes))[:, :, :, 0])
  return [
    None if o.codes is None else masks.paste(next(decoded), o.box, height, width) for o in found
  ]


def data_uri(image: np.ndarray | Image.Image, most_pixels: int) -> str:
  """A picture of at most so many pixels a side, inside of a page."""
  small = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)
  small.thumbnail((most_pixels, most_pixels))
  kind = "png" if small.width * small.height <= _PNG_PIXELS else "jpeg"
  file = io.BytesIO()
  small.save(file, kind, **({} if kind == "png" else dict(quality=78)))
  return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
