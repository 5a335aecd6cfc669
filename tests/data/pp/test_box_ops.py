import io
import random

import jax
import numpy as np
import pytest
from PIL import Image

from pgjax.data import locations, masks, noise_boxes, notes, prefix_lm, tokenizer
from pgjax.data.pp import parse
from pgjax.errors import UserError
from pgjax.formats import seg_vae_npz
from pgjax.models import seg_vae

CAT, DOG = [0.25, 0.5, 0.5, 0.75], [0.0, 0.0, 1.0, 0.25]
CAT_TEXT = "<loc0256><loc0512><loc0512><loc0767> cat"
DOG_TEXT = "<loc0000><loc0000><loc1023><loc0256> dog"


def example(seed=0, **values):
  return {"_seed": (0, 1, 2, seed), "_epoch": 0, **values}


def run(pp, **values):
  return parse.parse(pp)(example(**values))


@pytest.mark.parametrize(
  ("arguments", "boxes"),
  [
    ("", [CAT, DOG]),
    ("'coco'", [[100, 25, 50, 25], [0, 0, 50, 100]]),
    ("'voc'", [[100, 25, 150, 50], [0, 0, 50, 100]]),
    ("'yolo'", [[0.625, 0.375, 0.25, 0.25], [0.125, 0.5, 0.25, 1.0]]),
  ],
)
def test_boxes_of_every_format_make_the_same_answer(arguments, boxes):
  done = run(
    f"boxes_to_suffix({arguments})", boxes=boxes, labels=["cat", "dog"], width=200, height=100
  )
  assert done["suffix"] == f"{CAT_TEXT} ; {DOG_TEXT}"
  np.testing.assert_allclose(done["boxes"], [CAT, DOG])


def test_objects_can_be_ordered():
  objects = dict(boxes=[CAT, DOG], labels=["cat", "dog"])
  for order in ("area", "position"):
    assert run(f"boxes_to_suffix(order='{order}')", **objects)["suffix"].startswith(DOG_TEXT)
  random = [run("boxes_to_suffix(order='random')", seed=s, **objects)["suffix"] for s in range(20)]
  assert set(random) == {f"{CAT_TEXT} ; {DOG_TEXT}", f"{DOG_TEXT} ; {CAT_TEXT}"}
  again = run("boxes_to_suffix(order='random')", seed=7, **objects)
  assert again["suffix"] == random[7]


def test_noise_boxes_fill_an_answer_and_only_their_labels_are_learned():
  tok = tokenizer.load("tiny")
  pp = "boxes_to_suffix(order='random', num_boxes=7)"
  for boxes, labels in (([CAT, DOG], ["cat", "dog"]), ([], [])):
    done = run(pp, boxes=boxes, labels=labels)
    objects = locations.parse(done["suffix"]).objects
    assert sorted(o.label for o in objects[: len(boxes)]) == labels
    assert [o.label for o in objects[len(boxes) :]] == ["<noise>"] * (7 - len(boxes))
    assert run(pp, boxes=boxes, labels=labels)["suffix"] == done["suffix"]
    assert run(pp, seed=1, boxes=boxes, labels=labels)["suffix"] != done["suffix"]
    packed = prefix_lm.for_training(
      tok, "detect <loc0001> ; cat", done["suffix"], 160, learned_locs=done["_learned_locs"]
    )
    assert packed.num_tokens <= packed.room
    text, loss = packed.arrays["text"], packed.arrays["mask_loss"]
    assert tok.decode(text[(loss == 0) & (packed.arrays["mask_ar"] == 1)].tolist()) == "".join(
      locations.loc_string(o.box) for o in objects[len(boxes) :]
    )
    assert (loss == 1).sum() == len(tok.encode(done["suffix"])) + 1 - 4 * (7 - len(boxes))
    full = prefix_lm.for_training(tok, "detect <loc0001> ; cat", done["suffix"], 160)
    assert (full.arrays["text"] == text).all()
    assert full.arrays["mask_loss"].sum() == loss.sum() + 4 * (7 - len(boxes))


def test_more_boxes_than_an_answer_may_have_are_left_out_and_reported():
  done = run("boxes_to_suffix(num_boxes=1)", boxes=[CAT, DOG], labels=["cat", "dog"])
  assert done["suffix"] == CAT_TEXT
  counter = notes.BoxCounter()
  counter.add(3, done)
  (sentence,) = counter.sentences("row {}".format)
  assert sentence.startswith("1 of 2 boxes are left out, because an image has more than num_boxes")
  assert sentence.endswith("row 3")
  with pytest.raises(UserError, match="labelled '<noise>', which num_boxes= uses itself"):
    run("boxes_to_suffix(num_boxes=3)", boxes=[CAT], labels=["<noise>"])


