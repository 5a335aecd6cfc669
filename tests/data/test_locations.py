import json
import math
import pathlib
import random

import numpy as np
import pytest

from pgjax.data import locations, tokenizer
from pgjax.errors import UserError

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared/data/bccd"
HALF_A_BIN = 0.5 / 1023 * 1.001  # And float32's rounding of numbers near 1.


def random_boxes(count, seed=0):
  """With area in bins; also at the edges, tiny, and with float32's numbers."""
  rng = random.Random(seed)
  boxes = []
  while len(boxes) < count:
    y, x = (
      sorted(rng.choice([rng.random(), 0.0, 1.0, rng.random() ** 4]) for _ in "ab") for _ in "yx"
    )
    box = (y[0], x[0], y[1], x[1])
    if locations.has_area(box):
      boxes.append(box)
  return boxes


LABELS = ["cat", "white blood cell", "日本", "a-b (c), d.", "<loc12> or so", "3", "it's", "<b>&"]


# Boxes to text


def test_bins_are_rounded_half_to_even_in_float32_and_clipped():
  half = lambda n: (n + 0.5) / 1023  # noqa: E731
  assert locations.bins((0.0, 1.0, 0.5, 1 / 3)) == (0, 1023, 512, 341)
  assert locations.bins((half(0), half(1), half(2), half(3))) == (0, 2, 2, 4)
  assert locations.bins((-0.3, 1.7, -1e-9, 1.0004)) == (0, 1023, 0, 1023)
  # 0.49999 of a bin in float64 is a half in float32, and TensorFlow's boxes are float32.
  assert locations.bins((np.nextafter(half(5), 0), 0, 1, 1))[0] == 6
  assert locations.loc_string((0.1, 0.2, 0.5, 0.7)) == "<loc0102><loc0205><loc0512><loc0716>"


def test_recorded_boxes_become_the_reference_strings(root):
  recorded = json.loads((root / "tests/golden/bccd_boxes.json").read_text())
  for width, height, box, string in recorded["rows"]:
    normalised = locations.to_normalised(box, "coco", width=width, height=height)
    assert locations.loc_string(normalised) == string


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_all_boxes_of_bccd_become_the_reference_strings(split):
  path = SHARED / split / "_annotations.coco.json"
  if not path.exists():
    pytest.skip(f"{path} is missing")
  content = json.loads(path.read_text())
  sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
  for annotation in content["annotations"]:
    (width, height), (x, y, w, h) = sizes[annotation["image_id"]], annotation["bbox"]
    shares = np.float32([y / height, x / width, (y + h) / height, (x + w) / width])
    reference = np.clip(np.rint(shares * np.float32(1023)), 0, 1023).astype(int)
    ours = locations.to_normalised((x, y, w, h), "coco", width=width, height=height)
    assert locations.loc_string(ours) == "".join(f"<loc{n:04d}>" for n in reference)


def test_a_suffix_is_what_paligemma_writes():
  boxes = [(0.0, 0.0, 0.5, 0.5), (0.25, 0.5, 1.0, 1.0)]
  cat, dog = "<loc0000><loc0000><loc0512><loc0512>", "<loc0256><loc0512><loc1023><loc1023>"
  assert locations.detection_suffix(boxes, ["cat", "a  dog "]) == f"{cat} cat ; {dog} a dog"
  assert locations.detection_suffix([], []) == ""
  codes = [range(16), [127] * 16]
  segs = "".join(f"<seg{n:03d}>" for n in range(16)), "<seg127>" * 16
  assert (
    locations.segmentation_suffix(boxes, codes, ["cat", "dog"])
    == f"{cat}{segs[0]} cat ; {dog}{segs[1]} dog"
  )
  assert locations.segmentation_suffix(boxes[:1], codes[:1]) == cat + segs[0]


@pytest.mark.parametrize(
  ("boxes", "labels", "message"),
  [
    ([(0, 0, 1, 1)], [], "1 boxes, 1 masks and 0 labels"),
    ([(0.5, 0, 0.5, 1)], ["a"], r"\[0.5, 0.0, 0.5, 1.0\] .* has no area"),
    ([(0.9, 0, 0.1, 1)], ["a"], "has no area"),
    ([(0, 0, 1, 1)], ["a;b"], "label 'a;b' cannot be in an answer"),
    ([(0, 0, 1, 1)], ["<loc0001>"], "cannot be in an answer"),
    ([(0, 0, 1, 1)], ["a\nb"], "cannot be in an answer"),
    ([(0, 0, 1, 1)], [" "], "cannot be in an answer"),
    ([(0, 0, 1, 1)], [3], "label 3 cannot be in an answer"),
  ],
)
def test_an_invalid_box_or_label_raises(boxes, labels, message):
  with pytest.raises(UserError, match=message):
    locations.detection_suffix(boxes, labels)


