"""Every pp string of the 34 transfers gives the arrays and columns of TensorFlow."""

import functools
import io
import itertools
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="`make test-tf` installs TensorFlow")
import tensorflow as tf
from tf_reference import CHECKOUT, original_strings, pipeline, plain, tensors

from pgjax.data import sentencepiece_model, tokenizer
from pgjax.data.pp import parse
from pgjax.formats import seg_vae_npz
from pgjax.models import seg_vae

pytestmark = pytest.mark.tf
ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("PGJAX_SHARED_DATA", ROOT.parent / "shared/data")).parent
GEMMA = 'model=\'gemma(tokensets=("loc", "seg"))\''
PIXELS = ["decode", "resize(", "value_range", "video_d", "video_r", "video_e", "stack", "draw"]
DRAWS = 40  # Of big_vision's own random ops, which take no index.


def packing(length, keep, *, training):
  """The end of every pp string: combine_and_keep_train or combine_and_keep_eval."""
  mask = "mask_loss=[0, 0, 1]" if training else "mask_input=[1, 1, 1]"
  ops = [
    f"tok({GEMMA}, key='prefix', bos='yes')",
    f"tok({GEMMA}, key='septok', text='\\n')",
    *([] if training else ["setdefault('suffix', '')"]),
    f"tok({GEMMA}, key='suffix', eos='{'yes' if training else 'no'}')",
    f"masked_concat(['prefix', 'septok', 'suffix'], outkey='text', mask_ar=[0, 0, 1], {mask})",
    f"tolen({length}, pad_value=0, key='text')",
    f"tolen({length}, pad_value=1, key='mask_ar')",
    f"tolen({length}, pad_value=0, key='{mask.split('=')[0]}')",
    f"keep({', '.join(map(repr, keep))})",
  ]
  return "|".join(ops)


def written(ops):
  calls = []
  for op in ops:
    named = [f"{name}={value!r}" for name, value in op.get("kwargs", {}).items()]
    calls.append(f"{op['op']}({', '.join([*map(repr, op.get('args', [])), *named])})")
  return "|".join(calls)


@functools.cache
def strings():
  """{name of a transfer and its data: pp}; <lang> stands for part of a name there.

  With PGJAX_BIG_VISION, those of the checkout's configs.
  """
  if CHECKOUT:
    return original_strings()
  path = SHARED / "spec/transfers.json"
  if not path.is_file():
    return {}
  found = {}
  for transfer in json.loads(path.read_text())["transfers"]:
    training = (
      "train", transfer["train_pp_before_text_packing"], transfer["train_token_array_len"],
      transfer["train_keep"],
    )  # fmt: skip
    evaluated = [
      (e["key"], e["pp_before_text_packing"], e["token_array_len"], e["keep"])
      for e in transfer["evaluators"]
      if not isinstance(e["pp_before_text_packing"], str)  # That of training.
    ]
    for key, ops, length, keep in (training, *evaluated):
      pp = f"{written(ops)}|{packing(length, keep, training=key == 'train')}"
      pp = pp.replace("mask_<lang>", "mask_ar").replace("_<lang>", "_id").replace("<lang>", "id")
      found.setdefault((transfer["name"], pp), f"{transfer['name']} {key}")
  return {name: pp for (_, pp), name in found.items()}


def encoded(seed, format, height=150, width=210):
  y, x = np.mgrid[:height, :width][..., None]
  rng = np.random.default_rng(seed)
  waves = 127 + 90 * np.sin(x / rng.uniform(3, 30, 3) + y / rng.uniform(3, 30, 3))
  pixels = np.clip(waves + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, format)
  return file.getvalue()


def row(format):
  """A row with the features of all transfers."""
  rng = np.random.default_rng(0)
  masks = [
    np.repeat(rng.integers(0, 2, (150, 210, 1), np.uint8) * np.uint8(255), 3, 2) for _ in "ab"
  ]
  pair = [rng.integers(0, 256, (120, 90 + 40 * i, 3), np.uint8) for i in range(2)]
  return {
    "image": encoded(1, format), "episodic_images": [encoded(i, "JPEG", 60, 80) for i in range(3)],
    "image_left": pair[0], "image_right": pair[1],
    "_id": np.int32(7), "id": "q-1", "int_id": np.int64(12), "image/id": np.int32(5),
    "image/filename": "a.jpg", "example_id": "e1", "example/video_id": "v_1", "question_id": 3,
    "segment_start": 0.1, "segment_end": np.float32(12.25), "issimple": np.int64(1), "number": 4,
    "clip/start/timestamp": np.int64(0), "clip/end/timestamp": np.int64(9_000_000),
    "caption/string": ["A dog.", "Two Dogs run"], "texts": ["a cat", "A Übung"],
    "caption/lowercase_and_token_and_remove_figure_index": "plot of x",
    "question": ["What is it?"], "question_text": "Is it?", "question_type": "how", "label": "true",
    "sentence": "both are red", "answer": ["42"], "answers": ["Yes", "NO", "maybe"], "hint": "",
    "direct_answers": ["red", "blue"], "possible_answers": ["a", "b", "c d"], "answer_type": "y",
    "multiple_choice_possible_answers": ["w", "x", "y"], "multiple_choice_correct_idx": np.int64(2),
    "choices": ["dog", "cat", "cow"], "indexed_choices": "(A) dog", "indexed_answer": "A",
    "language": "de", "summary": ["list of songs", "player"], "bbox": np.float32([.1, .2, .7, .93]),
    "lecture": "Light bends.", "solution": "It is B.",
    "captions": {"text": ["one", "two"]}, "width": np.int64(210), "height": np.int64(150),
    "objects": {"mask": masks, "bbox": np.float32([[.1, .2, .77, .9], [0, .3, 1, 1.0]]),
                "refs": {"sentence": [["left one", "the dog"], ["right"]]}},
  }  # fmt: skip


