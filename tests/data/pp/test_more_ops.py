"""Ops of big_vision beyond test_ops.py, by hand; tests/tf compares them with TensorFlow."""

import io

import numpy as np
import pytest
from PIL import Image

from pgjax.data.pp import parse
from pgjax.errors import UserError

# What big_vision 0127fb6 registers in the modules that the transfers' pp_modules name.
BIG_VISION = {
  "ops_general": "value_range lookup onehot keep drop copy squeeze_last_dim concat rag_tensor"
  " pad_to_shape flatten reshape setdefault choice choice_no_replacement",
  "ops_image": "decode resize resize_small resize_long inception_crop random_crop central_crop"
  " decode_jpeg_and_inception_crop flip_lr vgg_value_range clip_value_range convert_to_video",
  "ops_text": "tokenize coco_captions clip_i1k_label_names i21k_label_names lower strfmt",
  "proj.paligemma.ops": "tolen tok masked_concat strjoin majority getidx",
  "proj.paligemma.video": "video_decode video_ensure_shape video_replicate_img video_choice"
  " stack_images",
  "proj.paligemma.segmentation": "refcoco_mask2str",
  "proj.paligemma.sciqa_ops": "sci_qa_choices_shuffle",
  "proj.paligemma.widgetcap": "draw_bbox",
  "proj.paligemma.robustness": "resize_r random_jpeg",
}


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def jpeg(pixels):
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "jpeg")
  return out.getvalue()


def run(pp, seed=0, epoch=0, **values):
  return parse.parse(pp)({"_seed": (seed, 1, 2, epoch), "_epoch": epoch, **values})


def test_every_op_of_big_vision_has_its_name_here():
  names = {name for module in BIG_VISION.values() for name in module.split()}
  assert names <= parse.OPS.keys()
  for refused in ("tokenize(64, 'yes', model='t5')", "clip_i1k_label_names", "i21k_label_names()"):
    with pytest.raises(UserError, match=r"write tok\(|store names in the data"):
      parse.parse(refused)


@pytest.mark.parametrize(
  ("pp", "before", "after"),
  [
    ("strfmt('{{x}} {a}}}{{', 's')", dict(a=1), dict(s="{x} 1}{")),
    ("strfmt('{a} {b} {c} {d}', 's')", dict(a=0.1, b=True, c=2.0, d=1 / 3),
     dict(s="0.1 1 2 0.333333343")),
    ("strfmt('{a} {b}', 's')", dict(a=np.float64(1 / 3), b=[0.1, 2]),
     dict(s="0.33333333333333331 [0.1 2]")),
    ("strfmt('{a}', 's')", dict(a=np.array([[1, 2], [3, 4]])), dict(s="[[1 2]\n [3 4]]")),
    ("strfmt('{a}', 's')", dict(a=np.float32([1e6, 1e-5, 16777216, np.inf])),
     dict(s="[1e+06 1e-05 16777216 inf]")),
    ("strfmt('<{a}{b}>', 's')", dict(a=["x", "y"], b=1), dict(s=["<x1>", "<y1>"])),
    ("strjoin(' \\t ', inkey='a', outkey='s')", dict(a=["x", "y"]), dict(s="x \t y")),
    ("strjoin(', ', key='a')", dict(a=np.array([])), dict(a="")),
    ("strjoin('-', axis=0, key='a')", dict(a=[["a", "b"], ["c", "d"]]), dict(a=["a-c", "b-d"])),
    ("getidx('a', 'i', 's')", dict(a=["x", "y"], i=np.int64(-1)), dict(s="y")),
    ("getidx('a', 'i')", dict(a=["x", "y"], i=0), dict(a="x")),
    ("majority(key='a')", dict(a=["b", "c", "c", "b"]), dict(a="b")),
    ("squeeze_last_dim(key='a')", dict(a=np.array([3])), dict(a=3)),
    ("coco_captions()", dict(captions=dict(text=["x"])), dict(captions=["x"])),
    ("rag_tensor(key='a')", dict(a=[1, 2]), dict(a=[[1, 2]])),
    ("video_choice('none', key='a')", dict(a=[]), dict(a="none")),
    ("video_choice(key='a')", dict(a=[["x"], ["x", "x"]]), dict(a="x")),
    ("choice(3, key='a', fewer_ok=True)", dict(a=["x", "y"]), dict(a=["x", "y"])),
  ],
)  # fmt: skip
def test_values_by_hand(pp, before, after):
  done = run(pp, **before)
  assert {name: done[name] for name in after} == after


