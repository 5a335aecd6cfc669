"""How does an answer look on its image? As boxes with label and score, and translucent masks.

Each label has a colour. Lines have a dark rim and labels a filled background, so that they are
legible on any image; sizes scale with the image, and small images are enlarged.
"""

import bisect
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pgjax.data import locations

MIN_SIDE = 640  # Pixels of the longer side, at least.
MASK_OPACITY = 0.45
MAX_CAPTION, MAX_CAPTION_LINES = 4000, 40
# Each contrasts with black, with white and with the others.
COLOURS = (
  (230, 57, 70), (42, 120, 214), (255, 183, 3), (46, 160, 67), (155, 81, 224), (0, 180, 200),
  (251, 111, 32), (233, 78, 170), (128, 170, 30), (121, 85, 61), (90, 100, 235), (120, 130, 140),
)  # fmt: skip
_RIM = (0, 0, 0, 130)


class _Tag(NamedTuple):
  left: int
  top: int
  right: int
  bottom: int


def objects(
  image: Image.Image | np.ndarray,
  drawn: Sequence[locations.Object],
  *,
  masks: Sequence[np.ndarray | None] = (),
  classes: Iterable[str] = (),
) -> Image.Image:
  """The image with these objects on it.

  `image` is a PIL image, uint8 [H, W, 3], or float [H, W, 3] in [-1, 1]. `masks` are bool [H, W] of
  the whole image, one for each object, or None. With `classes` a class has the same colour in every
  image; else colours follow the labels in this one.
  """
  picture = _as_picture(image)
  colour_of = colours([*classes, *sorted({o.label for o in drawn})])
  for o, mask_HW in zip(drawn, masks, strict=bool(masks)):
    if mask_HW is not None:
      _paint_mask(picture, mask_HW, colour_of[o.label])
  size = max(picture.size)
  line = max(2, round(size / 320))
  # The largest first, so that small ones end up on top.
  order = sorted(drawn, key=lambda o: -locations.area(o.box))
  corners = [_corners(o.box, picture.size) for o in order]
  draw = ImageDraw.Draw(picture, "RGBA")
  for o, box in zip(order, corners, strict=True):
    rim = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
    draw.rectangle(rim, outline=_RIM, width=line + 2)
    draw.rectangle(box, outline=colour_of[o.label], width=line)
  font = ImageFont.load_default(max(11, round(size / 52)))
  taken: list[_Tag] = []
  for o, box in zip(order, corners, strict=True):
    if text := (o.label if o.score is None else f"{o.label} {o.score:.2f}").strip():
      taken.append(_write(draw, text, box, colour_of[o.label], font, taken, picture.size))
  return picture


def captioned(picture: Image.Image, text: str) -> Image.Image:
  """The picture with the lines of a text on a white strip below it, wrapped to its width.

  At most MAX_CAPTION_LINES; letters that the font lacks are drawn as boxes.
  """
  font = ImageFont.load_default(max(14, round(max(picture.size) / 36)))
  pad = font.size // 2
  lines = _wrapped(text, font, picture.width - 2 * pad)
  if len(lines) > MAX_CAPTION_LINES:
    lines = [*lines[: MAX_CAPTION_LINES - 1], "..."]
  step = round(font.size * 1.35)
  whole = Image.new("RGB", (picture.width, picture.height + step * len(lines) + 2 * pad), "white")
  whole.paste(picture.convert("RGB"))
  draw = ImageDraw.Draw(whole)
  for i, line in enumerate(lines):
    draw.text((pad, picture.height + pad + i * step), line, fill=(20, 20, 20), font=font)
  return whole


def _wrapped(text: str, font, width: int) -> list[str]:
  """Lines of at most `width` pixels, broken at spaces, and inside a word that is longer."""
  lines = []
  for paragraph in text[:MAX_CAPTION].splitlines() or [""]:
    line = ""
    for word in re.findall(r"\S+\s*|\s+", paragraph):
      while word:
        if font.getlength((line + word).rstrip()) <= width or not (line or word[1:]):
          line, word = line + word, ""
        elif line.strip():
          lines.append(line.rstrip())
          line = ""
        else:
          fits = bisect.bisect_right(
            range(len(word)), width, key=lambda n: font.getlength(word[:n])
          )
          lines.append(word[: max(1, fits - 1)])
          word, line = word[max(1, fits - 1) :], ""
    lines.append(line.rstrip())
  return lines


def colours(labels: Iterable[str]) -> dict[str, tuple[int, int, int]]:
  """A colour for each label, in their order; twelve colours, which repeat."""
  return dict(zip(dict.fromkeys(labels), itertools.cycle(COLOURS), strict=False))


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Pixels in [-1, 1] as 0..255."""
  return np.clip(np.round((image + 1) * 127.5), 0, 255).astype(np.uint8)


def _as_picture(image) -> Image.Image:
  """A copy whose longer side has at least MIN_SIDE pixels, scaled by an integer factor."""
  if not isinstance(image, Image.Image):
    image = Image.fromarray(image if image.dtype == np.uint8 else to_uint8(image))
  factor = max(1, -(-MIN_SIDE // max(image.size)))
  size = (image.width * factor, image.height * factor)
  return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _corners(box, size) -> tuple[int, int, int, int]:
  """x0, y0, x1, y1 of the outermost pixels, within the picture."""
  (y0, x0, y1, x1), (width, height) = box, size
  left, top = min(int(x0 * width), width - 2), min(int(y0 * height), height - 2)
  right, bottom = round(x1 * width) - 1, round(y1 * height) - 1
  return left, top, max(left + 1, min(right, width - 1)), max(top + 1, min(bottom, height - 1))


def _paint_mask(picture, mask_HW, colour):
  """MASK_OPACITY inside, opaque on the outline."""
  mask = Image.fromarray(np.asarray(mask_HW, bool)).convert("L")
  mask = mask.resize(picture.size, Image.Resampling.NEAREST)
  line = 2 * max(1, round(max(picture.size) / 640)) + 1
  inner = np.asarray(mask.filter(ImageFilter.MinFilter(line)))
  opacity = np.where(np.asarray(mask) > inner, 255, np.asarray(mask) * MASK_OPACITY)
  picture.paste(Image.new("RGB", picture.size, colour), mask=Image.fromarray(opacity.astype("u1")))


def _write(draw, text, box, colour, font, taken, size) -> _Tag:
  """Writes a label above, inside or below its box, where it covers the least of other labels."""
  right, bottom = draw.textbbox((0, 0), text, font=font)[2:]
  pad = max(2, font.size // 5)
  width, height = int(right) + 2 * pad, int(bottom) + pad
  x_places = (box[0], box[2] + 1 - width)
  y_places = (box[1] - height, box[1], box[3] + 1, box[3] + 1 - height)
  places = [_within(x, y, width, height, size) for y in y_places for x in x_places]
  tag = min(places, key=lambda place: sum(_overlap(place, other) for other in taken))
  draw.rectangle([tag.left, tag.top, tag.right - 1, tag.bottom - 1], fill=(*colour, 225))
  light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
  ink = (0, 0, 0) if light > 140 else (255, 255, 255)
  draw.text((tag.left + pad, tag.top + pad // 2), text, fill=ink, font=font)
  return tag


def _within(x, y, width, height, size) -> _Tag:
  """The tag moved into the picture."""
  x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
  return _Tag(x, y, x + width, y + height)


def _overlap(a, b) -> int:
  width = min(a.right, b.right) - max(a.left, b.left)
  height = min(a.bottom, b.bottom) - max(a.top, b.top)
  return max(0, width) * max(0, height)