@pytest.mark.parametrize("codes", [[0] * 15, [128] + [0] * 15, [-1] + [0] * 15])
def test_invalid_codes_raise(codes):
  with pytest.raises(UserError, match="16 codes from 0 to 127"):
    locations.seg_string(codes)


# There and back


def test_a_box_comes_back_within_half_a_bin():
  for box in random_boxes(2000):
    (parsed,) = locations.parse(locations.detection_suffix([box], ["x"])).objects
    assert max(abs(a - b) for a, b in zip(box, parsed.box, strict=True)) <= HALF_A_BIN


def test_every_string_that_is_written_is_read_back_exactly():
  rng = random.Random(1)
  boxes = random_boxes(900, seed=1)
  while boxes:
    some = [boxes.pop() for _ in range(rng.randrange(1, 6)) if boxes]
    labels = [rng.choice(LABELS) for _ in some]
    codes = [tuple(rng.randrange(128) for _ in range(16)) for _ in some]
    for text, wanted_codes, wanted_labels in (
      (locations.detection_suffix(some, labels), [None] * len(some), labels),
      (locations.segmentation_suffix(some, codes, labels), codes, labels),
      (locations.segmentation_suffix(some, codes), codes, [""] * len(some)),
    ):
      parsed = locations.parse(text)
      assert parsed.malformed == 0
      assert [o.label for o in parsed.objects] == wanted_labels
      assert [o.codes for o in parsed.objects] == wanted_codes
      assert [locations.bins(o.box) for o in parsed.objects] == [locations.bins(b) for b in some]
      assert text == " ; ".join(text[a:b] for a, b in (o.span for o in parsed.objects))


@pytest.mark.parametrize("format", locations.FORMATS)
def test_formats_of_boxes_come_back(format):
  for box in random_boxes(200, seed=2):
    converted = locations.from_normalised(box, format, width=640, height=480)
    back = locations.to_normalised(converted, format, width=640, height=480)
    np.testing.assert_allclose(back, box, atol=1e-12)


def test_formats_of_boxes_by_hand():
  to = lambda box, format: locations.to_normalised(box, format, width=200, height=100)  # noqa: E731
  assert to([20, 10, 100, 50], "coco") == (0.1, 0.1, 0.6, 0.6)
  assert to([20, 10, 120, 60], "voc") == (0.1, 0.1, 0.6, 0.6)
  assert to([0.5, 0.25, 0.5, 0.5], "yolo") == (0.0, 0.25, 0.5, 0.75)
  assert to([0.1, 0.2, 0.3, 0.4], "normalised") == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
  ("box", "format", "size", "message"),
  [
    ([0, 0, 1, 1], "xyxy", (9, 9), "no format 'xyxy', only normalised, coco"),
    ([0, 0, 1], "coco", (9, 9), "four numbers, not"),
    ([0, 0, 1, math.nan], "yolo", (9, 9), "four numbers, not"),
    ("abcd", "coco", (9, 9), "four numbers, not"),
    ([0, 0, 1, 1], "voc", (None, None), "need the image's width and height, not None x None"),
    ([0, 0, 1, 1], "coco", (0, 9), "not 0 x 9"),
  ],
)
def test_invalid_boxes_raise(box, format, size, message):
  with pytest.raises(UserError, match=message):
    locations.to_normalised(box, format, width=size[0], height=size[1])


# What models write

BOX = "<loc0000><loc0000><loc0512><loc0512>"


