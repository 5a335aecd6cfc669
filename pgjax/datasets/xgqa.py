"""xGQA (arXiv:2109.06082): GQA's testdev questions in eight languages, on GQA's images.

The zero-shot test of each language is what is scored; the few-shot splits are prepared only if
--splits names them. Unlike big_vision's builder, dev_fs_LL reads dev.json, and not test.json.
"""

import msgspec

from pgjax.datasets import base

LANGUAGES = ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")
_SHOTS = (1, 5, 10, 20, 25, 48)  # Images to train on.


class _Question(msgspec.Struct):
  imageId: base.Name
  question: str
  answer: str


def _file(split: str) -> str:
  kind, shots, language = split.split("_")
  if shots == "zs":
    return f"annotations/zero_shot/testdev_balanced_questions_{language}.json"
  number = shots.removeprefix("fs")
  return f"annotations/few_shot/{language}/{f'{kind}_{number}' if number else kind}.json"


def _rows(raw: base.Raw, part: None, split: str):
  name, language = _file(split), split.rsplit("_", 1)[1]
  for key, row in raw.json(name, dict[str, _Question]).items():
    example_id = f"{key}_{language}"
    yield (
      example_id,
      {
        "example_id": example_id,
        "image/id": row.imageId,
        "image": raw.image("images", f"{row.imageId}.jpg", f"{name}, question {key!r}: imageId"),
        "question": row.question,
        "answer": row.answer,
      },
    )


DATA = base.DataSet(
  name="xgqa",
  about="GQA's questions in eight languages",
  source="github.com/e-bug/iglue (datasets/xGQA/annotations) and GQA's images.zip",
  features={
    "example_id": str,
    "image/id": str,
    "image": base.Image("jpeg"),
    "question": str,
    "answer": str,
  },
  splits={f"test_zs_{language}": 12_578 for language in LANGUAGES},
  extra_splits={
    f"{kind}_{language}": None
    for language in LANGUAGES
    for kind in ("test_fs", "dev_fs", *(f"train_fs{n}" for n in _SHOTS))
  },
  files=lambda part, split: ["images/", _file(split)],
  rows=_rows,
)
