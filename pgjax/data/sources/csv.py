"""Which examples are in a CSV or TSV file and its folder of images?"""

import os

from pgjax.data.sources import row_files, table
from pgjax.data.sources.columns import Columns


class Csv(table.Table):
  """One example a line below the names of the columns; all cells are texts.

  The separator is a comma, a semicolon or a tab, whichever the first line has most of. image,
  prefix, suffix, id: the columns with these, if their names differ; prompt: the prefix of all
  rows. file_name is an image, too.
  """

  def __init__(
    self,
    fname,
    root=None,
    split=None,
    start=None,
    stop=None,
    image=None,
    prefix=None,
    suffix=None,
    id=None,
    prompt=None,
    allow_urls=False,
  ):
    del split  # A file is its own split.
    file = row_files.RowFile(os.path.expanduser(fname), as_csv=True)
    super().__init__(
      file.fname,
      list(file)[start:stop],
      file.at,
      root=root or os.path.dirname(file.fname),
      columns=Columns(image, prefix, suffix, id, prompt),
      wanted="its first line names the columns, such as image,prefix,suffix",
      allow_urls=allow_urls,
    )
