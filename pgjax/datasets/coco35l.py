"""COCO-35L and Crossmodal-3600 (arXiv:2205.12522): captions in 35 and 36 languages.

  coco35l: DIR/coco_mt_{train,dev}.jsonl   DIR/dataset_coco.json   DIR/train2014/   DIR/val2014/
  xm3600:  DIR/captions.jsonl   DIR/images/*.jpg

A split is one language, such as train_de, dev_de, and de of xm3600. COCO-35L's captions are
translated from English, so that English is the source of one language's rows. coco35l stores each
image once a language: all 35 need about 700 GB, --splits=train_en,dev_en about 20 GB.
"""

import msgspec

from pgjax.datasets import base, karpathy
from pgjax.datasets.dropped import Dropped

LANGUAGES = (
  *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr"),
  *("hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "ro", "ru", "sv", "sw", "te"),
  *("th", "tr", "uk", "vi", "zh"),
)
XM3600_LANGUAGES = tuple(sorted((*LANGUAGES, "quz")))
_SOURCE_OF_ENGLISH = "de"  # As the reference takes them: every language has all captions.


class _Translation(msgspec.Struct):
  image_id: str
  trg_lang: str
  caption_tokenized: str
  translation_tokenized: str


def _translations(split: str) -> str:
  return f"coco_mt_{split.split('_')[0]}.jsonl"


def _coco35l_rows(raw: base.Raw, part: None, split: str):
  name, language = _translations(split), split.split("_")[1]
  english = language == "en"
  wanted = _SOURCE_OF_ENGLISH if english else language
  images = {image.cocoid: image for image in karpathy.images(raw)}
  captions: dict[int, list[str]] = {}
  for number, row in raw.json_lines(name, _Translation, only=f'"{wanted}"'.encode()):
    if row.trg_lang != wanted:
      continue
    digits = row.image_id.split("_")[0]
    raw.check(digits.isascii() and digits.isdigit(), f"{name}, line {number}", "image_id has no id")
    text = row.caption_tokenized if english else row.translation_tokenized
    captions.setdefault(int(digits), []).append(text)
  with Dropped(COCO35L.name, part, split) as dropped:
    for image_id, texts in captions.items():
      key = f"{image_id}_{language}"
      if image_id not in images:
        dropped.add(f"images that {karpathy.FILE} does not have", key)
        continue
      image = karpathy.file(raw, images[image_id])
      yield key, {"image/id": key, "image": image, "captions": texts, "language": language}


class _Captions(msgspec.Struct):
  caption: list[str]
  tokenized: list[str] = msgspec.field(name="caption/tokenized")


def _xm3600_rows(raw: base.Raw, part: None, split: str):
  name = "captions.jsonl"
  kind = msgspec.defstruct(
    "_Image",
    [
      ("key", base.Name, msgspec.field(name="image/key")),
      ("captions", _Captions | None, msgspec.field(name=split, default=None)),
    ],
  )
  with Dropped(XM3600.name, part, split) as dropped:
    for number, row in raw.json_lines(name, kind):
      key = f"{row.key}_{split}"
      if row.captions is None or not row.captions.caption:
        dropped.add(f"images without a caption in '{split}'", row.key)
        continue
      image = raw.image("images", f"{row.key}.jpg", f"{name}, line {number}: image/key")
      yield (
        key,
        {
          "image/id": key,
          "image": image,
          "captions": row.captions.caption,
          "captions/tokenized": row.captions.tokenized,
          "language": split,
        },
      )


COCO35L = base.DataSet(
  name="coco35l",
  about="COCO captions in 35 languages (COCO-35L)",
  source=f"google.github.io/crossmodal-3600 (coco_mt_*.jsonl.bz2, unpacked) and {karpathy.SOURCE}",
  features={"image/id": str, "image": base.Image("jpeg"), "captions": [str], "language": str},
  splits={f"{split}_{language}": None for language in LANGUAGES for split in ("train", "dev")},
  files=lambda part, split: [
    _translations(split),
    karpathy.FILE,
    *(f"{folder}/" for folder in karpathy.IMAGES),
  ],
  rows=_coco35l_rows,
)
XM3600 = base.DataSet(
  name="xm3600",
  about="captions in 36 languages (Crossmodal-3600)",
  source="google.github.io/crossmodal-3600 (captions.zip and images.tgz)",
  features={
    "image/id": str,
    "image": base.Image("jpeg"),
    "captions": [str],
    "captions/tokenized": [str],
    "language": str,
  },
  splits=dict.fromkeys(XM3600_LANGUAGES, 3_600),
  files=lambda part, split: ["captions.jsonl", "images/"],
  rows=_xm3600_rows,
  version="1.0.1",
)
DATA = [COCO35L, XM3600]
