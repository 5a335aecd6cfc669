"""What does the model receive of an example? One picture: image, tokens and masks, attention.

The image is drawn after pp, back in 0..255, with the boxes and masks of the answer. A token's
background shows its role (TOKEN_KINDS); the three bars below it are mask_input, mask_ar and
mask_loss. A row of the attention matrix attends to the coloured columns; the tokens of an image,
which attend alike, are one block. A dot in a token is a space.
"""

import functools
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pgjax.data import locations
from pgjax.models import paligemma
from pgjax.visualization import boxes as draw_boxes, images as draw_images

PANEL, MARGIN, LABELS = 560, 24, 130  # Pixels: a panel's side, space around it, token names.
WIDTH = 3 * MARGIN + 2 * PANEL + LABELS
TOKEN_HEIGHT, BAR, ROW = 24, 7, 62  # Pixels: a token, a bar below it, the pitch of token rows.
IMAGE_CELLS = 6  # Width of an image in the matrix, in tokens.
SHOWN_PADDING = 2  # Padding tokens that are drawn.
MAX_LINES = 3  # Of the prompt, and of the answer.
IN_RUN = 4  # Examples of its first batch that a training run draws.
INK, GREY, LINE, PAPER = (30, 30, 30), (120, 120, 120), (205, 205, 205), (255, 255, 255)
ON, OFF = (60, 60, 60), (226, 226, 226)


class TokenKind(NamedTuple):
  """The role of a token."""

  colour: tuple[int, int, int]
  meaning: str


TOKEN_KINDS = {
  "image": TokenKind((190, 224, 195), "image: attended to by all"),
  "prompt": TokenKind((178, 212, 245), "prompt: attended to by all, no loss"),
  "answer": TokenKind((255, 205, 130), "answer: causal, in the loss"),
  "forced": TokenKind((250, 240, 140), "causal, no loss"),
  "padding": TokenKind((232, 232, 232), "padding"),
  "odd": TokenKind((245, 110, 110), "inconsistent masks"),
}
_OF_MASKS = {(1, 0, 0): "prompt", (1, 1, 1): "answer", (1, 1, 0): "forced", (0, 1, 0): "padding"}


class Tokens(NamedTuple):
  """The text of one example: pieces, kinds, and masks (input, ar, loss)."""

  pieces: list[str]
  kinds: list[str]
  masks: list[tuple[int, int, int]]
  hidden: int  # Padding tokens that are not drawn.


def tokens_of(row: Mapping[str, np.ndarray], tokenizer: Any) -> Tokens:
  """`row`: text, mask_ar, and mask_loss or mask_input, of one example."""
  text, ar = row["text"], row["mask_ar"]
  used = row["mask_input"] != 0 if "mask_input" in row else text != tokenizer.pad
  loss = row.get("mask_loss", np.zeros_like(ar))
  shown = min(len(text), int(np.max(np.flatnonzero(used), initial=-1)) + 1 + SHOWN_PADDING)
  masks = [(int(i), int(a), int(bool(w))) for i, a, w in zip(used, ar, loss, strict=True)][:shown]
  pieces = [tokenizer.piece(int(t)) for t in text[:shown]]
  kinds = [_OF_MASKS.get(mask, "odd") for mask in masks]
  return Tokens(pieces, kinds, masks, len(text) - shown)


def answer_of(row: Mapping[str, np.ndarray], tokenizer: Any) -> tuple[str, str]:
  """(prompt, answer) as texts: the tokens outside and in the loss, without padding."""
  text, is_answer = row["text"], row.get("mask_loss", row["mask_ar"]).astype(bool)
  prompt = text[(text != tokenizer.pad) & ~is_answer]
  return tokenizer.decode(prompt), tokenizer.decode(text[is_answer])


def example(
  row: Mapping[str, np.ndarray],
  tokenizer: Any,
  *,
  title: str,
  patches: int,
  mask_weights: str | None = None,
) -> Image.Image:
  """The whole picture of one row of a batch; an image has `patches` tokens.

  Masks are drawn only with `mask_weights` (formats/seg_vae_npz.py).
  """
  tokens = tokens_of(row, tokenizer)
  prompt, answer = answer_of(row, tokenizer)
  top = MARGIN + LABELS + 34
  below = top + PANEL + MARGIN
  places = token_places(tokens, below + 34)
  height = (places[-1][1] if places else below) + ROW + MARGIN
  picture = Image.new("RGB", (WIDTH, height), PAPER)
  pen = ImageDraw.Draw(picture)
  pen.text((MARGIN, MARGIN - 6), title, fill=INK, font=_font(20))
  for i, line in enumerate(_lines("prompt", prompt) + _lines("answer", answer)):
    pen.text((MARGIN, MARGIN + 26 + 19 * i), line, fill=INK, font=_font(14))
  picture.paste(image_panel(row, prompt, answer, mask_weights), (MARGIN, top))
  pen.rectangle([MARGIN - 1, top - 1, MARGIN + PANEL, top + PANEL], outline=LINE)
  pixels = row["image"]
  low, high = (round(float(n), 2) + 0.0 for n in (pixels.min(), pixels.max()))  # -0.0 becomes 0.
  size = f"{' x '.join(map(str, pixels.shape))}, values from {low:.2f} to {high:.2f}"
  pen.text((MARGIN, top - 19), f"model input: {size}", GREY, _font(13))
  attention(picture, row, tokens, (2 * MARGIN + PANEL + LABELS, top), patches)
  _legend(pen, {"image", *tokens.kinds}, below + 2)
  _draw_tokens(pen, tokens, places)
  return picture


