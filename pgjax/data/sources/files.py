"""Which files are the images that a data set names? Only those below one folder.

A name that no file has is also looked for in the other spellings that label tools and other systems
write: backslashes, %20, file://, another case, another Unicode form of an accent.
"""

import collections
import difflib
import functools
import logging
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Iterator

from pgjax.data import signatures
from pgjax.errors import UserError
from pgjax.formats import input_files, typed_json

log = logging.getLogger("pgjax")

file_bytes = input_files.file_bytes
_URL = re.compile(r"(https?|ftps?|s3|gs|hf|data):", re.IGNORECASE)
_MAX_SUGGESTED = 20_000  # Names of a folder that are searched for a similar one.


def text(path: str, what: str, *, most: int = input_files.MAX_BYTES) -> str:
  """A text file in UTF-8; raises for another kind of file. what: "a list of images"."""
  data = file_bytes(path, most=most)
  if kind := signatures.of(data):
    raise UserError(f"{path} is {kind.name}, not {what}{kind.as_rows}.")
  content = typed_json.text(data, path)
  if "\0" in content:
    raise UserError(f"{path} has NUL characters, as UTF-16 text has; it must be UTF-8.")
  return content


def locate(
  root: str,
  named: Iterable[tuple[str, str]],
  source: str,
  *,
  field: str = "root",
  what: str = "image",
  read_as: list[str] | None = None,
) -> list[str]:
  """The path below `root` of each (name, start of the error), whether the file exists or not.

  A name in another spelling is replaced by the one file that matches it; the log counts them, and
  so does a sentence that is added to `read_as`. Raises for a name outside of `root`, for a URL, and
  if several files match.
  """
  folders = _Folders()
  paths, respelled = [], collections.Counter()
  example = ""
  for name, where in named:
    if (path := _exact(root, name, folders)) is None:
      path, how = _respelled(root, name, f"{where}: {what}", folders, field)
      if how:
        respelled[how] += 1
        example = example or f"{_shown(os.path.relpath(path, root))} for {_shown(name)}"
    paths.append(path)
  if respelled:
    kinds = ", ".join(f"{count:,} by {how}" for how, count in respelled.most_common())
    sentence = (
      f"{respelled.total():,} of {len(paths):,} {what}s have another name on the disk ({kinds}),"
      f" such as {example}; exactly one file matches each"
    )
    log.warning("%s: %s.", source, sentence)
    if read_as is not None:
      read_as.append(sentence)
  return paths


class _Folders:
  """The names in each folder, listed once."""

  def __init__(self):
    self.names: Callable[[str], frozenset[str]] = functools.cache(_listed)
    self._same: dict[tuple[str, Callable], dict[str, list[str]]] = {}

  def matches(self, folder: str, name: str, form: Callable[[str], str]) -> list[str]:
    """The names in the folder whose `form` is that of `name`; the name itself comes first."""
    if name in self.names(folder):
      return [name]
    if (folder, form) not in self._same:
      same = self._same[folder, form] = collections.defaultdict(list)
      for other in self.names(folder):
        same[form(other)].append(other)
    return self._same[folder, form].get(form(name), [])


def _listed(folder: str) -> frozenset[str]:
  return frozenset(input_files.names(folder))


def _exact(root: str, name: str, folders: _Folders) -> str | None:
  path = input_files.below(root, name)
  if path is None:
    return None
  folder, base = os.path.split(path)
  return path if base in folders.names(folder) else None


def _respelled(root, name, where, folders, field) -> tuple[str, str]:
  """(path, what differs), or (path of a missing file, "")."""
  if _URL.match(name):
    is_column = field == "root" and where.endswith("image")
    allow = ", or allow it with allow_urls=True in the entry of the data" if is_column else ""
    raise UserError(
      f"{where} {name[:80]!r} is a URL; nothing is downloaded: store it below {root} and write the"
      f" name of the file{allow}."
    )
  for spelling, how in _spellings(name):
    for form, form_how in ((str, ""), (_composed, "Unicode form"), (_folded, "case")):
      matching = _walk(root, spelling, folders, form)
      if len(matching) > 1:
        shown = ", ".join(_shown(os.path.relpath(path, root)) for path in sorted(matching)[:3])
        raise UserError(
          f"{where} {name!r} is not in {root}, and several files differ from it only in"
          f" their {form_how}: {shown}; write the name of one of them."
        )
      if matching:
        return matching[0], " and ".join(filter(None, (how, form_how)))
  before, _, what = where.rpartition(": ")
  return input_files.inside(root, name, before, field, what=what), ""


def _spellings(name: str) -> Iterator[tuple[str, str]]:
  """(name, what was changed) for each way to read it, the least changed first."""
  bare = re.sub("^file://(localhost(?=/))?", "", name, flags=re.IGNORECASE)
  scheme = "file://" if bare != name else ""
  unquoted = urllib.parse.unquote(bare)
  forms = [(bare, ""), (bare.replace("\\", "/"), "backslashes")]
  forms += [(unquoted, "%"), (unquoted.replace("\\", "/"), "% and backslashes")]
  seen = set()
  for form, how in forms:
    if form not in seen and "\0" not in form:
      seen.add(form)
      yield form, " and ".join(filter(None, (scheme, how)))


def _walk(root: str, name: str, folders: _Folders, form: Callable[[str], str]) -> list[str]:
  """The files below `root` whose path has the same `form` as `name`, folder by folder."""
  if (path := input_files.below(root, name)) is None:
    return []
  here = [root]
  for part in os.path.relpath(path, root).split(os.sep):
    here = [
      os.path.join(folder, match)
      for folder in here
      for match in folders.matches(folder, part, form)
    ]
  return here


def _shown(name: str) -> str:
  """In quotes; with escapes if it has accents, whose forms look alike."""
  return repr(name) if _composed(name) == unicodedata.normalize("NFD", name) else ascii(name)


def _composed(name: str) -> str:
  return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
  return _composed(_composed(name).casefold())


def present(paths: Iterable[str]) -> set[str]:
  """Those that exist; lists each folder only once."""
  folders = _Folders()
  return {path for path in paths if os.path.basename(path) in folders.names(os.path.dirname(path))}


def check_present(root: str, paths: Iterable[tuple[str, str]], *, what: str = "image") -> None:
  """Raises for the first missing (path, start of the error); lists each folder only once."""
  folders = _Folders()
  for path, where in paths:
    folder, name = os.path.split(path)
    if name not in (names := folders.names(folder)):
      near = difflib.get_close_matches(name, names, 1) if len(names) <= _MAX_SUGGESTED else []
      hint = (
        f" Did you mean {os.path.relpath(os.path.join(folder, near[0]), root)!r}?" if near else ""
      )
      raise UserError(f"{where}: {what} {os.path.relpath(path, root)!r} is not in {root}.{hint}")