@pytest.mark.parametrize(
  ("text", "objects", "malformed"),
  [
    ("", 0, 0),
    (" \n", 0, 0),
    (f"{BOX} cat", 1, 0),
    (f"{BOX}cat;{BOX}  dog", 2, 0),
    (f"{BOX} cat ; {BOX}", 1, 1),
    (f"{BOX} cat ;", 1, 1),
    ("no cats here", 0, 1),
    ("<loc0000><loc0000><loc0512> cat", 0, 1),
    (f"{BOX}<loc0001> cat", 0, 1),
    (f"{BOX} cat {BOX} dog", 0, 1),
    ("cat " + BOX, 0, 1),
    ("<loc0512><loc0000><loc0512><loc0512> cat", 0, 1),
    ("<loc0000><loc0600><loc0512><loc0512> cat", 0, 1),
    ("<loc0000><loc0000><loc0512><loc1024> cat", 0, 1),
    (BOX + "<seg000>" * 16, 1, 0),
    (BOX + "<seg000>" * 16 + " cat", 1, 0),
    (BOX + "<seg000>" * 15 + " cat", 0, 1),
    (BOX + "<seg000>" * 17, 0, 1),
    (BOX + "<seg128>" + "<seg000>" * 15, 0, 1),
  ],
)
def test_malformed_pieces_are_counted_and_omitted(text, objects, malformed):
  parsed = locations.parse(text)
  assert (len(parsed.objects), parsed.malformed) == (objects, malformed)


def test_duplicates_are_counted_and_stay_in_the_list():
  near = "<loc0000><loc0000><loc0510><loc0512>"
  far = "<loc0000><loc0000><loc0512><loc0256>"
  parsed = locations.parse(f"{BOX} cat ; {near} cat ; {near} dog ; {far} cat")
  assert (len(parsed.objects), parsed.duplicates) == (4, 1)


def test_garbage_never_raises():
  rng = random.Random(3)
  parts = ["<loc", "<loc0001>", "<loc1023>", "<seg000>", "<seg999>", ">", " ", ";", "cat", "\n",
           "é", "<loc٣٣٣٣>", "\0", BOX, "<seg001>" * 16]  # fmt: skip
  tiny = tokenizer.load("tiny")
  for _ in range(2000):
    text = "".join(rng.choice(parts) for _ in range(rng.randrange(12)))
    parsed = locations.parse(text)
    assert len(parsed.objects) + parsed.malformed == (text.count(";") + 1 if text.strip() else 0)
  for _ in range(200):
    ids = [rng.randrange(-2, tiny.vocab_size + 5) for _ in range(rng.randrange(20))]
    parsed = locations.parse_tokens(ids, [-1.0] * len(ids), tiny)
    end = ids.index(tiny.eos) if tiny.eos in ids else len(ids)
    same = locations.parse(tiny.decode(ids[:end]))
    assert (len(parsed.objects), parsed.malformed) == (len(same.objects), same.malformed)


# Scores


def test_a_score_is_the_mean_of_the_locations_times_the_label():
  tiny = tokenizer.load("tiny")
  first, second = tiny.encode(f"{BOX} cat ;"), tiny.encode(f" {BOX} é日")
  locs = [math.log(p) for p in (0.5, 0.25, 0.5, 0.25)]
  label = len(tiny.encode(" cat"))
  assert len(first) == 4 + label + len(tiny.encode(" ;"))
  logp = [*locs, *[math.log(0.9)] * label, *[-5.0] * (len(first) - 4 - label)]
  at = second.index(tiny.encode("<loc0000>")[0])
  logp += [-7.0] * at + [0.0] * 4 + [math.log(0.5)] * (len(second) - at - 4)
  ended = [*first, *second, tiny.eos, *tiny.encode(f"{BOX} later")]
  parsed = locations.parse_tokens(ended, [*logp, *[-9.0] * 50][: len(ended)], tiny)
  assert parsed[1:] == (0, 0)
  cat, other = parsed.objects
  assert (cat.label, other.label) == ("cat", "é日")
  assert cat.box_score == pytest.approx(0.125**0.5)
  assert cat.label_score == pytest.approx(0.9**label)
  assert cat.score == pytest.approx(0.125**0.5 * 0.9**label)
  assert other.box_score == pytest.approx(1.0)
  assert other.label_score == pytest.approx(0.5 ** (len(second) - at - 4))
  assert locations.parse(f"{BOX} cat").objects[0].score is None


def test_the_codes_of_a_mask_are_part_of_the_score_of_its_box():
  tiny = tokenizer.load("tiny")
  ids = tiny.encode(BOX + "<seg007>" * 16)
  (parsed,) = locations.parse_tokens(ids, [-0.4] * 4 + [-0.1] * 16, tiny).objects
  assert parsed.codes == (7,) * 16
  assert parsed.box_score == pytest.approx(math.exp(-3.2 / 20))
  assert parsed.label_score == 1.0
