"""Where does an interrupted evaluation resume?

Each evaluator and process has a file with a line for each scored batch. A restart with the same
checkpoint, config and number of processes resumes after the last batch that all processes have.
"""

import contextlib
import json
import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from pgjax import disk
from pgjax.distributed import processes
from pgjax.errors import UserError
from pgjax.formats import typed_json

FOLDER = "unfinished"


class _Row(TypedDict):
  """What evaluator.run needs of each row, whatever the score."""

  prompt: str
  scores: dict[str, tuple[float, float]]
  _sha256: str
  _index: NotRequired[int]
  prediction: NotRequired[str]
  logp: NotRequired[float]
  nll: NotRequired[float]


class Journal:
  """The batches of one evaluator that this process has scored; `batches` are their rows."""

  def __init__(self, folder: pathlib.Path, name: str, fingerprint: Mapping[str, Any]):
    """Batches of an earlier run are reused if their `fingerprint` is the same."""
    process = f"{processes.process_index()}-of-{processes.process_count()}"
    plain = urllib.parse.quote(name, safe=" ")  # Another for each evaluator.
    self._path = disk.inside(folder / FOLDER, f"{plain}.{process}.jsonl", "The evaluator")
    earlier = self._read(disk.plain(fingerprint))
    common = min(processes.gather_objects(len(earlier)))
    self.batches: list[list[dict[str, Any]]] = earlier[:common]
    with disk.disk_errors(self._path):
      self._path.parent.mkdir(exist_ok=True)
      self._file = self._path.open("w")
      self._write(fingerprint, *self.batches)

  def add(self, rows: list[dict[str, Any]]) -> None:
    """Appends a batch and passes it to the operating system."""
    self._write(rows)
    self.batches.append(rows)

  def close(self, *, finished: bool) -> None:
    """`finished`: the results are written, so the file is deleted."""
    with contextlib.suppress(OSError):  # A full disk, which has been reported.
      self._file.close()
    if finished:
      self._path.unlink()
      if not any(self._path.parent.iterdir()):
        self._path.parent.rmdir()

  def _write(self, *items: Any) -> None:
    with disk.disk_errors(self._path):
      self._file.writelines(json.dumps(item) + "\n" for item in items)
      self._file.flush()

  def _read(self, fingerprint):
    """The batches of an earlier run, whose last line may be truncated."""
    if not self._path.exists():
      return []
    first, *lines = self._path.read_bytes().splitlines() or [b""]
    batches = []
    with contextlib.suppress(UserError):
      if typed_json.decode(first, dict[str, Any], self._path, nan=True) != fingerprint:
        return []
      for line in lines:
        rows = typed_json.decode(line, list[dict[str, Any]], self._path, nan=True)
        typed_json.check(rows, list[_Row], self._path)
        batches.append(rows)
    return batches
