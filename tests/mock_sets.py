"""Prepared data sets of made-up rows, with the features of the real ones, and small videos.

The features are those that pgjax/datasets declares, so that configs find the columns that they
name; the answers are such that every scorer accepts them.
"""

import dataclasses
import json

import numpy as np
from PIL import Image

from pgjax.datasets import base, registry, writing

ROWS = 24
ANSWER = "yes"
# Columns whose content matters to an op or a scorer; others are made from their type.
TEXTS = {
  "answer": ANSWER, "label": "true", "answer_type": "other", "question_type": "presence",
  "language": "en", "hint": "N/A", "indexed_answer": "B",
  "indexed_choices": "(A) red, (B) blue, (C) green", "sentence": "the dog",
}  # fmt: skip
LISTS = {"choices": ["red", "blue", "green"]}
CHOICES = "multiple_choice_possible_answers"
NUMBERS = {
  "multiple_choice_correct_idx": 1, "answer": 1, "number": 3, "width": 48,
  "height": 40,
}  # fmt: skip


def write(data_sets, out, folder):
  """Prepares the data sets of these names, all parts and splits, below `out`.

  folder: where the pictures are made.
  """
  pictures = _pictures(folder)
  for name in data_sets:
    real = registry.find(name)

    def rows(raw, part, split, features=real.features):
      for i in range(ROWS):
        yield i, {key: _value(kind, key, i, pictures) for key, kind in features.items()}

    mock = dataclasses.replace(real, rows=rows, files=lambda part, split: [])
    for part in real.part_names():
      splits = list(real.counts(part))
      writing.prepare(mock, base.Raw(folder), out, part, splits, writing.Options(workers=2))


def _pictures(folder):
  folder.mkdir(parents=True, exist_ok=True)
  rng, made = np.random.default_rng(0), {}
  for ending in ("png", "jpeg"):
    picture = Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8))
    picture.save(path := folder / f"a.{ending}")
    made[ending] = base.File(str(path), "a mock row")
  mask = np.zeros((40, 48), np.uint8)
  mask[8:30, 10:40] = 255
  Image.fromarray(mask).convert("1").save(folder / "mask.png")
  made["mask"] = base.File(str(folder / "mask.png"), "a mock row")
  return made


def _value(kind, name, i, pictures):
  """A value of a declared feature."""
  if isinstance(kind, list):
    if isinstance(kind[0], str) and kind[0] != "str":
      return LISTS.get(name, [i, i + 1])
    if kind[0] is str:
      captions = name in ("captions", "texts", "summary")
      listed = [caption(i)] * 2 if captions else [ANSWER] * 10
      return LISTS.get(name, ["a", "b", "c", "d"] if name == CHOICES else listed)
    return [_value(kind[0], name, i, pictures) for _ in range(2)]
  if isinstance(kind, dict):
    text = {"text": caption(i)} if name == "captions" else {}
    return {key: text.get(key) or _value(v, key, i, pictures) for key, v in kind.items()}
  if isinstance(kind, base.Image):
    return pictures["mask" if name == "mask" else kind.encoding or "jpeg"]
  if isinstance(kind, base.Labels):
    return 0
  if isinstance(kind, base.Box):
    return _box()
  if isinstance(kind, base.Array):
    return np.zeros([2 if n is None else n for n in kind.shape], kind.dtype)
  if kind is str and name.startswith("caption/"):
    return caption(i)
  if kind is str:
    return TEXTS.get(name, f"{name.split('/')[-1]} {i}")
  number = i % 2 if name == "issimple" else NUMBERS.get(name, i)
  return np.dtype(kind).type(number)


def caption(i):
  """Another one for each image, so that CIDEr has something to weigh."""
  return f"dog{i} eats apple{i} on a bench{i}"


def _box():
  import tensorflow_datasets as tfds  # Takes seconds.

  return tfds.features.BBox(ymin=0.2, xmin=0.2, ymax=0.75, xmax=0.85)


def write_videos(folder, names, splits=("train", "valid", "test")):
  """For each name a folder of that name with a JSONL a split, and clips as folders of frames."""
  rng = np.random.default_rng(0)
  for name in names:
    for clip in range(ROWS):
      (place := folder / name / f"clip{clip}").mkdir(parents=True)
      for frame in range(2 + clip % 3):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(place / f"{frame}.jpg")
    lines = [
      dict(
        video=f"clip{i}", question="what is it?", answer=ANSWER, captions=[caption(i)], id=str(i)
      )
      for i in range(ROWS)
    ]
    for split in splits:
      text = "".join(json.dumps(line) + "\n" for line in lines)
      (folder / name / f"{split}.jsonl").write_text(text)


def write_pairs(folder):
  """A JSONL as MMVP's; returns its path."""
  folder.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (32, 24)).save(folder / "a.png")
  rows = [
    dict(image="a.png", question="is it open?", choices=["open", "closed"], answer="open",
         pair=i // 2, id=str(i)) for i in range(8)
  ]  # fmt: skip
  path = folder / "pairs.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path