def test_arrays_by_hand():
  one = run("onehot(4)", labels=np.array([1, 3, 1]))["labels"]
  np.testing.assert_array_equal(one, np.float32([0, 1, 0, 1]))
  rows = run("onehot(3, multi=False, on=2.0, off=-1.0)", labels=[2, 7])["labels"]
  np.testing.assert_array_equal(rows, [[-1, -1, 2], [-1, -1, -1]])
  padded = run("pad_to_shape([4, None], where='both', key='a')", a=np.ones((1, 2)))["a"]
  np.testing.assert_array_equal(padded, [[0, 0], [1, 1], [0, 0], [0, 0]])
  joined = run("concat(['a', 'b'], 'c', axis=0)", a=[1, 2], b=[3])["c"]
  np.testing.assert_array_equal(joined, [1, 2, 3])


def test_lookup_reads_lines_and_pairs(tmp_path):
  (tmp_path / "lines.txt").write_text("a\nb\n")
  (tmp_path / "pairs.txt").write_text("a\t5\nb\t7\n")
  texts = ["a", "b", "none"]
  for arguments, numbers in (
    (f"'{tmp_path}/lines.txt'", [0, 1, -1]),
    (f"'{tmp_path}/pairs.txt', sep='\\t'", [5, 7, -1]),
  ):
    assert run(f"lookup({arguments}, key='a')", a=texts)["a"].tolist() == numbers
  with pytest.raises(UserError, match="lookup cannot read"):
    parse.parse(f"lookup('{tmp_path}/missing.txt', key='a')")


@pytest.mark.parametrize(
  ("pp", "values", "message"),
  [
    ("getidx('a', 'i')", dict(a=[1, 2], i=2), "element 2 .* which has 2"),
    ("strjoin(',', key='a')", dict(a=[1, 2]), "joins a list of texts"),
    ("strfmt('{a}{b}')", dict(a=["x"], b=["x", "y"]), "different lengths"),
    ("choice(key=['a', 'b'])", dict(a=[1], b=[1, 2]), "lists of one length"),
    ("choice_no_replacement(key='a')", dict(a="text"), "a single value"),
    ("choice([2, 3], key='a')", dict(a=[1]), "which has 1 elements"),
    ("sci_qa_choices_shuffle", dict(choices=["x"] * 27, answer=0), "27 choices"),
    ("video_decode(8)", dict(episodic_images=[]), "has none"),
    ("video_ensure_shape('a', [2, None])", dict(a=np.zeros((3, 1))), r"shape \(3, 1\)"),
    ("stack_images(['a', 'b'])", dict(a=noise(2, 2, 3), b=noise(2, 3, 3)), "images of one size"),
    ("central_crop(5)", dict(image=noise(4, 9, 3)), "does not fit"),
    ("central_crop", dict(image=noise(4, 9, 3), boxes=[[0, 0, 1, 1]]), "moves pixels"),
    ("pad_to_shape([1], key='a')", dict(a=[1, 2]), "whose shape is"),
    ("onehot(2)", dict(labels=[2]), "outside of 0..1"),
  ],
)
def test_what_an_op_cannot_do_is_reported(pp, values, message):
  with pytest.raises(UserError, match=message):
    run(pp, **values)


def test_choices_of_science_qa_are_shuffled_with_the_letter_of_the_answer():
  seen = set()
  for seed in range(40):
    done = run("sci_qa_choices_shuffle", seed, choices=["dog", "cat", "cow"], answer=1)
    assert f"({done['indexed_answer']}) cat" in done["indexed_choices"]
    assert sorted(part[4:] for part in done["indexed_choices"].split(", ")) == ["cat", "cow", "dog"]
    seen.add(done["indexed_choices"])
  assert len(seen) == 6


def test_a_range_of_numbers_is_chosen_in_order():
  lengths = set()
  for seed in range(40):
    done = run("choice([1, 3], key=['a', 'b'], outkey='{key}2')", seed, a=list("wxyz"), b=range(4))
    assert done["a2"] == ["wxyz"[i] for i in done["b2"]]
    assert done["b2"] == sorted(done["b2"])
    lengths.add(len(done["b2"]))
  assert lengths == {1, 2, 3}