def draw_first_batch(
  batch: Mapping[str, np.ndarray], tokenizer: Any, folder: pathlib.Path, model: Any
) -> str:
  """Draws a run's first examples into `folder` and returns a line for its log. Never raises."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    patches = patches_of(model, batch["image"].shape[-2])
    for i in range(min(IN_RUN, len(batch["text"]))):
      row = {name: array[i] for name, array in batch.items()}
      picture = example(row, tokenizer, title=f"Example {i} of the first batch", patches=patches)
      picture.save(folder / f"example_{i}.png", compress_level=3)
  except Exception as error:  # A failed picture must not stop a run.
    return f"The first batch could not be drawn: {type(error).__name__}: {error}"
  return f"The first examples, as the model receives them, are drawn in {folder}"


def patches_of(model: Any, res: int) -> int:
  """Tokens of one image."""
  height, width = model.img_config.patch_size
  return (res // height) * (res // width)


# The image


def image_panel(
  row: Mapping[str, np.ndarray], prompt: str, answer: str, mask_weights: str | None = None
) -> Image.Image:
  """PANEL x PANEL; several frames in a grid, padding frames crossed out.

  The place of a class in the prompt decides its colour, so that pictures are comparable.
  """
  classes = re.sub(r"^(detect|segment) ", "", prompt.strip()).split(locations.SEPARATOR)
  frames = row["image"] if row["image"].ndim == 4 else row["image"][None]
  real = row.get("image_mask", np.ones(len(frames), bool))
  objects = locations.parse(answer).objects if len(frames) == 1 else ()
  across = math.ceil(math.sqrt(len(frames)))
  side = PANEL // across
  panel = Image.new("RGB", (PANEL, PANEL), PAPER)
  for k, frame in enumerate(frames):
    pixels = draw_images.to_grid(frame)
    factor = math.ceil(draw_boxes.MIN_SIDE / max(pixels.shape))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)  # Sharp squares, not blurred.
    picture = draw_images.with_objects(pixels, objects, classes, mask_weights=mask_weights)
    picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    if not real[k]:
      ImageDraw.Draw(picture).line([(0, 0), (side, side)], fill=TOKEN_KINDS["odd"].colour, width=3)
    panel.paste(picture, (k % across * side, k // across * side))
  return panel


# The tokens


def token_places(tokens: Tokens, top: int) -> list[tuple[int, int, int]]:
  """(left, top, width) of each token, in rows of the picture's width."""
  left_edge = MARGIN + 52  # Right of the names of the bars.
  places, left, y = [], left_edge, top
  for piece in tokens.pieces:
    width = max(18, math.ceil(_font(14).getlength(shown(piece))) + 10)
    if left + width > WIDTH - MARGIN and left > left_edge:
      left, y = left_edge, y + ROW
    places.append((left, y, width))
    left += width + 2
  return places


def _draw_tokens(pen, tokens, places) -> None:
  for y in sorted({y for _, y, _ in places}):
    for k, name in enumerate(("input", "ar", "loss")):
      pen.text((MARGIN, y + TOKEN_HEIGHT + 1 + k * (BAR + 2)), name, fill=GREY, font=_font(9))
  drawn = zip(places, tokens.pieces, tokens.kinds, tokens.masks, strict=True)
  for (left, y, width), piece, kind, masks in drawn:
    right, bottom = left + width - 1, y + TOKEN_HEIGHT - 1
    pen.rectangle([left, y, right, bottom], fill=TOKEN_KINDS[kind].colour)
    pen.text((left + 5, y + 3), shown(piece), fill=INK, font=_font(14))
    for k, value in enumerate(masks):
      bar = bottom + 3 + k * (BAR + 2)
      pen.rectangle([left, bar, right, bar + BAR - 1], fill=ON if value else OFF)
  if tokens.hidden and places:
    left, y, width = places[-1]
    more = f"+ {tokens.hidden:,} padding tokens"
    pen.text((left + width + 8, y + 3), more, fill=GREY, font=_font(14))


