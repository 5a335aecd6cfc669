"""NLVR2 (arXiv:1811.00491) and MaRVL (arXiv:2109.13238): is a sentence true of two images?

  nlvr2: DIR/data/{train,dev,test1}.json
         DIR/images/train/N/train-*-img{0,1}.png   DIR/dev/dev-*.png   DIR/test1/test1-*.png
  marvl: DIR/marvl-annotations/marvl-LL.jsonl   DIR/marvl-images/LL/images/CONCEPT/*.jpg

Images of nlvr2 may also be in DIR/images/dev and DIR/images/test1, and those of train without the
numbered folders. The reference has no builder of either: features are what its config reads.
"""

import os
import unicodedata

import msgspec

from pgjax.datasets import base

_FEATURES = {
  "image_left": base.Image("png"),
  "image_right": base.Image("png"),
  "sentence": str,
  "label": str,  # "True" or "False".
  "example_id": str,
}
_LANGUAGES = {"id": 1_128, "sw": 1_108, "ta": 1_242, "tr": 1_180, "zh": 1_012}


class _Pair(msgspec.Struct):
  sentence: str
  label: str | bool
  identifier: base.Name
  directory: int | None = None  # Only of train: the folder of its images.


def _official(split: str) -> str:
  return "test1" if split == "test" else split


def _train_images(split: str) -> list[str]:
  return ["images/train/"] if split == "train" else []  # Those of dev and test have two places.


def _nlvr2_rows(raw: base.Raw, part: None, split: str):
  name, official = f"data/{_official(split)}.json", _official(split)
  folders = [
    folder for folder in (f"images/{official}", official) if (raw.folder / folder).is_dir()
  ]
  for number, row in raw.json_lines(name, _Pair):
    where = f"{name}, line {number}"
    stem, dash, sentence = row.identifier.rpartition("-")
    raw.check(bool(dash) and sentence.isdigit(), where, "identifier does not end in -0 or -1")
    left, right = (
      _image(raw, folders or [official], row.directory, f"{stem}-img{i}.png", where) for i in (0, 1)
    )
    yield row.identifier, _example(left, right, row.sentence, row.label, row.identifier, raw, where)


def _image(raw, folders, directory, name, where):
  """The image, in the first place that has it."""
  for folder in folders:
    for place in ([f"{folder}/{directory}"] if directory is not None else []) + [folder]:
      image = raw.image(place, name, where)
      if os.path.exists(image.path):
        return image
  return image  # What writes the rows reports that it does not exist.


class _Statement(msgspec.Struct):
  concept: base.Name
  language: str
  caption: str
  left_img: base.Name
  right_img: base.Name
  label: str | bool
  id: str


def _marvl_file(split: str) -> str:
  return f"marvl-annotations/marvl-{split.removeprefix('test_')}.jsonl"


def _marvl_rows(raw: base.Raw, part: None, split: str):
  name, folder = _marvl_file(split), f"marvl-images/{split.removeprefix('test_')}/images"
  for number, row in raw.json_lines(name, _Statement):
    where = f"{name}, line {number}"
    left, right = (
      _spelled(raw, folder, f"{row.concept}/{image}", where)
      for image in (row.left_img, row.right_img)
    )
    yield row.id, _example(left, right, row.caption, row.label, row.id, raw, where)


def _spelled(raw, folder, name, where):
  """The image; archives spell letters with accents in one or in two characters."""
  forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKD")]
  images = [raw.image(folder, form, where) for form in dict.fromkeys((name, *forms))]
  return next((image for image in images if os.path.exists(image.path)), images[0])


def _example(left, right, sentence, label, key, raw, where):
  text = str(label).capitalize()
  raw.check(text in ("True", "False"), where, f"label is {label!r:.20}, not true or false")
  return {
    "image_left": left,
    "image_right": right,
    "sentence": sentence,
    "label": text,
    "example_id": key,
  }


NLVR2 = base.DataSet(
  name="nlvr2",
  about="sentences that are true or false of two photographs",
  source="github.com/lil-lab/nlvr, folder nlvr2: data/, and a form for images/train/, dev/, test1/",
  features=_FEATURES,
  splits={"train": 86_373, "dev": 6_982, "test": 6_967},
  files=lambda part, split: [f"data/{_official(split)}.json", *_train_images(split)],
  rows=_nlvr2_rows,
)
MARVL = base.DataSet(
  name="marvl",
  about="as nlvr2, in five languages (MaRVL)",
  source="marvl-challenge.github.io (marvl-annotations, marvl-images)",
  features=_FEATURES,
  splits={f"test_{language}": n for language, n in _LANGUAGES.items()},
  files=lambda part, split: [
    _marvl_file(split),
    f"marvl-images/{split.removeprefix('test_')}/images/",
  ],
  rows=_marvl_rows,
)
DATA = [NLVR2, MARVL]
