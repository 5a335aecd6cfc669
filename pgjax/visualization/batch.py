"""What does the model get of an example? One picture: image, tokens with their masks, attention.

The image is drawn after pp, back in 0..255, with the boxes and masks of the answer. A token's
ground says what it is for (TOKEN_KINDS); three bars below it are mask_input, mask_ar and mask_loss.
In the attention matrix a row sees the coloured columns; the tokens of an image, which all see the
same, are one block. Pieces are written with a dot for a space.
"""

import functools
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pgjax.data import locations
from pgjax.models import paligemma
from pgjax.visualization import boxes as draw_boxes, images as draw_images

# Pixels: a panel's side, around it, names of tokens beside it.
PANEL, MARGIN, LABELS = 560, 24, 130
WIDTH = 3 * MARGIN + 2 * PANEL + LABELS
# A token, each bar below it, from one row of tokens to the next.
TOKEN_HEIGHT, BAR, ROW = 24, 7, 62
IMAGE_CELLS = 6  # How many tokens wide an image is in the matrix.
SHOWN_PADDING = 2  # Tokens of padding that are shown; the others are alike.
MAX_LINES = 3  # Of the prompt, and of the answer.
IN_RUN = 4  # Pictures that a training run makes of its first batch.
INK, GREY, LINE, PAPER = (30, 30, 30), (120, 120, 120), (205, 205, 205), (255, 255, 255)
ON, OFF = (60, 60, 60), (226, 226, 226)


class TokenKind(NamedTuple):
  """What a token is for."""

  colour: tuple[int, int, int]
  meaning: str


TOKEN_KINDS = {
  "image": TokenKind((190, 224, 195), "image: seen by all"),
  "prompt": TokenKind((178, 212, 245), "prompt: seen by all, not learned"),
  "answer": TokenKind((255, 205, 130), "answer: learned, sees what is before it"),
  "forced": TokenKind((250, 240, 140), "seen in order, not learned"),
  "padding": TokenKind((232, 232, 232), "padding"),
  "odd": TokenKind((245, 110, 110), "unusual: these masks do not go together"),
}
_OF_MASKS = {(1, 0, 0): "prompt", (1, 1, 1): "answer", (1, 1, 0): "forced", (0, 1, 0): "padding"}


class Tokens(NamedTuple):
  """The text of one example: pieces, kinds, and the masks input, ar, loss of each."""

  pieces: list[str]
  kinds: list[str]
  masks: list[tuple[int, int, int]]
  hidden: int  # Tokens of padding that are not shown.


def tokens_of(row: Mapping[str, np.ndarray], tokenizer: Any) -> Tokens:
  """`row`: text, mask_ar, and mask_loss or mask_input, of one example."""
  text, ar = row["text"], row["mask_ar"]
  real = "mask_input" if "mask_input" in row else "text"
  read = row[real] != (0 if real == "mask_input" else tokenizer.pad)
  loss = row["mask_loss"] if "mask_loss" in row else np.zeros_like(ar)
  used = int(np.max(np.flatnonzero(read), initial=-1)) + 1
  shown = min(len(text), used + SHOWN_PADDING)
  masks = [(int(bool(i)), int(a), int(bool(w))) for i, a, w in zip(read, ar, loss, strict=True)]
  kinds = [_OF_MASKS.get(mask, "odd") for mask in masks]
  pieces = [tokenizer.piece(int(t)) for t in text]
  return Tokens(pieces[:shown], kinds[:shown], masks[:shown], len(text) - shown)


def answer_of(row: Mapping[str, np.ndarray], tokenizer: Any) -> tuple[str, str]:
  """(prompt, answer) as texts: what is not learned and what is, without padding."""
  learned = row["mask_loss"].astype(bool) if "mask_loss" in row else row["mask_ar"].astype(bool)
  real = row["text"] != tokenizer.pad
  return tokenizer.decode(row["text"][real & ~learned]), tokenizer.decode(row["text"][learned])