def test_half_of_the_noise_is_near_real_boxes():
  noise = noise_boxes.sample([CAT], 2_000, random.Random(0))
  assert all(locations.has_area(box) and min(box) >= 0 and max(box) <= 1 for box in noise)
  near = [locations.iou(box, CAT) for box in noise]
  assert 0.3 < np.mean(np.array(near) > 0) < 0.9
  assert max(near) > 0.5


def test_an_answer_of_no_boxes_is_empty():
  assert run("boxes_to_suffix", boxes=[], labels=[])["suffix"] == ""


@pytest.mark.parametrize(
  ("pp", "values", "message"),
  [
    (
      "boxes_to_suffix('xyxy')",
      {},
      "format must be one of 'normalised', 'coco', 'voc', 'yolo', not 'xyxy'",
    ),
    ("boxes_to_suffix(order='size')", {}, "order must be one of 'given', 'random', .*, not 'size'"),
    ("boxes_to_suffix", dict(boxes=[CAT], labels=[]), "'labels' must be a list, one for each of 1"),
    ("boxes_to_suffix", dict(boxes=[CAT], labels="c"), "'labels' must be a list"),
    ("boxes_to_suffix('coco')", dict(boxes=[CAT], labels=["c"]), "need the image's width"),
    ("boxes_to_suffix", dict(boxes=[[0, 0, 0, 1]], labels=["c"]), "has no area"),
    ("boxes_to_suffix", dict(boxes=[[0, 0, 1]], labels=["c"]), "a box is four numbers"),
    ("draw_bbox", dict(image=np.zeros((4, 4, 3)), bbox=[[0, 0, 1, 1]]), r"'bbox' is \(1, 4\)"),
  ],
)
def test_a_mistake_raises(pp, values, message):
  with pytest.raises(UserError, match=message):
    run(pp, **values)


def test_a_mirrored_image_has_mirrored_boxes():
  image = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
  values = dict(image=image, boxes=[CAT], labels=["cat"], suffix="stale", segmentations=["stale"])
  done = run("flip_boxes_lr(1.0)|boxes_to_suffix", **values)
  np.testing.assert_array_equal(done["image"], image[:, ::-1])
  assert done["boxes"] == [[0.25, 0.25, 0.5, 0.5]]
  assert done["suffix"] == "<loc0256><loc0256><loc0512><loc0512> cat"
  assert "segmentations" not in done
  same = run("flip_boxes_lr(0.0)", **values)
  assert (same["suffix"], same["boxes"]) == ("stale", [CAT])
  some = [run("flip_boxes_lr", seed=s, **values)["boxes"] == [CAT] for s in range(30)]
  assert 5 < sum(some) < 25


@pytest.mark.parametrize("op", ["flip_lr", "flip_ud", "random_shift(1)", "random_crop(2)"])
def test_ops_that_would_leave_boxes_behind_are_refused(op):
  values = dict(image=np.zeros((4, 4, 3), np.uint8), boxes=[CAT])
  with pytest.raises(UserError, match=r"leaves the boxes where they were; flip_boxes_lr"):
    run(op, **values)
  run(f'drop("boxes")|{op}', **values)


def test_a_drawn_box_is_one_pixel_wide_and_cut_at_the_edges():
  image = np.zeros((11, 21, 3), np.uint8)
  done = run("draw_bbox", image=image, bbox=[0.25, 0.1, 0.69, 0.5])["image"]
  assert done.dtype == np.float32
  wanted = np.zeros((11, 21), bool)
  wanted[[2, 6], 2:11] = wanted[2:7, [2, 10]] = True  # 2.5 and 6.9 of 10; 2 and 10 of 20.
  np.testing.assert_array_equal(done[..., 0], 255.0 * wanted)
  assert not done[..., 1:].any()
  assert not image.any()
  outside = run("draw_bbox", image=image, bbox=[-0.5, 0.5, 0.5, 3])["image"][..., 0] > 0
  wanted = np.zeros((11, 21), bool)
  wanted[5, 10:] = wanted[:6, 10] = True
  np.testing.assert_array_equal(outside, wanted)


def test_boxes_are_read_from_a_written_answer():
  done = run("suffix_to_boxes", suffix=f"{CAT_TEXT} ; {DOG_TEXT}")
  np.testing.assert_allclose(done["boxes"], [CAT, DOG], atol=0.5001 / 1023)
  assert done["labels"] == ["cat", "dog"]
  for text in (f"{CAT_TEXT} ; {DOG_TEXT}", ""):
    assert run("suffix_to_boxes|boxes_to_suffix", suffix=text)["suffix"] == text
  every = " ; ".join(f"<loc{i:04d}><loc0000><loc{i + 1:04d}><loc1023> a" for i in range(1023))
  assert run("suffix_to_boxes|boxes_to_suffix", suffix=every)["suffix"] == every


