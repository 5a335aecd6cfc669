"""Which scores of ours does a folder have? Those of pgjax.evaluate, and of evaluators of a run.

Both write metrics.json; the config.json beside it, or in a folder above, says of which model.
"""

import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from pgjax.config import load as config_load
from pgjax.errors import UserError
from pgjax.formats import typed_json

MOST_FILES = 10_000
_MIX = re.compile(r"(^|[-_/])mix[-_]")
log = logging.getLogger("pgjax")


class Result(NamedTuple):
  """The scores of one model, as fractions."""

  folder: str
  size: str  # "v1", "3b", ..., "mix", or the variant of another model.
  res: int
  step: int
  scores: dict[str, float]  # By "evaluator/score".
  seconds: float  # When it was written.


class _Llm(msgspec.Struct):
  variant: str | None = None


class _Model(msgspec.Struct):
  llm: _Llm


class _Config(msgspec.Struct):
  res: Annotated[int, Meta(ge=1, le=2**20)]
  model: _Model
  model_init: Any = None


def read(folder: str) -> list[Result]:
  """All results below a folder; what cannot be read is logged and left out."""
  if not os.path.isdir(folder):
    raise UserError(
      f"--results={folder} is no folder; it is a workdir, the --out of pgjax.evaluate, or a folder"
      " of them."
    )
  root, by_config = pathlib.Path(folder), {}
  for path in _files(root):
    try:
      metrics = typed_json.read(path, dict[str, Any], nan=True)
      place = _config_folder(path.parent, root)
      if place is None:
        raise UserError(f"{path}: there is no config.json beside it or above.")
      by_config.setdefault(place, []).append((path, metrics))
    except UserError as error:
      log.warning("Left out: %s", error)
  made = [_result(place, files) for place, files in by_config.items()]
  return [result for result in made if result is not None]


def _files(root: pathlib.Path) -> Iterator[pathlib.Path]:
  count = 0
  for path, folders, files in os.walk(root):
    folders.sort()
    if "metrics.json" in files:
      count += 1
      if count > MOST_FILES:
        raise UserError(f"--results={root} has over {MOST_FILES:,} results; name a folder in it.")
      yield pathlib.Path(path, "metrics.json")


def _config_folder(folder: pathlib.Path, root: pathlib.Path) -> pathlib.Path | None:
  """The nearest folder with a config.json, not above the root."""
  for place in (folder, *folder.parents):
    if (place / "config.json").is_file():
      return place
    if place == root:
      return None
  return None


def _result(
  place: pathlib.Path, files: list[tuple[pathlib.Path, Mapping[str, Any]]]
) -> Result | None:
  """The merged scores of the files that share a config; the later file wins."""
  try:
    config = typed_json.read(place / "config.json", _Config)
  except UserError as error:
    log.warning("Left out: %s", error)
    return None
  scores, step, seconds, checkpoint = {}, 0, 0.0, ""
  for path, metrics in sorted(files, key=lambda file: file[0].stat().st_mtime):
    scores |= {
      name: float(value)
      for name, value in metrics.items()
      if "/" in name and type(value) in (int, float)
    }
    step = metrics["step"] if type(metrics.get("step")) is int else step
    checkpoint = str(metrics.get("checkpoint") or checkpoint)
    seconds = path.stat().st_mtime
  size = _size(config, checkpoint)
  return Result(str(place), size, config.res, step, scores, seconds)


def _size(config: _Config, checkpoint: str) -> str:
  """The config argument `size` of a model; a mix checkpoint is known by its name."""
  variant = config.model.llm.variant or "of its own"
  sizes = {name: size for size, name in config_load.shared("common").LLM.items()}
  size = sizes.get(variant, variant)
  return "mix" if size == "v1" and _MIX.search(checkpoint) else size