def example(
  row: Mapping[str, np.ndarray],
  tokenizer: Any,
  *,
  title: str,
  patches: int,
  mask_weights: str | None = None,
) -> Image.Image:
  """The whole picture of one row of a batch.

  `patches` is how many tokens an image has. Masks are drawn only with `mask_weights`, a name that
  seg_weights knows.
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
  size = f"{' x '.join(map(str, pixels.shape))}, from {low:.2f} to {high:.2f}"
  pen.text((MARGIN, top - 19), f"image as the model sees it: {size}", GREY, _font(13))
  attention(picture, row, tokens, (2 * MARGIN + PANEL + LABELS, top), patches)
  _legend(pen, {"image", *tokens.kinds}, below + 2)
  _draw_tokens(pen, tokens, places)
  return picture


def of_run(
  batch: Mapping[str, np.ndarray], tokenizer: Any, folder: pathlib.Path, model: Any
) -> str:
  """Pictures of a run's first examples, in a folder; the line for its log. Never raises."""
  count = min(IN_RUN, len(batch["text"]))
  try:
    folder.mkdir(parents=True, exist_ok=True)
    patches = patches_of(model, batch["image"].shape[-2])
    for i in range(count):
      row = {name: array[i] for name, array in batch.items()}
      made = example(row, tokenizer, title=f"Example {i} of the first batch", patches=patches)
      made.save(folder / f"example_{i}.png", compress_level=3)
  except Exception as error:  # A picture is not worth a run.
    return f"The first batch could not be drawn: {type(error).__name__}: {error}"
  return f"The first examples as the model gets them are drawn in {folder}"


