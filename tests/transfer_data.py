"""Small data sets with the names, features and splits that big_vision's transfer configs read.

Written with TFDS as ArrayRecord, without TensorFlow; the features are those of the builders. All
references of a row are equal, so that one answer gets the highest score.
"""

import contextlib
import functools
import io
import json
import os
import pathlib
import re

import jax
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.features import feature as tfds_feature

from pgjax.formats import seg_vae_npz
from pgjax.models import seg_vae

ROWS = 64  # Of a split from which nothing is cut by number.
CODES = list(range(16))  # Of every mask.
NO_ANSWERS = ("test", "test-dev")  # Splits whose answers only a server has, of the sets below.
KEPT_BACK = ("aokvqa", "docvqa", "infovqa", "stvqa", "text_caps", "textvqa", "vizwizvqa", "vqa")

_QUESTION = "image question:text answers:texts question_id:int32"
_SCENE = "question_type:text raw_answers:texts filename:text"
_OBJECTS = "id:int64 area:float32 bbox:box mask:image category:text iscrowd:bool"
# {name in the configs: its features}; `*` ends the names of several.
FEATURES = {
  "ai2d": "image id:text question:text label:int32 answer:text possible_answers:texts"
  " abc_label:bool image_name:text",
  "aokvqa": "image image_id:int64 direct_answers:texts direct_answer_is_difficult:bool"
  " multiple_choice_possible_answers:texts multiple_choice_correct_idx:int32"
  " answer_rationales:texts question:text question_id:text",
  "chartqa/*": "image question_id:int32 image/filename:text question:text answer:text",
  "coco35l": "image image/id:text captions:texts language:text",
  "xm3600": "image image/id:text captions:texts captions/tokenized:texts language:text",
  "coco_captions": "image image/id:int64 image/filename:text objects captions",
  "nocaps": "image image/id:int64 image_filepath:text url:text texts:texts",
  "docvqa": f"{_QUESTION} image/filename:text",
  "gqa": "image example_id:int64 image/id:text question:text answer:text full_answer:text"
  " is_balanced:bool",
  "xgqa": "image example_id:text image/id:text question:text answer:text",
  "infovqa": f"{_QUESTION} filename:text",
  "nlvr2": "image_left:image image_right:image sentence:text label:text example_id:text",
  "marvl": "image_left:image image_right:image sentence:text label:text example_id:text",
  "ocrvqa_id": "image question:text answer:text int_id:int32",
  "okvqa": "image image_id:int64 answer_type:text answers:texts answers_confidence:bool10"
  " answers_raw:texts question_id:int64 question_type:text question:text",
  "pope_*": "image question_id:int32 image/filename:text question:text answer:text thing:text",
  "ref_coco_bv/*": "image id:int32 height:int32 width:int32 file_name:text objects",
  "rsvqa_hr/nonum": f"{_QUESTION} {_SCENE}",
  "rsvqa_lr/nonum": f"{_QUESTION} {_SCENE}",
  "scicap/*": "image image/id:text image/filename:text caption/originally_extracted:text"
  " caption/lowercase_and_token_and_remove_figure_index:text caption/normalized/basic_num:text"
  " caption/normalized/advanced_equation_bracket:text",
  "science_qa": "image question:text choices:texts answer:int32 hint:text task:text grade:text"
  " subject:text topic:text category:text skill:text lecture:text solution:text"
  " indexed_choices:text indexed_answer:text",
  "screen2_words": "image image/id:int32 image/filename:text summary:texts",
  "stvqa": f"{_QUESTION} filename:text",
  "tallyqa": "image image_id:int32 image_source:text question:text question_id:int32 answer:int32"
  " issimple:int32",
  "countbenchqa": "image image_id:int32 question:text text:text image_url:text number:int32",
  "text_caps": "image image/id:text image_filepath:text texts:texts",
  "textvqa": f"{_QUESTION} image/id:int32 image_filepath:text",
  "vizwizvqa": f"{_QUESTION} image/filename:text answer_confidences:texts answerable:int32",
  "vqa": "image image/id:int32 image/filename:text question_id:int32 question_type:text"
  " question_text:text answer_type:text answers:texts answer_confidences:texts top_answer:text",
  "widgetcap": "image image/id:text image/filename:text texts:texts bbox:box screen_id:text"
  " node_id:text height:int32 width:int32",
}
_CAPTIONS = ("captions", "texts", "summary", "caption")
# Values other than a short text with the row's number.
_TEXTS = dict(
  question_type=("presence", "comp"),
  answer_type=("yes/no", "number", "other"),
  label=("True", "False"),
  indexed_answer=("A", "B", "C"),
  indexed_choices=("(A) x (B) y (C) z",),
  hint=("N/A",),
)


