import numpy as np
import pytest
from PIL import Image

from pgjax.data import locations
from pgjax.visualization import boxes as draw_boxes


def detected(label="cat", box=(0.25, 0.25, 0.75, 0.75), score=None):
  scores = (None, None) if score is None else (score, 1.0)
  return locations.Object(box, label, None, (0, 0), *scores)


def changed(image, *args, **kwargs):
  """Where drawing changed the picture."""
  before = np.asarray(draw_boxes.objects(image, []), int)
  return np.abs(np.asarray(draw_boxes.objects(image, *args, **kwargs), int) - before).sum(-1) > 0


GREY = np.full((480, 640, 3), 128, np.uint8)


def test_no_objects_leave_the_image_unchanged():
  np.testing.assert_array_equal(np.asarray(draw_boxes.objects(GREY, [])), GREY)


def test_a_box_is_drawn_around_its_object_and_not_inside():
  where = changed(GREY, [detected("")])
  assert where[118:123, 160:480].any(axis=0).all()
  assert where[358:363, 160:480].any(axis=0).all()
  assert where[120:360, 158:163].any(axis=1).all()
  assert where[120:360, 478:483].any(axis=1).all()
  assert not where[126:354, 166:474].any()
  assert not where[:116].any()


@pytest.mark.parametrize("level", [0, 255])
def test_lines_contrast_with_dark_and_light(level):
  for name in (f"c{i}" for i in range(len(draw_boxes.COLOURS))):
    classes = [f"c{i}" for i in range(len(draw_boxes.COLOURS))]
    picture = np.asarray(
      draw_boxes.objects(np.full_like(GREY, level), [detected(name)], classes=classes), int
    )
    line = picture[240, 155:170]
    assert np.abs(line - level).sum(-1).max() > 150


def test_a_label_is_written_with_its_score_above_its_box():
  bare, named = changed(GREY, [detected("")]), changed(GREY, [detected("cat")])
  scored = changed(GREY, [detected("cat", score=0.5)])
  tag = lambda where: where[:118].sum()  # noqa: E731
  assert tag(bare) == 0 < tag(named) < tag(scored)
  at_the_top = changed(GREY, [detected("cat", box=(0.0, 0.25, 0.5, 0.75))])
  assert at_the_top[5:15, 164:180].any()  # No room above: inside.


def test_labels_of_objects_at_one_place_do_not_hide_each_other():
  boxes = [detected(label) for label in ("first", "second", "third")]
  ground = draw_boxes.colours(["first", "second", "third"])
  picture = np.asarray(draw_boxes.objects(GREY, boxes), int)
  for label in ground:
    single = changed(GREY, [detected(label)])[:118].sum()
    near = np.abs(picture - ground[label]).sum(-1) < 60
    assert near.sum() > 0.4 * single


def test_a_class_has_its_colour_in_every_picture():
  assert draw_boxes.colours(["b", "a", "b"]) == {
    "b": draw_boxes.COLOURS[0],
    "a": draw_boxes.COLOURS[1],
  }
  assert draw_boxes.colours(map(str, range(13)))["12"] == draw_boxes.COLOURS[0]
  one = np.asarray(draw_boxes.objects(GREY, [detected("dog")], classes=["cat", "dog"]))
  assert (one == draw_boxes.COLOURS[1]).all(-1).any()
  assert not (one == draw_boxes.COLOURS[0]).all(-1).any()


def test_a_mask_is_half_transparent_with_an_outline():
  mask = np.zeros((480, 640), bool)
  mask[200:300, 200:400] = True
  picture = np.asarray(draw_boxes.objects(GREY, [detected("")], masks=[mask]), int)
  colour = np.array(draw_boxes.COLOURS[0])
  mixed = 128 + (colour - 128) * draw_boxes.MASK_OPACITY
  assert np.abs(picture[250, 300] - mixed).max() <= 1
  assert np.abs(picture[200, 300] - colour).max() <= 1
  np.testing.assert_array_equal(picture[190, 300], 128)
  assert changed(GREY, [detected("")], masks=[None]).sum() == changed(GREY, [detected("")]).sum()


def test_too_few_masks_raise():
  with pytest.raises(ValueError, match="zip"):
    draw_boxes.objects(GREY, [detected(), detected()], masks=[None])


def test_small_pictures_are_enlarged_and_sizes_follow_the_picture():
  assert draw_boxes.objects(GREY[:100, :224], []).size == (672, 300)
  large = np.full((1500, 2000, 3), 128, np.uint8)
  assert draw_boxes.objects(large, []).size == (2000, 1500)
  line = lambda where: where[where.shape[0] // 2].sum()  # noqa: E731
  assert line(changed(large, [detected("")])) > 1.5 * line(changed(GREY, [detected("")]))


def test_floats_and_pil_images_are_accepted():
  image = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
  wanted = np.asarray(draw_boxes.objects(image, [detected()]))
  as_float = (image / 127.5 - 1).astype(np.float32)
  np.testing.assert_array_equal(np.asarray(draw_boxes.objects(as_float, [detected()])), wanted)
  np.testing.assert_array_equal(
    np.asarray(draw_boxes.objects(Image.fromarray(image), [detected()])), wanted
  )


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.999, 0.999, 1, 1), (0, 0, 0.001, 0.001)])
def test_boxes_at_the_edge_are_drawn(box):
  assert changed(GREY, [detected("a rather long label " * 3, box=box, score=1)]).any()


def test_a_caption_is_below_the_picture_and_within_its_width():
  picture = Image.fromarray(GREY)
  whole = draw_boxes.captioned(picture, "what is it?\n" + "a long answer " * 20 + "x" * 300)
  assert whole.width == 640
  np.testing.assert_array_equal(np.asarray(whole)[:480], GREY)
  ink = np.asarray(whole.convert("L"))[480:] < 128
  rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
  assert columns[0] >= 4
  assert columns[-1] < 636
  assert rows[-1] < len(ink) - 2
  assert np.count_nonzero(np.diff(rows) > 1) >= 5  # Gaps between lines.


@pytest.mark.parametrize(
  "text", ["", "\n\n", "   ", "x", "\u732b" * 400, "a\n" * 500, "  two words"]
)
def test_any_text_makes_a_caption_of_bounded_height(text):
  whole = draw_boxes.captioned(Image.new("RGB", (640, 480)), text)
  font = 18 * 1.35
  assert 480 < whole.height < 480 + font * (draw_boxes.MAX_CAPTION_LINES + 2)
