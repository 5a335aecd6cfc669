import numpy as np
import pytest
from PIL import Image

from pgjax.data import masks, resizing
from pgjax.errors import UserError


def ellipse(height, width, box):
  """Whose axes are the sides of the box."""
  y, x = np.mgrid[:height, :width] + 0.5
  y0, x0, y1, x1 = (c * n for c, n in zip(box, (height, width) * 2, strict=True))
  return ((2 * y - y0 - y1) / (y1 - y0)) ** 2 + ((2 * x - x0 - x1) / (x1 - x0)) ** 2 < 1


def test_a_crop_is_the_box_with_rounded_edges_resized_with_antialiasing():
  mask = np.random.default_rng(0).integers(0, 2, (50, 70)).astype(bool)
  box = (0.23, 0.1, 0.93, 0.95)  # Rows 11.5 to 46.5 (both to even), columns 7 to 66.5.
  whole = mask[12:46, 7:66, None].astype(np.float32)
  reference = resizing.resize(whole, 64, 64, antialias=True)[:, :, 0]
  np.testing.assert_allclose(masks.crop(mask, box), reference, atol=1e-6)
  as_bytes = masks.crop(mask.astype(np.uint8) * 255, box)
  np.testing.assert_allclose(as_bytes, reference, atol=1e-6)


def test_a_crop_without_a_pixel_raises():
  with pytest.raises(UserError, match="has no pixel of a mask of 10 x 10"):
    masks.crop(np.ones((10, 10), bool), (0.51, 0.0, 0.54, 1.0))


def test_pasting_rounds_edges_down_and_is_inside_above_zero():
  small = np.linspace(-1, 1, 64, dtype=np.float32)[None].repeat(64, 0)
  whole = masks.paste(small, (0.19, 0.25, 0.58, 0.99), 10, 20)  # Rows 1 to 5, columns 5 to 19.
  resized = np.asarray(Image.fromarray(small).resize((14, 4), Image.Resampling.BILINEAR))
  assert not whole[[0, *range(5, 10)]].any()
  assert not whole[:, [*range(5), 19]].any()
  np.testing.assert_array_equal(whole[1:5, 5:19], resized > 0)
  assert whole[1:5, 12:19].all()
  assert not masks.paste(small + 9, (0.5, 0.5, 0.52, 0.9), 10, 20).any()  # Not a whole pixel.
  assert masks.paste(small + 9, (-1, -1, 2, 2), 10, 20).all()


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.9, 0.7), (0, 0, 1, 1), (0.4, 0.5, 0.6, 0.9)])
def test_cropping_and_pasting_preserve_a_mask(box):
  mask = ellipse(240, 320, box)
  again = masks.paste(2 * masks.crop(mask, box) - 1, box, *mask.shape)
  assert masks.iou(mask > 0, again) > 0.97


def test_iou_of_masks_by_hand():
  a, b = np.zeros((2, 4, 4), bool)
  assert masks.iou(a, b) == 1
  a[:2], b[1:] = True, True
  assert masks.iou(a, b) == 0.25


def test_a_polygon_along_pixel_edges_is_those_pixels():
  mask = masks.from_polygon([2, 1, 6, 1, 6, 4, 2, 4], 8, 9)
  wanted = np.zeros((8, 9), bool)
  wanted[1:4, 2:6] = True
  np.testing.assert_array_equal(mask, wanted)


def test_polygons_add_up_and_are_clipped_to_the_image():
  both = masks.from_coco([[0, 0, 3, 0, 3, 3, 0, 3], [-50, 5, 900, 5, 900, 900, -50, 900]], 8, 9)
  wanted = np.zeros((8, 9), bool)
  wanted[:3, :3], wanted[5:] = True, True
  np.testing.assert_array_equal(both, wanted)


def test_run_lengths_go_down_the_columns_and_begin_with_zeros():
  mask = masks.from_coco(dict(size=[3, 2], counts=[1, 3, 2]), 3, 2)
  np.testing.assert_array_equal(mask, [[0, 1], [1, 0], [1, 0]])


@pytest.mark.parametrize(
  ("segmentation", "message"),
  [
    ([[1, 1, 2, 2]], "at least three points"),
    ([[1, 1, 2, 2, 3]], "at least three points"),
    ([[1, 1, 2, 2, 3, float("nan")]], "at least three points"),
    ([["a", 1, 2, 2, 3, 3]], "at least three points"),
    ([7], "at least three points"),
    ([], "list of polygons or a dict"),
    ("x", "list of polygons or a dict"),
    (dict(size=[3, 2], counts=[1, 3]), "do not fit an image of 3 x 2"),
    (dict(size=[2, 3], counts=[6]), r"size \[2, 3\] do not fit"),
    (dict(size=[3, 2], counts=[9, -3]), "do not fit"),
    (dict(size=[3, 2], counts="\x01\x02"), "do not fit"),
    (dict(size=[3, 2], counts="o" * 99), "do not fit"),
    (dict(size=[3, 2]), "do not fit"),
    (dict(counts=[6], size=3), "do not fit"),
  ],
)
def test_invalid_segmentations_raise(segmentation, message):
  with pytest.raises(UserError, match=message):
    masks.from_coco(segmentation, 3, 2)


def test_compressed_run_lengths_are_pycocotools():
  reference = pytest.importorskip("pycocotools.mask")
  rng = np.random.default_rng(0)
  for height, width in ((7, 5), (64, 48), (300, 200)):
    for share in (0.0, 0.02, 0.5, 1.0):
      mask = rng.random((height, width)) < share
      runs = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
      for counts in (runs["counts"], runs["counts"].decode()):
        segmentation = dict(size=[height, width], counts=counts)
        np.testing.assert_array_equal(masks.from_coco(segmentation, height, width), mask)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_polygons_are_pycocotools_to_the_edge():
  reference = pytest.importorskip("pycocotools.mask")
  rng = np.random.default_rng(0)
  for corners in (3, 5, 12, 40):
    for radius in (12, 60):
      angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
      reach = radius * rng.uniform(0.6, 1.0, corners)
      points = np.stack([100 + reach * np.cos(angles), 80 + reach * np.sin(angles)], -1)
      polygon = points.ravel().tolist()
      runs = reference.frPyObjects([polygon], 160, 200)
      theirs = reference.decode(reference.merge(runs)).astype(bool)
      ours = masks.from_polygon(polygon, 160, 200)
      edge = np.zeros_like(ours)
      for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        edge |= theirs != np.roll(theirs, step, axis)
      assert not (ours != theirs)[~edge].any()
      assert masks.iou(ours, theirs) > 0.93  # A triangle of radius 12 is nearly all edge.
      assert abs(ours.sum() / theirs.sum() - 1) < 0.06