def features_of(name):
  """The features of a data set, as FEATURES writes them."""
  found = [text for known, text in FEATURES.items() if re.fullmatch(known.replace("*", ".+"), name)]
  return found[0].split()


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


@functools.cache
def picture(number):
  return png(np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8))


@functools.cache
def mask():
  """The PNG of the mask that CODES stand for."""
  shown = np.asarray(seg_vae.decode(seg_vae_npz.load("oi"), np.array([CODES])))[0, :, :, 0] > 0
  return png(shown)


def save_mask_weights(folder):
  """A small VQ-VAE as PaliGemma's file in PGJAX_WEIGHTS_DIR."""
  params = seg_vae.init(jax.random.key(0), width=8, embed_dim=16)
  seg_vae_npz.save(pathlib.Path(folder, seg_vae_npz.FILE), params)


def rows_needed(splits):
  """{split: rows}, enough for texts such as `train[:20_864]+val[-5%:]`."""
  rows = {}
  for part in "+".join(splits).split("+"):
    name, *cuts = re.split(r"[\[\]]", part.strip())
    counts = [int(n.replace("_", "")) for n in re.findall(r"(?<!%)\b[\d_]+\b(?!%)", "".join(cuts))]
    rows[name] = max(rows.get(name, ROWS), *(count + 16 for count in counts), ROWS)
  return rows


def prepare(name, splits, folder):
  """Writes data set `name` with at least the rows that the texts `splits` name."""
  name, _, version = name.partition(":")
  rows = rows_needed(splits)
  made = {"name": "mock", "VERSION": tfds.core.Version(version or "1.0.0")}
  made["_info"] = lambda self: tfds.core.DatasetInfo(builder=self, features=_features(name))
  made["_split_generators"] = lambda self, manager: {
    split: _rows(name, split, count) for split, count in rows.items()
  }
  made["_generate_examples"] = None
  with registered.skip_registration(), _numpy_types(), contextlib.redirect_stdout(io.StringIO()):
    kind = type("Mock", (tfds.core.GeneratorBasedBuilder,), made)
    builder = kind(data_dir=folder / "new", file_format="array_record")
    builder.download_and_prepare(download_dir=folder / "none")
  target = folder / name / str(made["VERSION"])
  target.parent.mkdir(parents=True, exist_ok=True)
  os.rename(builder.data_path, target)


@contextlib.contextmanager
def _numpy_types():
  """TFDS asks TensorFlow for the type of lists in lists, which is numpy's."""
  before = tfds_feature.TensorInfo.dtype
  tfds_feature.TensorInfo.dtype = property(lambda self: self.np_dtype)
  try:
    yield
  finally:
    tfds_feature.TensorInfo.dtype = before


def _features(name):
  f, numpy_types = tfds.features, dict(bool=np.bool_, bool10=np.bool_)
  made = {}
  for each in features_of(name):
    key, _, kind = each.partition(":")
    if kind == "image" or each == "image":
      made[key] = f.Image(encoding_format="png")
    elif each == "captions":
      made[key] = f.Sequence(dict(id=np.int64, text=f.Text()))
    elif each == "objects" and name == "coco_captions":
      made[key] = f.Sequence(dict(bbox=f.BBoxFeature(), label=np.int64))
    elif each == "objects":
      refs = f.Sequence(dict(id=np.int32, sentence=f.Text()))
      inner = dict(id=np.int64, area=np.float32, bbox=f.BBoxFeature(), iscrowd=np.bool_)
      made[key] = f.Sequence(dict(inner, mask=f.Image(encoding_format="png"), refs=refs))
    elif kind == "bool10":
      made[key] = f.Tensor(shape=[10], dtype=np.bool_)
    else:
      plain = dict(text=f.Text(), texts=f.Sequence(f.Text()), box=f.BBoxFeature())
      made[key] = plain.get(kind) or f.Scalar(numpy_types.get(kind) or np.dtype(kind).type)
  return f.FeaturesDict(made)


