"""MMVP (arXiv:2401.06209): 150 pairs of photos that CLIP cannot tell apart, with one question each.

DIR/Questions.csv (Index, Question, Options, Correct Answer)   DIR/MMVP Images/{1,2,...}.jpg

Rows 1 and 2 are a pair, 3 and 4, and so on. Options are "(a) Open (b) Closed", the answer is "(a)".
"""

import re

from pgjax.datasets import base, tables

_FILE, _IMAGES = "Questions.csv", "MMVP Images"
_COLUMNS = ("Index", "Question", "Options", "Correct Answer")
_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)")


def _rows(raw: base.Raw, part: None, split: str):
  for line, row in tables.rows(raw, _FILE, _COLUMNS):
    where = f"{_FILE}, line {line}"
    index = tables.whole_number(raw, row["Index"].strip(), f"{where}: Index")
    options = dict(_OPTION.findall(row["Options"]))
    letter = row["Correct Answer"].strip().strip("()").lower()
    raw.check(
      len(options) > 1, where, f"Options has no choices such as (a) and (b): {row['Options']!r:.80}"
    )
    raw.check(
      letter in options, where, f"Correct Answer {letter!r:.20} is none of {', '.join(options)}"
    )
    yield (
      index,
      {
        "image": raw.image(_IMAGES, f"{index}.jpg", where),
        "question": row["Question"].strip(),
        "choices": list(options.values()),
        "answer": options[letter],
        "pair": (index - 1) // 2,
        "question_id": index,
      },
    )


DATA = base.DataSet(
  name="mmvp",
  about="pairs of photos that CLIP cannot tell apart (MMVP)",
  source="huggingface.co/datasets/MMVP/MMVP",
  features={
    "image": base.Image("jpeg"), "question": str, "choices": [str], "answer": str, "pair": "int32",
    "question_id": "int32",
  },
  splits={"test": 300},
  files=lambda part, split: [_FILE, f"{_IMAGES}/"],
  rows=_rows,
)  # fmt: skip
