"""What is in a workdir, and is it whole? Everything about a checkpoint but its arrays.

A workdir holds `checkpoints/STEP/`, written in the background and renamed into place when complete:

  params/         the parameters, nested as the model has them (Orbax)
  optimizer/      the step counter and the optimizer's state, one array per name (Orbax)
  run.json        the whole config, the position in the data, shapes and checksums of all arrays
  tokenizer.model a copy of the tokenizer file; its SHA-256 is in run.json
  files.json      the size of each file, so that a truncated or missing one is found before reading

so that a step folder describes itself. saver.py writes and reads the arrays.
"""

import hashlib
import json
import pathlib
import shutil
from typing import Any, NamedTuple

from pgjax import disk
from pgjax.errors import UserError

FOLDER = "checkpoints"
DAMAGED = "damaged"  # Step folders that could not be read are moved here, not deleted.
FORMAT = 1


class Checkpoint(NamedTuple):
  """One readable step folder."""

  path: pathlib.Path
  step: int
  config: dict[str, Any]
  tokenizer: str | None  # Path of the copied file; None only where weights came without one.
  identity: dict[str, Any]  # What must not change between two starts: the data and its order.
  position: dict[str, Any]  # In the data.
  shapes: dict[str, list]  # {"params/llm/...": ["float32", [4, 8]]}
  sums: dict[str, int]


class DamagedError(Exception):
  """A step folder is not what was written; the message says which file or array."""


def steps(workdir: str | pathlib.Path) -> list[int]:
  """The complete checkpoints of a workdir, oldest first."""
  folder = pathlib.Path(workdir) / FOLDER
  if not folder.is_dir():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def find(ckpt: str, step: int | None = None) -> Checkpoint:
  """A workdir of pgjax.train (its newest step, or `step`) or one of its step folders."""
  path = pathlib.Path(ckpt).expanduser().absolute()
  if not path.exists():
    raise UserError(f"There is no checkpoint at {ckpt}: no such file or folder.")
  if not (path / "run.json").is_file():  # A workdir, then.
    available = steps(path)
    if not available:
      raise UserError(f"{ckpt} holds no complete checkpoint: neither a workdir nor a step folder.")
    if step is not None and step not in available:
      raise UserError(f"{ckpt} has no checkpoint of step {step}; there are {available}.")
    path = path / FOLDER / str(available[-1] if step is None else step)
  elif step is not None and path.name != str(step):
    raise UserError(f"{ckpt} is the folder of one step, so --step={step} cannot be chosen there.")
  try:
    return read(path)
  except DamagedError as error:
    raise UserError(f"The checkpoint {path} is damaged: {error}. Choose another --step.") from error


def read(path: pathlib.Path) -> Checkpoint:
  """Reads what is beside the arrays, after comparing all files with what was written."""
  try:
    for name, size in json.loads((path / "files.json").read_text()).items():
      actual = (path / name).stat().st_size
      if actual != size:
        raise DamagedError(f"{name} has {actual:,} bytes instead of {size:,}")
    run = json.loads((path / "run.json").read_text())
    tokenizer = path / "tokenizer.model" if run["tokenizer_sha256"] else None
    if tokenizer and hashlib.sha256(tokenizer.read_bytes()).hexdigest() != run["tokenizer_sha256"]:
      raise DamagedError("tokenizer.model is not the file that was saved")
    if run["format"] != FORMAT:
      raise UserError(f"{path} has format {run['format']}; this version of pgjax reads {FORMAT}.")
    fields = [run[name] for name in ("identity", "position", "shapes", "sums")]
    return Checkpoint(path, run["step"], run["config"], tokenizer and str(tokenizer), *fields)
  except FileNotFoundError as error:
    raise DamagedError(f"{_relative(error.filename, path)} is missing") from error
  except (OSError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
    raise DamagedError(f"{type(error).__name__}: {error}") from error


def add_files(folder: pathlib.Path, run: dict[str, Any], tokenizer: bytes | None) -> None:
  """Puts beside the arrays, in a folder not yet in place, what `read` wants to find."""
  digest = None
  if tokenizer is not None:
    (folder / "tokenizer.model").write_bytes(tokenizer)
    digest = hashlib.sha256(tokenizer).hexdigest()
  run = dict(format=FORMAT, **run, tokenizer_sha256=digest)
  (folder / "run.json").write_text(disk.dumps(run))
  files = [*folder.glob("*/**/*"), folder / "run.json"]  # Orbax still writes notes at the top.
  sizes = {_relative(p, folder): p.stat().st_size for p in files if p.is_file()}
  (folder / "files.json").write_text(disk.dumps(sizes))


def best_value(path: pathlib.Path) -> float | None:
  """The metric that a step was saved with, if it was evaluated."""
  try:
    return json.loads((path / "run.json").read_text())["best_value"]
  except (OSError, ValueError, KeyError):
    return None


def set_aside(path: pathlib.Path) -> pathlib.Path:
  """Moves a damaged step out of the way, to where a person can look at it."""
  target = path.parent.parent / DAMAGED / path.name
  target.parent.mkdir(exist_ok=True)
  shutil.rmtree(target, ignore_errors=True)
  return path.rename(target)


def _relative(path: str | pathlib.Path, folder: pathlib.Path) -> str:
  return pathlib.Path(path).relative_to(folder).as_posix()
