"""A row with the features of every transfer, what its ops need, and its columns as texts."""

import functools
import io

import jax
import numpy as np
from PIL import Image

from pgjax.data import sentencepiece_model, tokenizer
from pgjax.formats import seg_vae_npz
from pgjax.models import seg_vae


def encoded(seed, format, height=150, width=210):
  y, x = np.mgrid[:height, :width][..., None]
  rng = np.random.default_rng(seed)
  waves = 127 + 90 * np.sin(x / rng.uniform(3, 30, 3) + y / rng.uniform(3, 30, 3))
  pixels = np.clip(waves + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, format)
  return file.getvalue()


def files(format):
  """{feature: encoded images}"""
  return {
    "image": [encoded(1, format)],
    "episodic_images": [encoded(i, "JPEG", 60, 80) for i in range(3)],
  }


def row(files):
  """A row with the features of all transfers; of_transfer selects and shapes them."""
  rng = np.random.default_rng(0)
  masks = [
    np.repeat(rng.integers(0, 2, (150, 210, 1), np.uint8) * np.uint8(255), 3, 2) for _ in "ab"
  ]
  pair = [rng.integers(0, 256, (120, 90 + 40 * i, 3), np.uint8) for i in range(2)]
  return {
    "image": files["image"][0], "episodic_images": files["episodic_images"],
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


def columns(example):
  """Equal texts for equal columns, without the pixels of `image`."""
  found = {}
  for name in sorted(name for name in example if name != "image" and not name.startswith("_")):
    value = plain(example[name])
    found[name] = value if isinstance(value, str) else np.asarray(value).tolist()
  return str(found)


def plain(value):
  """Tensors as numpy arrays, texts and lists."""
  value = value.numpy() if hasattr(value, "numpy") else value
  if isinstance(value, bytes):
    return value.decode("utf-8", "surrogateescape")
  if isinstance(value, np.ndarray) and value.dtype.kind in "OS":
    return [plain(each) for each in value.tolist()]
  return value


def seeded(seed):
  return {"_seed": (seed, 1, 2, seed), "_epoch": seed}


def save_mask_weights(folder):
  """The arrays of a VQ-VAE's random weights, saved as folder/vae-oid.npz."""
  rng = np.random.default_rng(0)
  params = seg_vae.init(jax.random.key(0), embed_dim=32)
  arrays = {
    n: rng.normal(scale=1.0 if a.ndim < 3 else 1.5 / np.prod(a.shape[1:]) ** 0.5, size=a.shape)
    for n, a in seg_vae.to_arrays(params).items()
  }
  arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
  seg_vae_npz.save(folder / "vae-oid.npz", seg_vae.from_arrays(arrays))
  return arrays


@functools.cache
def tiny():
  """The tiny tokenizer, and it as a SentencePiece model with <loc> and <seg>."""
  ours = tokenizer.load("tiny")
  model = sentencepiece_model.parse(ours.source, "tiny")
  sentencepiece_model.add_tokensets(model)
  return ours, model.SerializeToString()
