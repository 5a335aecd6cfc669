"""Which examples are in a JSONL file, or a JSON list, and its folder of images?"""

import os
from collections.abc import Mapping

from pgjax.data.sources import row_files, table
from pgjax.data.sources.columns import Columns


class Jsonl(table.Table):
  """One JSON object a line; `image` is a file or a list of them; `start` and `stop` select rows.

  A JSON list of such objects is read too, and rows of other programs with one meaning
  (foreign_rows.py). image, prefix, suffix, id: the columns with these, if their names differ;
  prompt: the prefix of all rows.
  """

  def __init__(
    self,
    fname,
    root=None,
    fopen_keys=None,
    split=None,
    start=None,
    stop=None,
    image=None,
    prefix=None,
    suffix=None,
    id=None,
    prompt=None,
    allow_urls=False,
    multi_turn="refuse",
  ):
    del split  # big_vision's configs may have one; a file is its own split.
    if isinstance(fopen_keys, Mapping):  # big_vision's name for root.
      root = fopen_keys["image"]
    file = row_files.RowFile(os.path.expanduser(fname))
    super().__init__(
      file.fname,
      list(file)[start:stop],
      file.at,
      root=root or os.path.dirname(file.fname),
      columns=Columns(image, prefix, suffix, id, prompt),
      wanted=row_files.WANTED,
      allow_urls=allow_urls,
      multi_turn=multi_turn,
    )