@pytest.mark.parametrize(
  "text", ["cat", CAT_TEXT[:-4], f"{CAT_TEXT} ;", CAT_TEXT.replace("0767", "1024"), 3,
           CAT_TEXT.replace(" cat", "<seg001>" * 16 + " cat")]
)  # fmt: skip
def test_an_answer_without_boxes_raises(text):
  with pytest.raises(UserError, match=r"four <loc> up to <loc1023> and a label .* 'suffix' is"):
    run("suffix_to_boxes", suffix=text)


def test_the_size_of_an_image_is_read_where_the_data_has_none():
  file = io.BytesIO()
  Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(file, "PNG")
  done = run("image_size|decode", image=file.getvalue())
  assert (done["width"], done["height"]) == (5, 3)
  assert run("image_size", image=file.getvalue(), width=50, height=30)["width"] == 50
  with pytest.raises(UserError, match="put it before decode"):
    run("decode|image_size", image=file.getvalue())


# Masks


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
  """(path of a small VQ-VAE's file, its weights)."""
  path = tmp_path_factory.mktemp("vae") / "small.npz"
  params = seg_vae.init(jax.random.key(0), width=8, embed_dim=8)
  seg_vae_npz.save(path, params)
  return str(path), params


TRIANGLE = [20, 10, 120, 10, 120, 60]


def codes_of(vae, mask, box):
  return np.asarray(seg_vae.encode(vae[1], masks.crop(mask, box)[None, :, :, None]))[0].tolist()


def test_refcoco_answers_are_box_and_codes_without_a_label(vae):
  mask = masks.from_polygon(TRIANGLE, 100, 200)
  box = np.array([0.1, 0.1, 0.6, 0.6], np.float32)
  done = run(f"refcoco_mask2str({vae[0]!r})", **{
    "objects/mask": np.repeat(mask[:, :, None], 3, 2).astype(np.uint8) * 255,
    "objects/bbox": box,
    "objects/refs/sentence": "the left one",
  })  # fmt: skip
  assert done["prefix"] == "the left one"
  codes = "".join(f"<seg{n:03d}>" for n in codes_of(vae, mask, box))
  assert done["suffix"] == "<loc0102><loc0102><loc0614><loc0614>" + codes


def test_segmentations_become_codes_and_come_back(vae):
  runs = dict(size=[100, 200], counts=[0, 10_000, 10_000])
  values = dict(
    boxes=[[0.1, 0.1, 0.6, 0.6], [0, 0, 1, 0.5]], labels=["cat", "dog"], width=200, height=100,
    segmentations=[[TRIANGLE], runs],
  )  # fmt: skip
  done = run(f"masks_to_suffix({vae[0]!r}, order='area')", **values)
  dog, cat = locations.parse(done["suffix"]).objects
  assert (dog.label, cat.label) == ("dog", "cat")
  triangle = masks.from_polygon(TRIANGLE, 100, 200)
  assert list(cat.codes) == codes_of(vae, triangle, values["boxes"][0])
  left = np.arange(200)[None].repeat(100, 0) < 100
  assert list(dog.codes) == codes_of(vae, left, values["boxes"][1])
  bare = run(f"masks_to_suffix({vae[0]!r}, labels=None)", **values)
  assert [o.label for o in locations.parse(bare["suffix"]).objects] == ["", ""]


def test_an_object_without_a_segmentation_raises(vae):
  with pytest.raises(UserError, match="object 0 has a box and no segmentation"):
    run(f"masks_to_suffix({vae[0]!r})", boxes=[CAT], labels=["c"], segmentations=[None])


def test_a_missing_vq_vae_raises_when_the_ops_are_parsed():
  with pytest.raises(UserError, match=r"'none.npz', are not there .* gs://big_vision"):
    parse.parse("decode|masks_to_suffix('none.npz')")


def test_each_location_is_one_token_of_the_answer():
  tiny = tokenizer.load("tiny")
  done = run("boxes_to_suffix", boxes=[CAT, DOG], labels=["cat", "dog"])
  row = prefix_lm.for_training(tiny, "detect cat ; dog", done["suffix"], 64).arrays
  learned = row["text"][row["mask_loss"] > 0].tolist()
  locs = {tiny.encode(name)[0] for name in tokenizer.LOC_TOKENS}
  assert sum(token in locs for token in learned) == 8
  assert tiny.decode(learned) == done["suffix"]