def _legend(pen, kinds, y) -> None:
  left = MARGIN
  for name, kind in TOKEN_KINDS.items():
    if name in kinds:
      pen.rectangle([left, y, left + 16, y + 16], fill=kind.colour)
      pen.text((left + 22, y), kind.meaning, fill=INK, font=_font(13))
      left += 44 + math.ceil(_font(13).getlength(kind.meaning))
  pen.text((left, y), "bars: dark = 1, light = 0", fill=GREY, font=_font(13))


def _lines(name: str, text: str) -> list[str]:
  """The text after its name, in at most MAX_LINES lines as wide as the image."""
  line, lines = f"{name}:  ", []
  for character in "".join(map(_glyph, text.rstrip("\n"))):
    if _font(14).getlength(line + character + "…") > PANEL:
      lines, line = [*lines, line], ""
      if len(lines) == MAX_LINES:
        lines[-1] += "…"
        return lines
    line += character
  return [*lines, line]


def shown(piece: str) -> str:
  """A piece as drawn: a dot for a space, an escape for characters that the font lacks."""
  return "".join(map(_glyph, piece.replace("▁", "·")))


@functools.lru_cache(maxsize=4096)
def _glyph(character: str) -> str:
  if character == " " or (character != "\n" and _ink(character) != _ink("\uffff")):
    return character
  return character.encode("unicode_escape").decode()


def _ink(character: str) -> tuple[tuple[int, int], bytes]:
  mask = _font(14).getmask(character)
  return mask.size, bytes(mask)


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  """DejaVu, which has many characters, if it is installed; else Pillow's own font."""
  try:
    return ImageFont.truetype("DejaVuSans.ttf", size)
  except OSError:
    return ImageFont.load_default(size)


# The attention


def allowed(row: Mapping[str, np.ndarray], length: int) -> np.ndarray:
  """bool [N + length, N + length] for N images and the first tokens: row attends to column."""
  images = row.get("image_mask", np.ones(1, bool))
  ar = np.concatenate([np.zeros(len(images), np.int32), row["mask_ar"]])
  text = row.get("mask_input", np.ones(len(row["text"])))
  valid = np.concatenate([images, text]).astype(bool)
  end = len(images) + length
  return paligemma.prefix_lm_mask(ar[None, :end], valid[None, :end])[0]


def attention(
  picture: Image.Image,
  row: Mapping[str, np.ndarray],
  tokens: Tokens,
  at: Sequence[int],
  patches: int,
) -> None:
  """Draws the matrix with its upper left corner at `at`, with names to the left and above.

  The last token of a training text is only a target, so it is left out.
  """
  left, top = at
  length = min(len(tokens.pieces), len(row["text"]) - ("mask_loss" in row))
  seen = allowed(row, length)
  num_images = len(seen) - length
  kinds = ["image"] * num_images + tokens.kinds[:length]
  names = [f"image, {patches:,} tokens"] * num_images + list(map(shown, tokens.pieces[:length]))
  widths = np.array([IMAGE_CELLS] * num_images + [1] * length)
  edges = np.round(np.concatenate([[0], np.cumsum(widths)]) * PANEL / widths.sum()).astype(int)
  colours = np.array([TOKEN_KINDS[kind].colour for kind in kinds], np.uint8)
  cells = np.where(seen[:, :, None], colours[:, None], np.uint8(250)).astype(np.uint8)
  cells = np.repeat(np.repeat(cells, np.diff(edges), axis=0), np.diff(edges), axis=1)
  picture.paste(Image.fromarray(cells), (left, top))
  pen = ImageDraw.Draw(picture)
  if PANEL / widths.sum() >= 11:  # Else lines would hide the colours.
    for edge in edges:
      pen.line([(left + edge, top), (left + edge, top + PANEL)], fill=LINE)
      pen.line([(left, top + edge), (left + PANEL, top + edge)], fill=LINE)
  pen.rectangle([left, top, left + PANEL, top + PANEL], outline=GREY)
  _names(picture, names, edges, (left, top))


def _names(picture, names, edges, at) -> None:
  """Writes the names of cells that are high enough for text."""
  left, top = at
  middles = (edges[:-1] + edges[1:]) / 2
  for name, middle, high in zip(names, middles, np.diff(edges), strict=True):
    if high < 9:
      continue
    size = min(13, int(high) - 1)
    width = min(math.ceil(_font(size).getlength(name)) + 2, LABELS - 6)
    label = Image.new("L", (width, size + 5))  # Opacity, as neighbouring letters may overlap.
    ImageDraw.Draw(label).text((0, 0), name, fill=255, font=_font(size))
    picture.paste(INK, (left - 5 - width, int(top + middle - (size + 5) / 2)), label)
    up = label.transpose(Image.Transpose.ROTATE_90)
    picture.paste(INK, (int(left + middle - (size + 5) / 2), top - 5 - width), up)
  note = "attention: each row attends to the coloured columns"
  ImageDraw.Draw(picture).text((left, top + PANEL + 4), note, GREY, _font(13))
