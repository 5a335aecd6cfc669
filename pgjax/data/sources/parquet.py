"""Which examples are in Parquet files?

dict(name="parquet", fname="data/train.parquet", image="image", prefix="question", suffix="answer").
`fname` is a file, a pattern such as "data/train-*.parquet", or a folder; with `split`, its files
whose names begin with the split. An image is bytes, {"bytes", "path"}, or the name of a file.
"""

import glob
import os
import re

from pgjax.data.sources import arrow_rows, lazy_table
from pgjax.data.sources.columns import Columns, unused_split
from pgjax.errors import UserError
from pgjax.formats import input_files


class Parquet(lazy_table.LazyTable):
  """One example a row. image, prefix, suffix, id: the columns with these; prompt: all prefixes."""

  def __init__(
    self,
    fname,
    split=None,
    root=None,
    start=None,
    stop=None,
    image=None,
    prefix=None,
    suffix=None,
    id=None,
    prompt=None,
    allow_urls=False,
  ):
    fname = os.path.expanduser(fname)
    paths = parquet_files(fname, split)
    super().__init__(
      fname,
      arrow_rows.of_parquet(paths),
      root=root or os.path.dirname(paths[0]),
      columns=Columns(image, prefix, suffix, id, prompt),
      start=start,
      stop=stop,
      allow_urls=allow_urls,
    )


def _splits(names: list[str]) -> list[str]:
  """The splits that names begin with, such as train-00000-of-00002.parquet."""
  found = (re.match(r"(train|validation|valid|val|dev|test)[-.]", name) for name in names)
  return sorted({match[1] for match in found if match})


def parquet_files(fname: str, split: str | None = None) -> list[str]:
  """The files of a name, a pattern or a folder, in order; raises if there are none."""
  if input_files.is_folder(fname):
    inner = os.path.join(fname, "data")  # As in repositories of the hub.
    names = [n for n in sorted(input_files.names(fname)) if n.endswith(".parquet")]
    if not names and input_files.is_folder(inner):
      return parquet_files(inner, split)
    if split is None and len(found := _splits(names)) > 1:
      raise UserError(
        f"{fname} has Parquet files of several splits, {', '.join(found)}: choose one with split=."
      )
    chosen = [n for n in names if split is None or n.startswith((f"{split}-", f"{split}."))]
    paths = [os.path.join(fname, name) for name in chosen]
    if names and not paths:
      raise UserError(f"{fname} has no Parquet file of split {split!r}; it has {names[:5]}.")
  else:
    unused_split("parquet", split, fname)
    paths = [fname]
  if glob.has_magic(fname) and not input_files.exists(fname):
    paths = input_files.matching(fname)
  if not paths:
    raise UserError(f"{fname} has no Parquet files.")
  return paths
