"""Does a workdir belong to this run, and which of its settings have changed since?"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from pgjax import disk
from pgjax.checkpoints import workdir as workdir_lib
from pgjax.config import load as config_load

_ABSENT = object()


def identity_of(config: Any, tokenizer: Any, num_examples: int) -> dict[str, Any]:
  """Everything that must be equal for a resumed run to get the same batches."""
  section = config.input.to_dict()
  identity = {f"config.input.{name}": section[name] for name in ("pp", "batch_size")}
  identity["config.input.data"] = _without_folders(section["data"])
  identity |= {f"config.{name}": config[name] for name in ("seed", "res", "text_len", "num_frames")}
  return identity | {"the number of examples": num_examples, "the tokenizer": tokenizer.sha256}


def _without_folders(data: Any) -> Any:
  """Without the locations of files, which may have been moved."""
  if not isinstance(data, dict):
    return data
  fields = {k: _without_folders(v) for k, v in data.items() if k not in ("root", "data_dir")}
  if "fname" in fields:
    fields["fname"] = pathlib.PurePath(fields["fname"]).name
  return fields


def difference(
  ckpt: workdir_lib.Checkpoint, shapes: Mapping[str, workdir_lib.Shape], identity: Mapping[str, Any]
) -> str | None:
  """Why a checkpoint is another run's, or None.

  shapes: of this run's state; identity: what must not change between two starts, as JSON.
  """
  names = shapes.keys() | ckpt.shapes.keys()
  if different := sorted(name for name in names if shapes.get(name) != ckpt.shapes.get(name)):
    both = ckpt.shapes.get(different[0]), shapes.get(different[0])
    before, now = ("absent" if s is None else f"{s[0]}{s[1]}" for s in both)
    return (
      f"another model, or other trainable parts: {different[0]} is {before} in its checkpoint and"
      f" {now} in this config; {len(different)} arrays differ"
    )
  for name in sorted(ckpt.identity.keys() | identity.keys()):
    before, now = ckpt.identity.get(name), identity.get(name)
    if before != now:
      change = f"{name} was {_short(before)} there and is {_short(now)} in this config"
      return f"a run on other data: {change}"
  return None


def changes(saved: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
  """The fields of a saved config that this one changes, such as "lr was 0.1 and is 0.2".

  config: as JSON. Fields that the saved one lacks had their default, which preserves behaviour.
  """
  before, now = (config_load.from_dict(fields).to_dict() for fields in (saved, config))
  return list(_changed(*map(disk.plain, (before, now)), ""))


def _changed(before: Any, now: Any, name: str) -> Iterator[str]:
  if isinstance(before, dict) and isinstance(now, dict):
    for key in sorted(before.keys() | now.keys()):
      inner = f"{name}.{key}" if name else key
      yield from _changed(before.get(key, _ABSENT), now.get(key, _ABSENT), inner)
  elif before is _ABSENT:
    if now is not None:
      yield f"{name} is {_short(now)}, and was absent"
  elif now is _ABSENT:
    if before is not None:
      yield f"{name} was {_short(before)}, and is absent"
  elif before != now:
    yield f"{name} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 120 else text[:117] + "..."