def of_transfer(name, values):
  """Shapes of features that the transfers do not share."""
  values = dict(values)
  if not name.startswith(("activitynet_qa", "msrvtt_qa", "msvd_qa")):
    values["question"] = values["question"][0]
    values["answer"] = values["answer"][0]
  if name.startswith("tallyqa"):
    values["answer"] = np.int64(3)
  if name.startswith(("science_qa train",)):
    values["answer"] = np.int32(1)
  if name.startswith("coco35l"):
    values["captions"] = ["eins", "zwei", "drei"]
  if name.startswith(("forkme train", "vertexai_l4")):
    values["suffix"] = "a cat"
  if "refcoco" not in name:
    del values["objects"]
  return values


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """(folder of a VQ-VAE's random weights, their arrays)."""
  rng = np.random.default_rng(0)
  params = seg_vae.init(jax.random.key(0), embed_dim=32)
  arrays = {
    n: rng.normal(scale=1.0 if a.ndim < 3 else 1.5 / np.prod(a.shape[1:]) ** 0.5, size=a.shape)
    for n, a in seg_vae.to_arrays(params).items()
  }
  arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
  path = tmp_path_factory.mktemp("vae") / "vae-oid.npz"
  seg_vae_npz.save(path, seg_vae.from_arrays(arrays))
  os.environ["PGJAX_TF_SCRATCH"] = str(path.parent)
  return path.parent, arrays


@functools.cache
def tiny():
  ours = tokenizer.load("tiny")
  model = sentencepiece_model.parse(ours.source, "tiny")
  sentencepiece_model.add_tokensets(model)
  return ours, model.SerializeToString()


def outcomes(pp, values, vae):
  """What TensorFlow gives: all of it once, then the texts for every outcome of the random ops.

  big_vision's own ops take no index, so they draw a few times.
  """
  options = dict(tokenizer=tiny()[1], vae=vae)
  data, sizes = tensors(values), []
  first = pipeline(pp, pick=lambda n: sizes.append(n) or 0, **options)(data)
  texts = "|".join(part for part in pp.split("|") if not part.startswith(tuple(PIXELS)))
  if CHECKOUT:
    draws = DRAWS * ("choice" in pp or "shuffle" in pp)
    run = pipeline(texts, **options)
    return [first, *(run(data) for _ in range(draws))]
  picks = itertools.product(*map(range, sizes)) if sizes else ()
  given = [functools.partial(_next, iter(each)) for each in picks]
  return [first, *(pipeline(texts, pick=pick, **options)(data) for pick in given)]


def _next(given, n):
  return next(given) % n


def columns(example):
  """Equal texts for equal columns, without the pixels of `image`."""
  found = {}
  for name in sorted(name for name in example if name != "image" and not name.startswith("_")):
    value = plain(example[name])
    found[name] = value if isinstance(value, str) else np.asarray(value).tolist()
  return str(found)


@pytest.mark.parametrize(
  "name", strings() or [pytest.param("", marks=pytest.mark.skip("no shared"))]
)
def test_arrays_and_columns_are_those_of_tensorflow(name, weights, monkeypatch):
  monkeypatch.setenv("PGJAX_WEIGHTS_DIR", str(weights[0]))
  pp = strings()[name]
  for format in ("JPEG", "PNG"):
    values = of_transfer(name, row(format))
    theirs = outcomes(pp, values, weights[1])
    ours = parse.parse(pp, tokenizer=tiny()[0])
    expected = {columns(each) for each in theirs}
    done = ours(of_transfer(name, row(format)) | seeded(0))
    np.testing.assert_array_equal(done["image"], theirs[0]["image"].numpy())
    assert done["image"].dtype == np.float32
    assert {each for each in done if not each.startswith("_")} == theirs[0].keys() - {"_id"}
    assert columns(done) in expected, (columns(done), columns(theirs[0]))
    if len(expected) > 1:
      texts = [ours.text_only()(values | seeded(seed)) for seed in range(1, 12)]
      seen = {columns(each) for each in texts}
      assert seen <= expected
      assert len(seen) > 1


def seeded(seed):
  return {"_seed": (seed, 1, 2, seed), "_epoch": seed}


def test_all_strings_are_compared():
  if not strings():
    pytest.skip(f"{SHARED} has no spec/transfers.json")
  assert len(strings()) >= 66
  assert tf.__version__
