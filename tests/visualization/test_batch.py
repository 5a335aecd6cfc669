"""The picture of an example, at pixels with known colours."""

import math

import numpy as np
import pytest
from PIL import Image

from pgjax.data import prefix_lm, tokenizer
from pgjax.visualization import batch as draw_batch

TOKENIZER = tokenizer.load("tiny")
TOKEN_KINDS = draw_batch.TOKEN_KINDS


def row(prefix="what", suffix="yes", text_len=16):
  """Left half of the image black, right half white."""
  image = np.full((16, 16, 3), -1, np.float32)
  image[:, 8:] = 1
  return dict(prefix_lm.for_training(TOKENIZER, prefix, suffix, text_len).arrays, image=image)


def colours(picture, *points):
  return [picture.getpixel(point) for point in points]


def test_tokens_have_the_colour_of_their_role():
  of = row()
  tokens = draw_batch.tokens_of(of, TOKENIZER)
  prompt = 1 + len(TOKENIZER.encode("what")) + 1
  answer = len(TOKENIZER.encode("yes")) + 1
  assert tokens.kinds == ["prompt"] * prompt + ["answer"] * answer + ["padding"] * 2
  assert len(tokens.kinds) + tokens.hidden == 17
  picture = draw_batch.example(of, TOKENIZER, title="", patches=4)
  top = picture.height - draw_batch.MARGIN - draw_batch.ROW  # One row of tokens.
  bar, height = draw_batch.BAR, draw_batch.TOKEN_HEIGHT
  for (left, y, _), kind in zip(draw_batch.token_places(tokens, top), tokens.kinds, strict=True):
    assert picture.getpixel((left + 1, y + 1)) == TOKEN_KINDS[kind].colour
    bars = [picture.getpixel((left + 2, y + height + 4 + k * (bar + 2))) for k in range(3)]
    wanted = dict(prompt=(1, 0, 0), answer=(1, 1, 1), padding=(0, 1, 0))[kind]
    assert bars == [draw_batch.ON if value else draw_batch.OFF for value in wanted]


def test_inconsistent_masks_are_marked():
  of = row()
  of["mask_loss"] = 1 - of["mask_ar"]
  kinds = draw_batch.tokens_of(of, TOKENIZER).kinds
  assert kinds[0] == "odd"
  assert kinds[of["mask_ar"].argmax()] == "forced"  # The answer, but not in the loss.


def test_the_matrix_shows_who_attends_to_whom():
  of = row()
  tokens = draw_batch.tokens_of(of, TOKENIZER)
  picture = Image.new("RGB", (800, 800))
  draw_batch.attention(picture, of, tokens, (150, 150), 4)
  cell = draw_batch.PANEL / (draw_batch.IMAGE_CELLS + len(tokens.pieces))

  def seen(query, key):
    """The colour where token `query` attends to token `key`; -1 is the image."""
    at = lambda i: draw_batch.IMAGE_CELLS + i + 0.5 if i >= 0 else 2  # noqa: E731
    return picture.getpixel((150 + math.floor(at(key) * cell), 150 + math.floor(at(query) * cell)))

  first_answer, nothing = tokens.kinds.index("answer"), (250, 250, 250)
  newline = first_answer - 1
  assert seen(-1, newline) == TOKEN_KINDS["image"].colour
  assert seen(-1, first_answer) == nothing
  assert seen(0, newline) == TOKEN_KINDS["prompt"].colour
  assert seen(newline, first_answer) == nothing
  assert seen(first_answer, -1) == seen(first_answer, 0) == TOKEN_KINDS["answer"].colour
  assert seen(first_answer, first_answer + 1) == nothing
  assert seen(first_answer + 1, first_answer) == TOKEN_KINDS["answer"].colour


def test_padding_images_are_masked_out():
  of = row() | dict(image_mask=np.array([True, False]))
  allowed = draw_batch.allowed(of, 5)
  assert allowed.shape == (7, 7)
  assert not allowed[1].any()
  assert not allowed[:, 1].any()
  assert allowed[0, 2]
  assert allowed[2, 0]


def test_the_image_is_the_model_input_with_the_boxes_of_the_answer(monkeypatch):
  of = row()
  panel = draw_batch.image_panel(of, "detect cat", "yes")
  assert colours(panel, (140, 280), (420, 280)) == [(0, 0, 0), (255, 255, 255)]
  box = "<loc0256><loc0256><loc0768><loc0768> cat"
  with_box = draw_batch.image_panel(of, "detect cat", box)
  differs = np.abs(np.asarray(with_box, int) - np.asarray(panel, int)).sum(-1) > 0
  assert differs[200:360, 136:146].any()
  assert not differs[160:400, 160:400].any()
  asked = []

  def whole(objects, height, width, weights):
    asked.append(([o.codes for o in objects], weights))
    return [np.ones((height, width), bool)]

  monkeypatch.setattr(draw_batch.draw_images, "masks_of", whole)
  masked = draw_batch.image_panel(of, "detect cat", box[:36] + "<seg001>" * 16, "weights")
  assert asked == [([(1,) * 16], "weights")]
  # One colour covers both halves of the picture, away from the lines of the box.
  black, white = np.asarray(colours(masked, (200, 280), (360, 280)), int)
  assert np.ptp(black) > 0
  assert 0 < np.min(white - black) <= np.max(white - black) <= np.min(white - black) + 1 < 255


def test_a_class_has_the_colour_of_its_place_in_the_prompt():
  box = "<loc0256><loc0256><loc0768><loc0768> dog"
  first, second = (
    np.asarray(draw_batch.image_panel(row(), prompt, box), int)
    for prompt in ("detect dog ; cat", "detect cat ; dog")
  )
  assert np.abs(first - second)[280, 130:150].sum() > 0


def test_padding_frames_are_crossed_out():
  of = row()
  of |= dict(image=np.stack([of["image"]] * 2), image_mask=np.array([True, False]))
  panel = draw_batch.image_panel(of, "detect cat", "")
  assert colours(panel, (70, 70), (280 + 70, 70)) == [(0, 0, 0), TOKEN_KINDS["odd"].colour]


@pytest.mark.parametrize(("piece", "written"), [("▁a", "·a"), ("\n", "\\n"), ("\u0378", "\\u0378")])
def test_missing_characters_are_escaped(piece, written):
  assert draw_batch.shown(piece) == written


def test_a_long_prompt_is_truncated():
  of = row(prefix="word " * 300, text_len=400)
  picture = draw_batch.example(of, TOKENIZER, title="", patches=4)
  assert picture.width == draw_batch.WIDTH
  assert picture.height > 900


def test_a_failed_picture_does_not_stop_a_run(tmp_path):
  (tmp_path / "check").write_text("in the way")
  batch = {name: array[None] for name, array in row().items()}
  line = draw_batch.draw_first_batch(batch, TOKENIZER, tmp_path / "check", None)
  assert line.startswith("The first batch could not be drawn: FileExistsError")
