"""How far has an evaluation come, should it be interrupted?

One file for each evaluator and process, a line for each batch whose answers have been read. Started
again with the same checkpoint, config and number of processes, an evaluation goes on after the last
batch that all of them have.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from pgjax.distributed import processes
from pgjax.errors import UserError
from pgjax.formats import typed_json

FOLDER = "unfinished"


class _Row(TypedDict):
  """What evals.run needs of each, whatever the score."""

  prompt: str
  scores: dict[str, tuple[float, float]]
  _sha256: str
  prediction: NotRequired[str]
  logp: NotRequired[float]
  nll: NotRequired[float]


class Journal:
  """The batches of one evaluator that this process has scored.

  Attributes:
    batches: their rows, in order.
  """

  def __init__(self, folder: pathlib.Path, name: str, fingerprint: Mapping[str, Any]):
    """`fingerprint` is what must be the same for a batch to be taken over."""
    process = f"{processes.process_index()}-of-{processes.process_count()}"
    self._path = folder / FOLDER / f"{name.replace('/', '_')}.{process}.jsonl"
    found = self._read(json.loads(json.dumps(fingerprint)))
    done = min(processes.gather_objects(len(found)))
    self.batches: list[list[dict[str, Any]]] = found[:done]
    self._path.parent.mkdir(exist_ok=True)
    with self._path.open("w") as file:
      for item in (fingerprint, *self.batches):
        file.write(json.dumps(item) + "\n")
    self._file = self._path.open("a")

  def add(self, rows: list[dict[str, Any]]) -> None:
    """One more batch; on disk when this returns, as far as the operating system is concerned."""
    self._file.write(json.dumps(rows) + "\n")
    self._file.flush()
    self.batches.append(rows)

  def close(self, *, finished: bool) -> None:
    """`finished`: the results are written, and the file goes away."""
    self._file.close()
    if finished:
      self._path.unlink()
      if not any(self._path.parent.iterdir()):
        self._path.parent.rmdir()

  def _read(self, fingerprint):
    """What an earlier start left; its last line may be cut off."""
    if not self._path.exists():
      return []
    first, *lines = self._path.read_bytes().splitlines() or [b""]
    found = []
    with contextlib.suppress(UserError):
      if typed_json.decode(first, dict[str, Any], self._path, nan=True) != fingerprint:
        return []
      for line in lines:
        rows = typed_json.decode(line, list[dict[str, Any]], self._path, nan=True)
        typed_json.check(rows, list[_Row], self._path)
        found.append(rows)
    return found
