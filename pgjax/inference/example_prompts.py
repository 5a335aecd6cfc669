"""Which prompts suit a checkpoint? Those that its run was scored on, so that a user can try them.

They come from the predictions in the run's workdir, else from the data of its evaluators; a
checkpoint with neither gets the general tasks of PaliGemma's pre-training.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from pgjax.checkpoints import workdir as workdir_lib
from pgjax.data import loader as loader_lib
from pgjax.data.loader import Layout
from pgjax.data.sources import registry
from pgjax.errors import UserError
from pgjax.inference.engine import OpenCheckpoint

GENERAL = ("caption en", "answer en what is this?", "detect cat ; dog", "segment cat", "ocr")
MOST = 5
_MOST_LENGTH = 200
_READ_BYTES = 1 << 18  # Of predictions.jsonl.
_ROWS = 400


def of(opened: OpenCheckpoint) -> list[str]:
  """Up to MOST different prompts."""
  decoding = {n: e for n, e in opened.config.evals.items() if e["type"] != "perplexity"}
  for found in (_predicted(opened, decoding), _of_data(opened, decoding)):
    if prompts := _different(found):
      return prompts
  return list(GENERAL)


def _different(prompts: Iterable[str]) -> list[str]:
  """The first ones of different lengths in words, then others."""
  distinct = dict.fromkeys(
    prompt for prompt in prompts if 0 < len(prompt.strip()) <= _MOST_LENGTH and prompt.isprintable()
  )
  by_length: dict[int, str] = {}
  for prompt in distinct:
    by_length.setdefault(len(prompt.split()), prompt)
  return list(dict.fromkeys([*by_length.values(), *distinct]))[:MOST]


def _predicted(opened: OpenCheckpoint, decoding: dict[str, Any]) -> Iterator[str]:
  run = opened.source.run
  if run is None or run.path.parent.name != workdir_lib.FOLDER:
    return
  for name in decoding:
    path = run.path.parents[1] / "evals" / name / "predictions.jsonl"
    with contextlib.suppress(OSError, ValueError):
      yield from _prompts_in(path)


def _prompts_in(path: pathlib.Path) -> list[str]:
  if not path.is_file():
    return []
  with path.open("rb") as file:
    lines = file.read(_READ_BYTES).split(b"\n")[:-1]
  rows = (json.loads(line) for line in lines[:_ROWS])
  return [row["prompt"] for row in rows if isinstance(row, dict) and isinstance(row["prompt"], str)]


def _of_data(opened: OpenCheckpoint, decoding: dict[str, Any]) -> Iterator[str]:
  """The prompts of the first evaluator whose data is here; no image is read."""
  config = opened.config
  layout = Layout(config.res, config.text_len, config.num_frames, for_training=False)
  for name, entry in decoding.items():
    try:
      source = registry.open(entry["data"], check_images=False)
      part = loader_lib.Part(name, source, 1.0)
      loader = loader_lib.Loader(part, entry["pp"], opened.tokenizer, layout, 0)
      total = len(source)
      for row in range(min(total, _ROWS)):
        yield loader.texts(row * total // min(total, _ROWS))[0].get("prefix", "")
    except (UserError, OSError, ImportError, KeyError, ValueError):  # The data is elsewhere.
      continue
