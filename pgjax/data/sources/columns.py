"""Which columns of a row are its image, prefix, suffix and id?

Those of these names, unless a config maps others: dict(name="csv", ..., image="file",
suffix="answer").
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pgjax.errors import UserError, cut

log = logging.getLogger("pgjax")

_MAPPED = ("image", "prefix", "suffix", "id")
_TEXTS = ("fname", "root", "images")


class Columns(NamedTuple):
  """The column of each meaning; None: the one of that name, if any."""

  image: str | None = None
  prefix: str | None = None
  suffix: str | None = None
  id: str | None = None
  prompt: str | None = None  # Not a column: the prefix of all rows.

  def applied(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row with its mapped columns under both names; whole numbers as texts become text."""
    mapped = dict(row)
    for name in _MAPPED:
      if (column := getattr(self, name)) is None:
        continue
      if column not in row:
        names = cut(", ".join(map(repr, row)))
        raise UserError(f"{where}: there is no column {column!r} ({name}=); it has {names}.")
      mapped[name] = row[column] if name in ("image", "id") else as_text(row[column])
    return mapped if self.prompt is None else mapped | {"prefix": self.prompt}


def as_text(value: Any) -> Any:
  """The text of a whole number, and the only text of a list; all else unchanged."""
  if isinstance(value, list | tuple) and len(value) == 1:
    value = value[0]
  is_number = isinstance(value, int) and not isinstance(value, bool)
  return str(value) if is_number else value


def unused_split(name: str, split: Any, fname: Any) -> list[str]:
  """A note, which is logged, that `split` chooses nothing, unless the file's name has it."""
  if not split or str(split) in str(fname):
    return []
  note = f"split={split!r} chooses nothing: all of {fname} is read"
  log.warning("data='%s': %s.", name, note)
  return [note]


def check_fields(make: Callable, name: str, fields: Mapping[str, Any]) -> None:
  """Raises unless a source takes these fields."""
  try:
    inspect.signature(make).bind(**fields)
  except TypeError as error:
    known = ", ".join(key for key in inspect.signature(make).parameters if key != "name")
    raise UserError(f"data='{name}': {error}; its fields are {known}.") from None
  for key in ("start", "stop"):
    value = fields.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
      raise UserError(
        f"data='{name}': {key}={cut(repr(value))} must be the number of a row, or None."
      )
  for key in _TEXTS:
    value = fields.get(key)
    required = key == "fname" and key in fields
    if value is None and not required:
      continue
    if not isinstance(value, str) or "\0" in value or (required and not value):
      raise UserError(
        f"data='{name}': {key}={cut(repr(value))} must be the name of a file or folder."
      )
