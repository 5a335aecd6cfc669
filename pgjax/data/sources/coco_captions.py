"""Which examples are in a COCO file of captions?

dict(name="coco_captions", fname="captions_train2017.json", images="train2017", prompt="caption en")
yields for each image `captions` (all of them), image_id, file_name and id; where no image has more
than one caption, also `suffix`. Otherwise pp chooses: choice(inkey="captions", outkey="suffix"), or
each="caption" makes a row of every caption.
"""

import os
from typing import Any

import msgspec

from pgjax.data.sources import table
from pgjax.data.sources.columns import Columns
from pgjax.errors import UserError
from pgjax.formats import typed_json

_Id = int | str


class _Image(msgspec.Struct):
  id: _Id
  file_name: typed_json.Text


class _Caption(msgspec.Struct):
  image_id: _Id
  caption: str


class _Content(msgspec.Struct):
  images: list[_Image]
  annotations: list[_Caption]


class CocoCaptions(table.Table):
  """One example for each image with captions, in the order of the file, or for each caption.

  Images without captions are left out and counted.
  """

  def __init__(
    self, fname, images=None, split=None, prompt=None, each="image", start=None, stop=None
  ):
    del split  # A file is its own split.
    if each not in ("image", "caption"):
      raise UserError(f"data='coco_captions': each={each!r} must be 'image' or 'caption'.")
    fname = os.path.expanduser(fname)
    rows = _rows(fname, each)
    super().__init__(
      fname,
      [(number, row) for number, row in enumerate(rows) if row["captions"]][start:stop],
      lambda number: f"{fname}, image {rows[number]['image_id']}",
      root=images or os.path.dirname(fname),
      columns=Columns(prompt=prompt),
      wanted="its images have no captions",
    )
    if without := sum(not row["captions"] for row in rows):
      self.omitted = f"{without:,} of {len(rows):,} images, which have no caption"
      table.log.warning("%s: left out are %s.", fname, self.omitted)


def _rows(fname: str, each: str) -> list[dict[str, Any]]:
  content = typed_json.read(fname, _Content)
  rows: dict[str, dict[str, Any]] = {}
  for i, image in enumerate(content.images):
    row = dict(id=str(image.id), image_id=image.id, image=image.file_name,
               file_name=image.file_name, captions=[])  # fmt: skip
    if (other := rows.setdefault(str(image.id), row)) is not row:
      raise UserError(
        f"{fname}: $.images[{i}] ({image.file_name}) and an earlier image ({other['image']}) have"
        f" the same id {image.id!r}, so a caption cannot tell them apart; give each its own id."
      )
  for i, one in enumerate(content.annotations):
    if (row := rows.get(str(one.image_id))) is None:
      raise UserError(
        f"{fname}: $.annotations[{i}]: there is no image {one.image_id!r} among the"
        f" {len(rows)} images."
      )
    row["captions"].append(one.caption)
  if each == "caption":
    return [
      row | dict(id=f"{row['id']}#{k}", captions=[caption], suffix=caption)
      for row in rows.values()
      for k, caption in enumerate(row["captions"])
    ]
  if all(len(row["captions"]) < 2 for row in rows.values()):
    return [row | {"suffix": text} for row in rows.values() for text in (*row["captions"], "")[:1]]
  return list(rows.values())