def test_choice_no_replacement_takes_lists_of_keys():
  pp = "choice_no_replacement(inkey=['a', 'b'], outkey=['x', 'y'])"
  done = [run(pp, epoch=e, a=list("wxyz"), b=[0, 1, 2, 3]) for e in range(8)]
  assert all(row["x"] == "wxyz"[row["y"]] for row in done)
  assert {row["y"] for row in done[:4]} == {row["y"] for row in done[4:]} == {0, 1, 2, 3}


def test_a_video_is_decoded_repeated_and_checked():
  frames = [jpeg(noise(9, 12, 3, seed=i)) for i in range(2)]
  pp = "video_decode(8)|video_replicate_img(5, 5)|video_ensure_shape('image', [5, 8, 8, 3])"
  video = run(pp, episodic_images=frames)["image"]
  assert video.dtype == np.float32
  np.testing.assert_array_equal(video[0], video[2])
  np.testing.assert_array_equal(video[1], video[3])
  decoded = [run("decode", image=frame)["image"] for frame in frames]
  again = run("video_decode(8)", episodic_images=decoded)["image"]
  np.testing.assert_array_equal(again, video[:2])
  assert (video[0] * 127.5 % 1).any()  # Not rounded to whole levels.


def test_pairs_become_frames_that_image_ops_take():
  left, right = noise(9, 12, 3, seed=1), noise(9, 12, 3, seed=2)
  pp = "stack_images(('image_left', 'image_right'))|flip_lr(1.0)|value_range(-1, 1)"
  pair = run(pp, image_left=left, image_right=right)["image"]
  assert pair.shape == (2, 9, 12, 3)
  np.testing.assert_array_equal(pair[1], run("value_range(-1, 1)", image=right[:, ::-1])["image"])
  video = run("convert_to_video(3)", image=left)["image"]
  assert video.shape == (3, 9, 12, 3)
  assert not video[1:].any()


def test_sides_are_scaled_and_the_middle_cropped():
  image = noise(30, 50, 3)
  assert run("resize_small(12)", image=image)["image"].shape == (12, 20, 3)
  assert run("resize_long(12)", image=image)["image"].shape == (7, 12, 3)
  np.testing.assert_array_equal(run("central_crop", image=image)["image"], image[:, 10:40])
  np.testing.assert_array_equal(
    run("central_crop((7, 9))", image=image)["image"], image[11:18, 20:29]
  )
  for seed in range(8):
    assert run("resize_r(9)|random_jpeg(1.0)", seed, image=image)["image"].shape == (9, 9, 3)
  assert run("decode_jpeg_and_inception_crop(8)", image=jpeg(image))["image"].shape == (8, 8, 3)


def test_windows_have_the_areas_of_tensorflow():
  """Uniform heights, not areas: 0.637 of a 480 x 640 image, measured with TensorFlow."""
  image = np.broadcast_to(np.uint8(0), (480, 640, 3))
  window = parse.parse("inception_crop(area_min=50)")
  shares = [
    np.prod(window({"image": image, "_seed": (i,), "_epoch": 0})["image"].shape[:2]) / (480 * 640)
    for i in range(1500)
  ]
  assert abs(np.mean(shares) - 0.637) < 0.01  # Three standard errors.


def test_boxes_outside_are_not_drawn():
  image = noise(20, 30, 3)
  for box in (
    [1.5, 0, 2, 1],
    [-1, 0, -0.5, 1],
    [0, 1.2, 1, 1.4],
    [0, -0.9, 1, -0.2],
    [0.5, 0, 0.2, 1],
  ):
    drawn = run("draw_bbox", image=image, bbox=np.float32(box))["image"]
    np.testing.assert_array_equal(drawn, image)
  drawn = run("draw_bbox", image=image, bbox=np.float32([-1, 0.5, 0.5, 2]))["image"]
  assert (drawn[9, 14:] == [255, 0, 0]).all()


def test_ops_that_read_the_image_are_skipped_for_texts():
  pp = parse.parse(
    "decode|copy('image', 'raw')|reshape([1, 2, 3])|reshape([], key='s')|stack_images(['a', 'b'])"
    "|video_decode(8)|strfmt('{s}', 'prefix')"
  )
  assert [op.name for op in pp.text_only().ops] == ["reshape", "strfmt"]
