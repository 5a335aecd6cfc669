"""Which checkpoints wait for an evaluation that runs beside the training?

`pgjax.evaluate --watch` leaves a small file in the workdir, WORKDIR/watchers/*.json, which says
where its results go and which steps have them. A run removes old checkpoints as it saves new ones,
but none that a watcher has not scored, so that no step is missed however slow the evaluation is, or
how long it was away. Deleting the file ends that.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterable

import msgspec

from pgjax.errors import UserError
from pgjax.formats import typed_json

FOLDER = "watchers"
MANY = 5  # Checkpoints that wait; more are worth a word.


class _Watcher(msgspec.Struct):
  scored: set[typed_json.Count]


def announce(workdir: pathlib.Path, out: pathlib.Path, scored: Iterable[int]) -> None:
  """Says which steps the results in `out` cover; written whole or not at all."""
  folder = workdir / FOLDER
  folder.mkdir(exist_ok=True)
  file = folder / f"{hashlib.sha256(str(out).encode()).hexdigest()[:12]}.json"
  fresh = file.with_suffix(".tmp")
  fresh.write_text(json.dumps(dict(out=str(out), scored=sorted(scored))) + "\n")
  fresh.replace(file)


def waiting(workdir: pathlib.Path, steps: Iterable[int]) -> dict[int, pathlib.Path]:
  """Those of the steps that a watcher has not scored, with its file."""
  found: dict[int, pathlib.Path] = {}
  for file in sorted((workdir / FOLDER).glob("*.json")):
    with contextlib.suppress(UserError):  # Not one of ours, or gone by now.
      scored = typed_json.read(file, _Watcher).scored
      found |= {step: file for step in steps if step not in scored}
  return found


def complaint(workdir: pathlib.Path, steps: Iterable[int]) -> str | None:
  """What the run says when many checkpoints pile up."""
  found = waiting(workdir, steps)
  if len(found) <= MANY:
    return None
  file = found[max(found)]
  return (
    f"{len(found)} checkpoints are kept for a pgjax.evaluate --watch that has not scored them; if"
    f" it will not come back, delete {file}."
  )
