"""Which checkpoints must not be deleted yet, because an evaluation beside the run needs them?

`pgjax.evaluate --watch` lists the steps that it has scored in WORKDIR/watchers/*.json. A run does
not remove checkpoints that a watcher has not scored. Deleting the file ends that.
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
MANY = 5  # More unscored checkpoints than this cause a warning.


class _Watcher(msgspec.Struct):
  scored: set[typed_json.Count]


def announce(workdir: pathlib.Path, out: pathlib.Path, scored: Iterable[int]) -> pathlib.Path:
  """Writes which steps the results in `out` cover, atomically; returns the file."""
  folder = workdir / FOLDER
  folder.mkdir(exist_ok=True)
  file = folder / f"{hashlib.sha256(str(out).encode()).hexdigest()[:12]}.json"
  partial = file.with_suffix(".tmp")
  partial.write_text(json.dumps(dict(out=str(out), scored=sorted(scored))) + "\n")
  partial.replace(file)
  return file


def waiting(workdir: pathlib.Path, steps: Iterable[int]) -> dict[int, pathlib.Path]:
  """{step that a watcher has not scored: the watcher's file}."""
  unscored: dict[int, pathlib.Path] = {}
  for file in sorted((workdir / FOLDER).glob("*.json")):
    with contextlib.suppress(UserError):  # Not one of ours, or deleted by now.
      scored = typed_json.read(file, _Watcher).scored
      unscored |= {step: file for step in steps if step not in scored}
  return unscored


def warning(workdir: pathlib.Path, steps: Iterable[int]) -> str | None:
  """A warning if many checkpoints wait for a watcher."""
  unscored = waiting(workdir, steps)
  if len(unscored) <= MANY:
    return None
  return (
    f"{len(unscored)} checkpoints wait for a pgjax.evaluate --watch that has not scored them; if it"
    f" will not come back, delete {unscored[max(unscored)]}."
  )
