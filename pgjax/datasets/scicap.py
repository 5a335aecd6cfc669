"""SciCap (arXiv:2110.11624): captions of figures in papers, in six parts.

  DIR/List-of-Files-for-Each-Experiments/SELECTION/{No,Yes}-Subfig/{train,val,test}/file_idx.json
  DIR/SciCap-Caption-All/{train,val,test}/*.json
  DIR/SciCap-{No,Yes}-Subfig-Img/{train,val,test}/*.png

with the SELECTION First-Sentence, Single-Sentence-Caption or Caption-No-More-Than-100-Tokens.
DIR is the folder scicap_data of the archive.
"""

import msgspec

from pgjax.datasets import base
from pgjax.formats import typed_json

_SELECTIONS = {
  "single_sentence": "Single-Sentence-Caption",
  "first_sentence": "First-Sentence",
  "leq_100_tokens": "Caption-No-More-Than-100-Tokens",
}


class _Caption(msgspec.Struct):
  caption: str


class _Normalized(msgspec.Struct):
  numbers: _Caption = msgspec.field(name="2-1-basic-num")
  equations: _Caption = msgspec.field(name="2-2-advanced-euqation-bracket")


class _Figure(msgspec.Struct):
  original: str = msgspec.field(name="0-originally-extracted")
  lowercase: _Caption = msgspec.field(name="1-lowercase-and-token-and-remove-figure-index")
  normalized: _Normalized = msgspec.field(name="2-normalized")


def _kind(part: str) -> str:
  """Without or with figures that have several panels: as folders call it."""
  return "Yes-Subfig" if part.endswith("yes") else "No-Subfig"


def _list(part: str, split: str) -> str:
  selection = _SELECTIONS[part.rpartition("_subfig_")[0]]
  return f"List-of-Files-for-Each-Experiments/{selection}/{_kind(part)}/{split}/file_idx.json"


def _images(part: str, split: str) -> str:
  return f"SciCap-{_kind(part)}-Img/{split}"


def _captions(split: str) -> str:
  return f"SciCap-Caption-All/{split}"


def _rows(raw: base.Raw, part: str, split: str):
  name = _list(part, split)
  for i, file_name in enumerate(raw.json(name, list[base.Name])):
    where = f"{name}, entry {i}"
    raw.check(file_name.endswith(".png"), where, f"{file_name!r} is not a .png")
    image_id = file_name.removesuffix(".png")
    captions = raw.image(_captions(split), f"{image_id}.json", where)
    figure = typed_json.read(captions.path, _Figure)
    yield (
      file_name,
      {
        "image/id": image_id,
        "image/filename": file_name,
        "image": raw.image(_images(part, split), file_name, where),
        "caption/originally_extracted": figure.original,
        "caption/lowercase_and_token_and_remove_figure_index": figure.lowercase.caption,
        "caption/normalized/basic_num": figure.normalized.numbers.caption,
        "caption/normalized/advanced_equation_bracket": figure.normalized.equations.caption,
      },
    )


_COUNTS = {
  "first_sentence_subfig_no": (106_834, 13_354, 13_355),
  "first_sentence_subfig_yes": (226_608, 28_326, 28_327),
  "single_sentence_subfig_no": (75_494, 9_242, 9_459),
  "single_sentence_subfig_yes": (123_698, 15_469, 15_531),
  "leq_100_tokens_subfig_no": (None, None, None),
  "leq_100_tokens_subfig_yes": (None, None, None),
}
DATA = base.DataSet(
  name="scicap",
  about="captions of figures in papers (SciCap)",
  source="github.com/tingyaohsu/SciCap, which links scicap_data.zip",
  features={
    "image/id": str,
    "image/filename": str,
    "image": base.Image("png"),
    "caption/originally_extracted": str,
    "caption/lowercase_and_token_and_remove_figure_index": str,
    "caption/normalized/basic_num": str,
    "caption/normalized/advanced_equation_bracket": str,
  },
  parts={
    part: dict(zip(("train", "val", "test"), counts, strict=True))
    for part, counts in _COUNTS.items()
  },
  files=lambda part, split: [
    _list(part, split),
    f"{_captions(split)}/",
    f"{_images(part, split)}/",
  ],
  rows=_rows,
)
