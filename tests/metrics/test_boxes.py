"""Detection against recorded results of pycocotools; segmentation by hand."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from pgjax.errors import UserError
from pgjax.metrics import detection, segmentation, text


def boxes(rows, scores=None):
  corners = np.array([row[:4] for row in rows], float).reshape(-1, 4)
  return detection.Boxes(corners, [row[4] for row in rows], np.array(scores or [1.0] * len(rows)))


def normalised(rows, height, width):
  """[label, x, y, width, height, score] in pixels, as the recording has them."""
  corners = [
    [y / height, x / width, (y + h) / height, (x + w) / width] for _, x, y, w, h, _ in rows
  ]
  return detection.Boxes(
    np.array(corners).reshape(-1, 4), [row[0] for row in rows], np.array([row[5] for row in rows])
  )


@pytest.fixture(scope="module")
def bccd(root):
  return json.loads((root / "tests/golden/detection.json").read_text())


def sides(recorded):
  sizes = [(height, width) for height, width, *_ in recorded["images"]]
  truths, predicted = (
    [normalised(image[i], *image[:2]) for image in recorded["images"]] for i in (2, 3)
  )
  return predicted, truths, sizes


def test_average_precision_equals_pycocotools_on_its_own_files(bccd, capsys):
  predicted, truths, sizes = sides(bccd)
  assert sum(len(each.labels) for each in predicted) >= 200
  measured = detection.average_precision(predicted, truths, sizes)
  for name, expected in zip(detection.COCO_NAMES, bccd["stats"], strict=True):
    if expected == -1:
      assert name not in measured
    else:
      assert measured[name] == pytest.approx(expected, abs=1e-6)
  for name, expected in bccd["of_class"].items():
    assert measured[f"AP/{name}"] == pytest.approx(expected, abs=1e-6)
  assert capsys.readouterr() == ("", "")


def test_the_truth_itself_has_average_precision_one(bccd):
  _, truths, sizes = sides(bccd)
  measured = detection.average_precision(truths, truths, sizes)
  assert measured["AP"] == pytest.approx(1.0, abs=1e-9)
  assert measured["AP50"] == pytest.approx(1.0, abs=1e-9)


def test_average_precision_by_hand():
  # Class a: the surest of two boxes is wrong, the other has IoU 0.8: at thresholds 0.5 to 0.8 it is
  # right at precision 1/2, above it is not. Class b: right everywhere.
  truths = [boxes([(0, 0, 0.5, 0.5, "a"), (0.5, 0.5, 1, 1, "b")])]
  predicted = [
    boxes([(0.6, 0, 0.9, 0.4, "a"), (0, 0, 0.5, 0.4, "a"), (0.5, 0.5, 1, 1, "b")], [0.9, 0.8, 0.1])
  ]
  measured = detection.average_precision(predicted, truths, [(100, 100)])
  assert measured["AP/a"] == pytest.approx(0.5 * 7 / 10)
  assert measured["AP/b"] == pytest.approx(1.0)
  assert measured["AP"] == pytest.approx((0.35 + 1) / 2)
  assert measured["AP50"] == pytest.approx(0.75)
  assert measured["AP75"] == pytest.approx(0.75)
  assert measured["AR100"] == pytest.approx((0.7 + 1) / 2)
  assert "APs" not in measured  # 50 by 50 pixels are of medium size.
  assert measured["APm"] == measured["AP"]


def test_height_and_width_are_not_swapped():
  truths, predicted = [boxes([(0.0, 0.0, 0.1, 0.8, "a")])], [boxes([(0.0, 0.0, 0.1, 0.4, "a")])]
  small, large = (
    detection.average_precision(predicted, truths, [size]) for size in ((300, 20), (20, 300))
  )
  assert small["AP50"] == pytest.approx(1.0)
  assert large["AP50"] == pytest.approx(1.0)
  assert "APs" in small  # 30 by 16 pixels.
  assert "APs" in large  # 2 by 240.
  assert "APl" in detection.average_precision(predicted, truths, [(1000, 300)])  # 100 by 240.


def test_images_without_boxes():
  nothing, one = boxes([]), boxes([(0, 0, 1, 1, "a")])
  assert detection.average_precision([nothing], [nothing], [(9, 9)]) == {}
  assert detection.average_precision([one], [nothing], [(9, 9)]) == {}
  assert detection.average_precision([nothing], [one], [(200, 200)])["AP"] == 0
  both = detection.average_precision([one, one], [one, nothing], [(200, 200)] * 2)
  assert both["AP"] == pytest.approx(1.0)  # Equal scores: that of the first image goes first.


def test_a_class_without_truths_changes_no_average():
  truths, predicted = (
    [boxes([(0, 0, 1, 1, "a")])],
    [boxes([(0, 0, 1, 1, "a"), (0, 0, 1, 1, "zebra")])],
  )
  assert detection.average_precision(predicted, truths, [(200, 200)])["AP"] == pytest.approx(1.0)
  assert detection.num_unknown(predicted, truths) == 1


def test_repeated_boxes_are_counted():
  row = (0.1, 0.1, 0.5, 0.5, "a")
  assert detection.num_repeated(boxes([row, row, row, (*row[:4], "b"), (0.5, 0.1, *row[2:])])) == 2
  assert detection.num_repeated(boxes([])) == 0


def test_mistakes_in_boxes_raise():
  one = boxes([(0, 0, 1, 1, "a")])
  with pytest.raises(UserError, match=r"truths of image 0.*2 labels"):
    detection.average_precision([one], [one._replace(labels=["a", "b"])], [(9, 9)])
  with pytest.raises(UserError, match="1 images have predictions, 1 truths and 0 sizes"):
    detection.average_precision([one], [one], [])
  with pytest.raises(UserError, match=r"predictions of image 0.*not finite"):
    detection.average_precision([one._replace(scores=np.array([np.nan]))], [one], [(9, 9)])


def test_without_pycocotools_the_error_names_the_requirements(monkeypatch):
  monkeypatch.setitem(sys.modules, "pycocotools", None)
  one = boxes([(0, 0, 1, 1, "a")])
  with pytest.raises(UserError, match=r"requirements-metrics\.txt"):
    detection.average_precision([one], [one], [(9, 9)])


TRUTH = np.zeros((40, 60), bool)
TRUTH[10:30, 20:50] = True  # 600 pixels.
TRUTH_BOX = np.array([10 / 40, 20 / 60, 30 / 40, 50 / 60])


def test_a_full_mask_in_the_true_box_is_the_truth():
  full = np.ones((64, 64), np.float32)
  assert segmentation.mask_overlap(full, TRUTH_BOX, TRUTH) == (600, 600, True)
  assert segmentation.mask_overlap(full, TRUTH_BOX, TRUTH * 255).iou == 1.0
  assert segmentation.referring(full, TRUTH_BOX, TRUTH, TRUTH_BOX) == {
    "miou": (1, 1),
    "ciou": (600, 600),
    "boxacc/0.5": (1, 1),
    "boxacc/0.75": (1, 1),
    "invalid_share": (0, 1),
  }


def test_the_mask_is_stretched_into_its_box():
  left = np.full((64, 64), -1.0, np.float32)
  left[:, :32] = 1.0  # Half of the box: 20 by 15 pixels, all inside the truth.
  assert segmentation.mask_overlap(left, TRUTH_BOX, TRUTH) == (300, 600, True)
  everything = np.array([0.0, 0.0, 1.0, 1.0])
  assert segmentation.mask_overlap(left, everything, TRUTH) == (200, 600 + 40 * 30 - 200, True)


def test_corners_are_rounded_down_to_whole_pixels():
  box = TRUTH_BOX + np.array([0.9 / 40, 0.9 / 60, 0.9 / 40, 0.9 / 60])
  assert segmentation.mask_overlap(np.ones((64, 64)), box, TRUTH).iou == 1.0


def test_numbers_are_resized_before_they_are_compared():
  rng = np.random.default_rng(0)
  mask = rng.normal(size=(64, 64)).astype(np.float32)
  resized = np.asarray(Image.fromarray(mask).resize((30, 20), Image.Resampling.BILINEAR))
  expected = int((resized > 0).sum())
  assert 0 < expected < 600
  assert segmentation.mask_overlap(mask, TRUTH_BOX, TRUTH) == (expected, 600, True)
  assert segmentation.mask_overlap(np.zeros((64, 64)), TRUTH_BOX, TRUTH) == (0, 600, True)


@pytest.mark.parametrize(
  ("mask", "box"),
  [
    (None, None),
    (np.ones((64, 64)), None),
    (np.ones((64, 64)), [0.5, 0.5, 0.51, 0.9]),  # Less than a pixel high.
    (np.ones((64, 64)), [0.5, 0.5, 0.4, 0.9]),
  ],
)
def test_an_answer_without_a_mask_is_invalid(mask, box):
  measured = segmentation.referring(mask, None if box is None else np.array(box), TRUTH, TRUTH_BOX)
  assert measured["miou"] == (0, 1)
  assert measured["ciou"] == (0, 600)
  assert measured["boxacc/0.5"] == (0, 1)
  assert measured["invalid_share"] == (1, 1)


def test_miou_is_a_mean_and_ciou_one_division():
  big = np.ones((40, 60), bool)
  rows = [
    segmentation.referring(np.ones((64, 64)), TRUTH_BOX, TRUTH, TRUTH_BOX),
    segmentation.referring(None, None, big, np.array([0, 0, 1, 1])),
  ]
  assert text.mean(rows)["miou"] == pytest.approx(1 / 2)
  assert text.mean(rows)["ciou"] == pytest.approx(600 / (600 + 2400))


@pytest.mark.parametrize(
  ("box", "expected"),
  [
    ([0, 0, 2, 2], 1.0),
    ([0, 1, 2, 3], 2 / 6),
    ([1, 1, 3, 3], 1 / 7),
    ([2, 0, 4, 2], 0.0),  # They touch.
    ([3, 3, 4, 4], 0.0),  # Both differences are negative; their product is no overlap.
    ([1, 1, 1, 1], 0.0),
  ],
)
def test_box_iou(box, expected):
  assert segmentation.box_iou(np.array([0, 0, 2, 2]), np.array(box)) == pytest.approx(expected)
  assert segmentation.box_iou(np.zeros(4), np.zeros(4)) == 0


def test_box_accuracy_includes_its_threshold():
  half = np.array([0.0, 0.0, 1.0, 0.5])
  measured = segmentation.referring(None, half, TRUTH, np.array([0.0, 0.0, 1.0, 1.0]))
  assert (measured["boxacc/0.5"], measured["boxacc/0.75"]) == ((1, 1), (0, 1))