def _rows(name, split, count):
  for i in range(count):
    yield i, _row(name, split, i)


def _row(name, split, i):
  hidden = name in KEPT_BACK and split in NO_ANSWERS
  return {
    key: _value(name, split, key, kind, i, hidden)
    for key, _, kind in (each.partition(":") for each in features_of(name))
  }


def _value(name, split, key, kind, i, hidden):
  if kind == "image" or key == "image":
    return io.BytesIO(picture(i % 4))
  if key == "objects" and name == "coco_captions":
    return []
  if key == "objects":
    refs = [dict(id=k, sentence=f"thing {i}") for k in range(1 if "_flat" in split else 1 + i % 2)]
    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    one = dict(id=i, area=9.0, bbox=box, iscrowd=False, refs=refs)
    return [
      one | dict(mask=io.BytesIO(mask())) for _ in range(1 if "_flat" in split else 1 + i % 2)
    ]
  if key == "captions" and not kind:
    return [dict(id=k, text=caption(i)) for k in range(5)]
  if kind == "box":
    return tfds.features.BBox(0.125, 0.25, 0.5, 0.75)
  if kind == "bool10":
    return np.ones(10, bool)
  if kind == "texts":
    return _texts(key, i, hidden)
  if kind == "text":
    return _text(name, split, key, i, hidden)
  if key == "multiple_choice_correct_idx":
    return -1 if hidden else i % 4
  small = dict(
    height=9,
    width=12,
    number=1 + i % 10,
    answer=i % 17,
    issimple=(1, 0, -1)[i % 3],
    bool=i % 2 == 0,
  )
  return small.get(key, small.get(kind, i))


def _texts(key, i, hidden):
  if key in _CAPTIONS:
    return [] if hidden else [caption(i)] * 5
  if key in ("multiple_choice_possible_answers", "possible_answers", "choices"):
    return [f"{color} {i}" for color in ("red", "green", "blue", "grey")]
  return [] if hidden and "answers" in key else [f"a{i}"] * 10


def _text(name, split, key, i, hidden):
  if name.startswith("pope_") and key == "answer":
    return ("yes", "no")[i % 2]
  if key == "language":
    return split.rpartition("_")[2]
  if key == "answer_type" and hidden:
    return ""
  if key in _TEXTS:
    return _TEXTS[key][i % len(_TEXTS[key])]
  return caption(i) if key.startswith("caption") else f"{key[:2]}{i}"


def caption(i):
  return f"a bus {i} in a street {i}"


def write_jsonl(folder, name, rows=24):
  """A file of examples as forkme's, with the true answers in `suffix`."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / name).open("w") as file:
    for i in range(rows):
      (folder / f"{i}.png").write_bytes(picture(i % 4))
      file.write(json.dumps(dict(image=f"{i}.png", suffix=f"the answer {i}")) + "\n")


def write_videos(folder, name, split, rows=24):
  """A split of a video data set: JSONL beside folders of frames."""
  target = folder / name
  if (target / f"{split}.jsonl").exists():
    return
  for i in range(4):
    (target / f"clip{i}").mkdir(parents=True, exist_ok=True)
    for k in range(6):
      (target / f"clip{i}/{k}.png").write_bytes(picture(k % 4))
  texts = [
    dict(video=f"clip{i % 4}", id=i, question="q?", answer=f"a{i}", captions=[caption(i)] * 5)
    | {"example/video_id": f"{split}{i}"}
    for i in range(rows)
  ]
  (target / f"{split}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
