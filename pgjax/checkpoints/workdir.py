"""What is in a workdir, and is it undamaged? Everything about a checkpoint but its arrays.

A workdir has folders `checkpoints/STEP/`, renamed into place when complete:

  params/         the parameters, nested as in the model (Orbax; saver.py)
  optimizer/      the step counter and the optimizer's state, one array per name (Orbax)
  ema/            EMA weights, if config.ema_decay is set (Orbax)
  run.json        the whole config, the position in the data, shapes and checksums of all arrays
  tokenizer.model a copy of the tokenizer file; its SHA-256 is in run.json
  files.json      the size of each file, to detect truncated or missing ones before reading
"""

import hashlib
import pathlib
import shutil
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec

from pgjax import disk
from pgjax.errors import UserError
from pgjax.formats import typed_json
from pgjax.formats.typed_json import Count, Text

FOLDER = "checkpoints"
DAMAGED = "damaged"  # Damaged step folders are moved here, not deleted.
FORMAT = 1
Dtype = Literal[
  "bool", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
  "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip
Shape = tuple[Dtype, list[Annotated[int, msgspec.Meta(ge=0, le=2**40)]]]


class Position(TypedDict):
  """A run's position in its data."""

  step: Count
  total_steps: Count
  evaluated: bool
  seed: NotRequired[Count]
  examples: NotRequired[Count]


class _Run(msgspec.Struct):
  """run.json."""

  step: Count
  config: dict[str, Any]  # Checked by config.load.check_saved where it is used.
  tokenizer_sha256: str | None
  identity: dict[str, Any]
  position: Position
  shapes: dict[str, Shape]
  sums: dict[str, Annotated[int, msgspec.Meta(ge=0, lt=2**32)]]
  best_value: float | None = None


class _Format(msgspec.Struct):
  format: Count


class Checkpoint(NamedTuple):
  """One readable step folder."""

  path: pathlib.Path
  step: int
  config: dict[str, Any]
  tokenizer: str | None  # Path of the copied file; None if converted weights had none.
  identity: dict[str, Any]  # Must not change between two starts: the data and its order.
  position: Position
  shapes: dict[str, Shape]  # {"params/llm/...": ("float32", [4, 8])}
  sums: dict[str, int]


class DamagedError(Exception):
  """A step folder has changed since it was written; the message names the file or array."""


def steps(workdir: str | pathlib.Path) -> list[int]:
  """The complete checkpoints of a workdir, oldest first."""
  folder = pathlib.Path(workdir) / FOLDER
  if not folder.is_dir():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def find(ckpt: str, step: int | None = None) -> Checkpoint:
  """Opens a workdir of pgjax.train (its newest step, or `step`) or one of its step folders."""
  path = pathlib.Path(ckpt).expanduser().absolute()
  if not path.exists():
    raise UserError(f"There is no checkpoint at {ckpt}: no such file or folder.")
  if not (path / "run.json").is_file():  # A workdir, then.
    available = steps(path)
    if not available:
      raise UserError(f"{ckpt} has no complete checkpoint: neither a workdir nor a step folder.")
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
  """Reads the files beside the arrays, and compares the sizes of all files."""
  try:
    sizes = typed_json.read(path / "files.json", dict[Text, Count], DamagedError)
    for name, size in sizes.items():
      actual = (path / name).stat().st_size
      if actual != size:
        raise DamagedError(f"{name} has {actual:,} bytes instead of {size:,} (files.json)")
    run = _run_of(path)
    tokenizer = path / "tokenizer.model" if run.tokenizer_sha256 else None
    if tokenizer and hashlib.sha256(tokenizer.read_bytes()).hexdigest() != run.tokenizer_sha256:
      raise DamagedError("tokenizer.model is not the saved file (run.json: tokenizer_sha256)")
  except FileNotFoundError as error:
    raise DamagedError(f"{_relative(error.filename, path)} is missing") from error
  except OSError as error:
    raise DamagedError(f"{type(error).__name__}: {error}") from error
  tokenizer = tokenizer and str(tokenizer)
  rest = run.identity, run.position, run.shapes, run.sums
  return Checkpoint(path, run.step, run.config, tokenizer, *rest)


def _run_of(path: pathlib.Path) -> _Run:
  file = path / "run.json"
  version = typed_json.read(file, _Format, DamagedError).format
  if version != FORMAT:
    raise UserError(f"{file} has format {version}; this version of pgjax reads {FORMAT}.")
  run = typed_json.read(file, _Run, DamagedError)
  if run.step != run.position["step"]:
    raise DamagedError(f"{file}: $.step is {run.step} and $.position.step is another")
  if odd := sorted(run.shapes.keys() ^ run.sums.keys()):
    raise DamagedError(f"{file}: {odd[0]} is not in both of $.shapes and $.sums")
  return run


def add_files(folder: pathlib.Path, run: dict[str, Any], tokenizer: bytes | None) -> None:
  """Writes the files that `read` expects beside the arrays; the folder is not yet in place."""
  digest = None
  if tokenizer is not None:
    (folder / "tokenizer.model").write_bytes(tokenizer)
    digest = hashlib.sha256(tokenizer).hexdigest()
  run = dict(format=FORMAT, **run, tokenizer_sha256=digest)
  (folder / "run.json").write_text(disk.dumps(run))
  files = [*folder.glob("*/**/*"), folder / "run.json"]  # Orbax still writes at the top level.
  sizes = {_relative(p, folder): p.stat().st_size for p in files if p.is_file()}
  (folder / "files.json").write_text(disk.dumps(sizes))


def best_value(path: pathlib.Path) -> float | None:
  """The metric of keep_best that a step was saved with, if it was evaluated."""
  try:
    return _run_of(path).best_value
  except (DamagedError, UserError):
    return None


def set_aside(path: pathlib.Path) -> pathlib.Path:
  """Moves a damaged step to the folder `damaged`."""
  target = path.parent.parent / DAMAGED / path.name
  target.parent.mkdir(exist_ok=True)
  shutil.rmtree(target, ignore_errors=True)
  return path.rename(target)


def _relative(path: str | pathlib.Path, folder: pathlib.Path) -> str:
  return pathlib.Path(path).relative_to(folder).as_posix()
