import json

import numpy as np
import pytest
from PIL import Image

from pgjax.data import loader as loader_lib, notes, pipeline, prefix_lm, tokenizer

BOX = "<loc0001><loc0002><loc1000><loc1023>"


def kinds(prefix, suffix):
  return dict(notes.of_texts(notes.without_image_word(dict(prefix=prefix)), [suffix]))


@pytest.mark.parametrize(
  ("prefix", "suffix", "kind", "detail"),
  [
    ("<image>caption en", "a cat", "image word", ""),
    ("caption en", "a dog<eos>", "special word", "the answer has <eos>"),
    ("<bos>caption en", "a dog", "special word", "the prompt has <bos>"),
    ("caption <image> en", "a dog", "special word", "the prompt has <image>"),
    ("caption en", "<pad>", "special word", "the answer has <pad>"),
    (
      "caption en\n",
      "a cow",
      "special word",
      "the prompt ends with a newline, and another is added",
    ),
    ("caption en", "a cow\n", "special word", "the answer ends with a newline"),
    ("detect cat", BOX.replace("><", "> <") + " cat", "special word", "no spaces between <loc>"),
    ("caption en", " a hen ", "leading space", "the answer is ' a hen '"),
    (" caption en", "a hen", "leading space", "the prompt is ' caption en'"),
  ],
)
def test_odd_texts_are_noted(prefix, suffix, kind, detail):
  noted = kinds(prefix, suffix)
  assert noted.keys() == {kind}
  assert detail in noted[kind]


@pytest.mark.parametrize(
  ("prefix", "suffix"),
  [
    ("caption en", "a cat"),
    ("detect cat ; dog", f"{BOX} cat ; {BOX} dog"),
    ("detect cat", ""),
    ("a < b > c\nd", "<b>bold</b> e <loc1> image"),
    ("", "猫"),
  ],
)
def test_clean_texts_have_no_notes(prefix, suffix):
  assert kinds(prefix, suffix) == {}


@pytest.mark.parametrize("start", ["<image>", "<image><image> ", " <image>\n", "<image> "])
@pytest.mark.parametrize("for_training", [True, False])
def test_an_image_word_at_the_front_leaves_the_tokens_of_a_clean_prompt(
  tmp_path, start, for_training
):
  Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
  row = dict(image="a.png", prefix=f"{start}detect cat", suffix=f"{BOX} cat")
  (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
  [part] = pipeline.parts(dict(name="jsonl", fname=str(tmp_path / "a.jsonl")))
  tiny = tokenizer.load("tiny")
  layout = loader_lib.Layout(16, 32, 0, for_training)
  loader = loader_lib.Loader(part, "decode|resize(16)|value_range(-1, 1)", tiny, layout, seed=0)
  loaded, (example, _, _) = loader(0, 0), loader.texts(0)
  assert loaded.columns["prefix"] == example["prefix"] == "detect cat"
  pack = prefix_lm.for_training if for_training else prefix_lm.for_decoding
  wanted = pack(tiny, "detect cat", *[f"{BOX} cat"] * for_training, 32).arrays
  for name, array in wanted.items():
    np.testing.assert_array_equal(loaded.arrays[name], array)
  [scan] = pipeline.scan([loader], allow_truncated=False)
  [note] = scan.notes
  assert note.startswith("1 of 1 texts: the prompt begins with <image>, which is dropped")
  assert "a.jsonl, line 1" in note


def counted(boxes, **more):
  counter = notes.BoxCounter()
  for i, some in enumerate(boxes):
    counter.add(i, dict(boxes=some) | more)
  return counter.sentences(lambda i: f"row {i}")


def test_good_boxes_have_no_notes():
  rng = np.random.default_rng(0)
  corners = np.sort(rng.uniform(0, 1, (50, 2, 2)), axis=1).reshape(50, 4).tolist()
  assert counted([corners, [[0, 0, 1, 1.004]], []]) == []
  tiny = [[0.5, 0.5, 0.5, 0.6]]  # One, as in BCCD.
  assert counted([corners, tiny], height=480, width=640) == []


def test_corners_in_place_of_sizes_are_counted_and_explained():
  height, width = 100, 200
  corners = [(10, 20, 50, 60), (120, 40, 180, 90), (150, 70, 190, 95)]
  read = [[y / height, x / width, (y + b) / height, (x + a) / width] for x, y, a, b in corners]
  [sentence] = counted([read[:1], read[1:]], height=height, width=width)
  assert sentence.startswith("2 of 3 boxes end outside of their images and are cut")
  assert "row 1; 3 would fit if their numbers were x0, y0, x1, y1" in sentence
  [sentence] = counted([[*read, [0.5, 0.5, 0.6, 0.6]]])
  assert "x0, y0" not in sentence


def test_shares_in_place_of_pixels_are_counted_and_explained():
  boxes = np.array([[0.1, 0.1, 0.5, 0.9], [0.2, 0.3, 0.9, 1]]) / [480, 640, 480, 640]
  [sentence] = counted([boxes[:1], boxes[1:]], height=480, width=640)
  assert sentence.startswith("2 of 2 boxes are less than a pixel high or wide, such as in row 0")
  assert "look like shares" in sentence
  other = dict(_boxes=[], _without_area=boxes.tolist(), _size=(480, 640))
  counter = notes.BoxCounter()
  counter.add(0, other)
  assert len(counter.sentences(str)) == 1


def test_other_columns_called_boxes_are_ignored():
  assert counted([3, "boxes", None, [["a"] * 4], [[1, 2]]]) == []


TRAINED = {("detect", "cat", "dog"): 5}


@pytest.mark.parametrize(
  ("training", "other", "how"),
  [
    (TRAINED, ("detect", "cat"), "'detect cat', and training asks 'detect cat ; dog'"),
    (TRAINED, ("detect", "dog", "cat"), "training asks 'detect cat ; dog' in another order"),
    (TRAINED, ("segment", "cat", "dog"), "'segment cat ; dog', and training asks"),
    (TRAINED, ("detect", "cat", "dog"), None),
    ({}, ("detect", "cat"), None),
    ({("segment", f"cat {i}"): 1 for i in range(9)}, ("segment", "cat"), None),
    ({("detect", f"cat {i}"): 9 for i in range(99)}, ("detect", "cat"), None),
  ],
)
def test_prompts_that_training_never_asks_are_named(training, other, how):
  differing = notes.differing_prompts(training, {other: 2})
  assert differing.keys() == ({other} if how else set())
  if how:
    assert how in differing[other]


def test_a_run_reports_prompts_that_differ():
  scan = lambda name, prompts: pipeline.Scan(name, 7, 0, 9, (), prompts)  # noqa: E731
  sentences = pipeline.differing_prompts(
    [scan("train", TRAINED)], [scan("val", {("detect", "cat"): 3})]
  )
  assert sentences == [
    "3 of 7 prompts of val ask 'detect cat', and training asks 'detect cat ; dog'"
  ]