def patches_of(model: Any, res: int) -> int:
  """Tokens of one image."""
  patch = model.img_config.patch_size
  return (res // patch[0]) * (res // patch[1])


# The image


def image_panel(
  row: Mapping[str, np.ndarray], prompt: str, answer: str, mask_weights: str | None = None
) -> Image.Image:
  """PANEL x PANEL; several frames side by side, those that are padding crossed out.

  A class has the colour of its place in the prompt, so that pictures can be compared.
  """
  classes = re.sub(r"^(detect|segment) ", "", prompt.strip()).split(locations.SEPARATOR)
  frames = row["image"] if row["image"].ndim == 4 else row["image"][None]
  real = row["image_mask"] if "image_mask" in row else np.ones(len(frames), bool)
  across = math.ceil(math.sqrt(len(frames)))
  side = PANEL // across
  panel = Image.new("RGB", (PANEL, PANEL), PAPER)
  for k, frame in enumerate(frames):
    found = locations.parse(answer).objects if len(frames) == 1 else ()
    shown = _with_objects(frame, found, classes, mask_weights)
    shown = shown.resize((side, side), Image.Resampling.LANCZOS)
    if not real[k]:
      ImageDraw.Draw(shown).line([(0, 0), (side, side)], fill=TOKEN_KINDS["odd"].colour, width=3)
    panel.paste(shown, (k % across * side, k // across * side))
  return panel


def _with_objects(frame_HWC, found, classes, mask_weights):
  pixels = draw_images.seen(frame_HWC)
  factor = max(
    1, math.ceil(draw_boxes.MIN_SIDE / max(pixels.shape))
  )  # Pixels stay squares, as they are.
  pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
  if not found:
    return Image.fromarray(pixels)
  return draw_images.marked(pixels, found, classes, mask_weights=mask_weights)[0]


# The tokens


def token_places(tokens: Tokens, top: int) -> list[tuple[int, int, int]]:
  """(left, top, width) of each token, in rows of the picture's width."""
  left_edge = MARGIN + 52  # Beside the names of the bars.
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
      at = (MARGIN, y + TOKEN_HEIGHT + 1 + k * (BAR + 2))
      pen.text(at, name, fill=GREY, font=_font(9))
  every = zip(places, tokens.pieces, tokens.kinds, tokens.masks, strict=True)
  for (left, y, width), piece, kind, masks in every:
    right, bottom = left + width - 1, y + TOKEN_HEIGHT - 1
    pen.rectangle([left, y, right, bottom], fill=TOKEN_KINDS[kind].colour)
    pen.text((left + 5, y + 3), shown(piece), fill=INK, font=_font(14))
    for k, value in enumerate(masks):
      bar = bottom + 3 + k * (BAR + 2)
      pen.rectangle([left, bar, right, bar + BAR - 1], fill=ON if value else OFF)
  if tokens.hidden and places:
    left, y, width = places[-1]
    more = f"+ {tokens.hidden:,} x padding"
    pen.text((left + width + 8, y + 3), more, fill=GREY, font=_font(14))


def _legend(pen, kinds, y) -> None:
  left = MARGIN
  for name, kind in TOKEN_KINDS.items():
    if name in kinds:
      pen.rectangle([left, y, left + 16, y + 16], fill=kind.colour)
      pen.text((left + 22, y), kind.meaning, fill=INK, font=_font(13))
      left += 44 + math.ceil(_font(13).getlength(kind.meaning))
  pen.text((left, y), "bars: dark 1, light 0", fill=GREY, font=_font(13))


def _lines(name: str, text: str) -> list[str]:
  """At most three lines of a text, as wide as the image, with its name before the first."""
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
  """A piece as it is written: a dot for a space, an escape for what the font has not."""
  return "".join(map(_glyph, piece.replace("▁", "·")))


@functools.lru_cache(maxsize=4096)
def _glyph(character: str) -> str:
  if character == "\n" or not _has_glyph(character):
    return character.encode("unicode_escape").decode()
  return character


def _has_glyph(character: str) -> bool:
  font, none = _font(14), "\uffff"
  if character == " ":
    return True
  mask, missing = font.getmask(character), font.getmask(none)
  return (mask.size, bytes(mask)) != (missing.size, bytes(missing))


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  """DejaVu where the system has it, for its many letters; else Pillow's own."""
  try:
    return ImageFont.truetype("DejaVuSans.ttf", size)
  except OSError:
    return ImageFont.load_default(size)


# The attention


def allowed(row: Mapping[str, np.ndarray], length: int) -> np.ndarray:
  """bool [N + length, N + length] for N images and the first tokens: who (row) sees whom.

  Made of a few more tokens than are shown, in steps of 64: few shapes, and never a long text's.
  """
  images = row["image_mask"] if "image_mask" in row else np.ones(1, bool)
  ar = np.concatenate([np.zeros(len(images), np.int32), row["mask_ar"]])
  text = row["mask_input"] if "mask_input" in row else np.ones(len(row["text"]))
  valid = np.concatenate([images, text]).astype(bool)
  end = len(images) + length
  made = -(-end // 64) * 64
  ar, valid = jnp.asarray(ar[None, :made]), jnp.asarray(valid[None, :made])
  return np.asarray(paligemma.prefix_lm_mask(ar, valid)[0])[:end, :end]


def attention(
  picture: Image.Image,
  row: Mapping[str, np.ndarray],
  tokens: Tokens,
  at: Sequence[int],
  patches: int,
) -> None:
  """Draws the matrix with its upper left corner at `at`; names to the left and above it.

  A training text is one longer than the model's input, which lacks its last token.
  """
  left, top = at
  length = min(len(tokens.pieces), len(row["text"]) - ("mask_loss" in row))
  seen = allowed(row, length)
  num_images = len(seen) - length
  kinds = ["image"] * num_images + tokens.kinds[:length]
  names = [f"image, {patches:,} tokens"] * num_images
  names += [shown(piece) for piece in tokens.pieces[:length]]
  widths = np.array([IMAGE_CELLS] * num_images + [1] * length)
  edges = np.round(np.concatenate([[0], np.cumsum(widths)]) * PANEL / widths.sum()).astype(int)
  colours = np.array([TOKEN_KINDS[kind].colour for kind in kinds], np.uint8)
  cells = np.where(seen[:, :, None], colours[:, None], np.uint8(250)).astype(np.uint8)
  cells = np.repeat(np.repeat(cells, np.diff(edges), axis=0), np.diff(edges), axis=1)
  picture.paste(Image.fromarray(cells), (left, top))
  pen = ImageDraw.Draw(picture)
  if PANEL / widths.sum() >= 11:  # Else there would be more lines than colour.
    for edge in edges:
      pen.line([(left + edge, top), (left + edge, top + PANEL)], fill=LINE)
      pen.line([(left, top + edge), (left + PANEL, top + edge)], fill=LINE)
  pen.rectangle([left, top, left + PANEL, top + PANEL], outline=GREY)
  _names(picture, names, edges, (left, top))


def _names(picture, names, edges, at) -> None:
  """Of those whose cells are high enough to be written beside."""
  left, top = at
  middles = (edges[:-1] + edges[1:]) / 2
  for name, middle, high in zip(names, middles, np.diff(edges), strict=True):
    if high < 9:
      continue
    size = min(13, int(high) - 1)
    font = _font(size)
    width = min(math.ceil(font.getlength(name)) + 2, LABELS - 6)
    label = Image.new("L", (width, size + 5))  # How much ink: neighbours' letters may overlap.
    ImageDraw.Draw(label).text((0, 0), name, fill=255, font=font)
    picture.paste(INK, (left - 5 - width, int(top + middle - (size + 5) / 2)), label)
    up = label.transpose(Image.Transpose.ROTATE_90)
    picture.paste(INK, (int(left + middle - (size + 5) / 2), top - 5 - width), up)
  pen = ImageDraw.Draw(picture)
  pen.text((left, top + PANEL + 4), "row: who looks; column: at whom", GREY, _font(13))
