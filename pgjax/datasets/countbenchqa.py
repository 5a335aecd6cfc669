"""CountBenchQA (arXiv:2407.07726): how many? 490 of CountBench's images (arXiv:2302.12066).

The images are in CountBench's Parquet file on the Hugging Face hub, which lacks 10% of them; the
questions are in big_vision's repository, one for each row of that file.
"""

import functools
import io

import msgspec

from pgjax.datasets import base
from pgjax.errors import UserError

_QUESTIONS = "countbench_paired_questions.json"


class _Question(msgspec.Struct):
  question: str


class _Stored(msgspec.Struct):
  bytes: bytes | None


class _Row(msgspec.Struct):  # Rows without an image may lack more.
  image_url: str | None
  text: str | None
  number: base.Int32 | None
  image: _Stored | None


def _rows(raw: base.Raw, part: None, split: str):
  name = _parquet(raw)
  rows = _table(raw, name)
  questions = raw.json(_QUESTIONS, list[_Question])
  same = len(questions) == len(rows)
  raw.check(same, _QUESTIONS, f"{len(questions)} questions for the {len(rows)} rows of {name}")
  for i, (asked, row) in enumerate(zip(questions, rows, strict=True)):
    if row.image is None or not row.image.bytes or not _in_colour(row.image.bytes):
      continue
    yield (
      i,
      {
        "image": functools.partial(_to_png, row.image.bytes),
        "image_id": i,
        "question": asked.question,
        "text": row.text,
        "image_url": row.image_url,
        "number": row.number,
      },
    )


def _parquet(raw: base.Raw) -> str:
  names = raw.names(".", ".parquet")
  raw.check(len(names) == 1, "", f"{len(names)} files *.parquet, and one is needed: {names}")
  return names[0]


def _table(raw: base.Raw, name: str) -> list[_Row]:
  try:
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ImportError:
    raise UserError("Parquet files need pyarrow: pip install pyarrow.") from None
  path = raw.path(name)
  try:
    columns = ["image_url", "text", "number", "image"]
    return msgspec.convert(pq.read_table(path, columns=columns).to_pylist(), list[_Row])
  except (OSError, pa.ArrowException, msgspec.ValidationError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path} is not CountBench's Parquet file: {reason}.") from error


def _in_colour(data: bytes) -> bool:
  """The reference leaves out what Pillow reads with one channel: a single image."""
  import PIL.Image

  with PIL.Image.open(io.BytesIO(data)) as image:
    return len(image.getbands()) > 1


def _to_png(data: bytes) -> bytes:
  """The pixels that Pillow decodes, as the reference stores them."""
  import PIL.Image

  with PIL.Image.open(io.BytesIO(data)) as image:
    out = io.BytesIO()
    image.convert("RGB").save(out, format="PNG")
  return out.getvalue()


DATA = base.DataSet(
  name="countbenchqa",
  about="how many? Questions about CountBench's images",
  source=(
    "the data set nielsr/countbench on the Hugging Face hub (its Parquet file), and"
    f" big_vision/datasets/countbenchqa/data/{_QUESTIONS} of github.com/google-research/big_vision"
  ),
  version="1.2.0",
  features={
    "image": base.Image(),
    "image_id": "int32",
    "question": str,
    "text": str,
    "image_url": str,
    "number": "int32",
  },
  splits={"huggingface": 490},
  files=lambda part, split: ["*.parquet", _QUESTIONS],
  rows=_rows,
)
