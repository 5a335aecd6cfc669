"""What is in a workdir, and is it undamaged? Everything about a checkpoint but its arrays.

A workdir has folders `checkpoints/STEP/`, renamed into place when complete:

  params/         the parameters, nested as in the model (Orbax; saver.py)
  optimizer/      the step counter and the optimizer's state, one array per name (Orbax)
  ema/            EMA weights, if config.ema_decay is set (Orbax)
  run.json        the whole config, the position in the data, shapes and checksums of all arrays,
                  and a checksum of all of this and of files.json
  tokenizer.model a copy of the tokenizer file; its SHA-256 is in run.json
  files.json      the size of each file, to detect truncated or missing ones before reading
"""

import errno
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec

from pgjax import disk
from pgjax.errors import UserError
from pgjax.formats import typed_json
from pgjax.formats.typed_json import Count, Text
from pgjax.params.rules import QUANTIZED

FOLDER = "checkpoints"
DAMAGED = "damaged"  # Damaged step folders are moved here, not deleted.
FORMAT, OLDER_FORMAT = 2, 1  # The older one: no checksum of run.json, plain sums of arrays.
FOLDERS = (FOLDER, DAMAGED, "check", "evals", "tensorboard", "watchers")
FILES = ("config.json", "metrics.jsonl", "running.json")
_CODES = tuple(f"/{kind}" for kind in QUANTIZED)  # The names of arrays of codes end so.
Dtype = Literal[
  "bool", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
  "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip
Shape = tuple[Dtype, list[Annotated[int, msgspec.Meta(ge=0, le=2**40)]]]
_STEP = re.compile("0|[1-9][0-9]{0,17}")
_GONE = (*disk.MISSING, errno.ELOOP, errno.ENAMETOOLONG)


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
  scores: dict[str, float] = {}
  planned: bool = True
  best_value: float | None = None  # In OLDER_FORMAT, of the metric config["keep_best"].


class _Format(msgspec.Struct):
  format: Count
  checksum: str | None = None


class Checkpoint(NamedTuple):
  """One readable step folder."""

  path: pathlib.Path
  step: int
  config: dict[str, Any]
  tokenizer: str | None  # Path of the copied file; None if converted weights had none.
  identity: dict[str, Any]  # Must not change between two starts: the data and its order.
  position: Position
  shapes: dict[str, Shape]  # {"params/llm/...": ("float32", [4, 8])}
  sums: dict[str, int]  # See checksums.py.
  ordered: bool = True  # The sums depend on the order of the elements.
  notes: tuple[str, ...] = ()  # For the user.


class DamagedError(Exception):
  """A step folder has changed since it was written; the message names the file or array."""


class UnreadableError(UserError):
  """The disk does not let us read a step folder, which may be whole."""


def check_kinds(workdir: pathlib.Path) -> None:
  """Raises where a file or folder of the workdir is something else."""
  for name, what in (*((n, "folder") for n in FOLDERS), *((n, "file") for n in FILES)):
    path = workdir / name
    right = path.is_dir() if what == "folder" else path.is_file()
    if os.path.lexists(path) and not right:
      raise UserError(
        f"{path} is not a {what}, and a run needs a {what} there: move it away, or give this run"
        " another --workdir."
      )
  for path in sorted((workdir / FOLDER).glob("*")):
    if path.name.isdigit() and not (_STEP.fullmatch(path.name) and path.is_dir()):
      raise UserError(
        f"{path} is not the folder of a step, which has a plain number as its name: move it away,"
        " or give this run another --workdir."
      )


def steps(workdir: str | pathlib.Path) -> list[int]:
  """The complete checkpoints of a workdir, oldest first."""
  folder = pathlib.Path(workdir) / FOLDER
  if not folder.is_dir():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if _STEP.fullmatch(p.name) and p.is_dir())


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
  sizes = _sizes_of(path)
  for name, size in sizes.items():
    actual = _reading(path / name, lambda file: file.stat().st_size)
    if actual != size:
      raise DamagedError(f"{name} has {actual:,} bytes instead of {size:,} (files.json)")
  run, ordered = _run_of(path, sizes)
  trained = any(name.startswith("optimizer/") for name in sizes)
  if trained and path.parent.name == FOLDER and path.name.isdigit() and path.name != str(run.step):
    raise DamagedError(f"{path / 'run.json'}: $.step is {run.step}, and the folder's another")
  tokenizer = path / "tokenizer.model" if run.tokenizer_sha256 else None
  if tokenizer and hashlib.sha256(_bytes_of(tokenizer)).hexdigest() != run.tokenizer_sha256:
    raise DamagedError("tokenizer.model is not the saved file (run.json: tokenizer_sha256)")
  tokenizer, notes = tokenizer and str(tokenizer), ()
  if not ordered:
    notes = (
      f"The checkpoint {path} is from an older version of pgjax, which stored no checksum of"
      " run.json: only the sizes of its files and plain sums of its arrays were compared.",
    )
  rest = run.identity, run.position, run.shapes, run.sums, ordered, notes
  return Checkpoint(path, run.step, run.config, tokenizer, *rest)


def scores_of(path: pathlib.Path) -> tuple[dict[str, float], bool]:
  """The scores that a step was saved with, and whether it was planned; ({}, True) if damaged."""
  try:
    run, _ = _run_of(path, _sizes_of(path))
  except UnreadableError:
    raise
  except (DamagedError, UserError):
    return {}, True
  metric = run.config.get("keep_best")
  if run.best_value is None or not isinstance(metric, str):
    return run.scores, run.planned
  value = -run.best_value if metric.startswith("-") else run.best_value
  return run.scores | {metric.removeprefix("-"): value}, run.planned


def _sizes_of(path: pathlib.Path) -> dict[str, int]:
  file = path / "files.json"
  return typed_json.decode(_bytes_of(file), dict[Text, Count], file, DamagedError)


def _run_of(path: pathlib.Path, sizes: Mapping[str, int]) -> tuple[_Run, bool]:
  """run.json, and whether its arrays have ordered checksums."""
  file = path / "run.json"
  data = _bytes_of(file)
  head = typed_json.decode(data, _Format, file, DamagedError)
  changed = f"{file}: $, or files.json beside it, has changed since it was written (checksum)"
  everything = typed_json.decode(data, dict[str, Any], file, DamagedError, nan=True)
  matches = head.checksum is not None and head.checksum == _checksum(everything, sizes)
  if head.format not in (FORMAT, OLDER_FORMAT):
    if head.checksum is not None and not matches:
      raise DamagedError(changed)
    raise UserError(
      f"{file} has format {head.format}; this version of pgjax reads {OLDER_FORMAT} and {FORMAT}."
    )
  run = typed_json.decode(data, _Run, file, DamagedError)
  if run.step != run.position["step"]:
    raise DamagedError(f"{file}: $.step is {run.step} and $.position.step is another")
  if odd := sorted(run.shapes.keys() ^ run.sums.keys()):
    raise DamagedError(f"{file}: {odd[0]} is not in both of $.shapes and $.sums")
  if (head.format == FORMAT and not matches) or (head.format < FORMAT and head.checksum):
    raise DamagedError(changed)
  if head.format < FORMAT and _is_quantized(run.shapes):
    raise UserError(
      f"{path} was written by a version of pgjax that quantized matrices in another order (run.json"
      f" has format {head.format}, not {FORMAT}). Use that version for it, or start a new run."
    )
  return run, head.format == FORMAT


def _bytes_of(path: pathlib.Path) -> bytes:
  return _reading(path, lambda file: file.read_bytes())


def _reading(path: pathlib.Path, read: Any) -> Any:
  """read(path); what is missing is damage, what the disk refuses is not."""
  try:
    if path.exists() and not path.is_file():  # A device may never end.
      raise DamagedError(f"{path} is not a file")
    return read(path)
  except OSError as error:
    if error.errno in _GONE:
      raise DamagedError(f"{path.name} is missing") from error
    raise UnreadableError(f"{path} cannot be read ({disk.reason(error)}).") from error


def _checksum(run: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
  """The SHA-256 of everything in run.json, and of the sizes in files.json."""
  run = {name: value for name, value in run.items() if name != "checksum"}
  sizes = {name: size for name, size in sizes.items() if name != "run.json"}
  return hashlib.sha256(json.dumps([run, sizes], sort_keys=True).encode()).hexdigest()


def _is_quantized(shapes: Mapping[str, Any]) -> bool:
  """Whether one of these arrays holds codes."""
  return any(n.startswith("params/") and n.endswith(_CODES) for n in shapes)


def add_files(folder: pathlib.Path, run: dict[str, Any], tokenizer: bytes | None) -> None:
  """Writes the files that `read` expects beside the arrays; the folder is not yet in place."""
  digest = None
  if tokenizer is not None:
    (folder / "tokenizer.model").write_bytes(tokenizer)
    digest = hashlib.sha256(tokenizer).hexdigest()
  files = folder.glob("*/**/*")  # Orbax still writes at the top level.
  sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files if p.is_file()}
  run = disk.plain(dict(format=FORMAT, **run, tokenizer_sha256=digest))
  (folder / "run.json").write_text(disk.dumps(run | dict(checksum=_checksum(run, sizes))))
  (folder / "files.json").write_text(disk.dumps(sizes))


def finite(scores: Mapping[str, float]) -> dict[str, float]:
  """The scores that JSON can store."""
  return {name: float(value) for name, value in scores.items() if math.isfinite(value)}


def add_scores(path: pathlib.Path, scores: Mapping[str, float], *, planned: bool) -> None:
  """Stores the scores of a step that was saved before it was evaluated."""
  sizes = _sizes_of(path)
  run = json.loads(_bytes_of(path / "run.json"))
  if run["format"] == FORMAT:  # An older files.json has the size of run.json.
    run |= dict(scores=finite(scores), planned=planned)
    run["position"]["evaluated"] = True
    run["checksum"] = _checksum(run, sizes)
    disk.replace(path / "run.json", disk.dumps(run))


def set_aside(path: pathlib.Path) -> pathlib.Path:
  """Moves a damaged step to the folder `damaged`, beside earlier ones of that step."""
  folder = path.parent.parent / DAMAGED
  folder.mkdir(exist_ok=True)
  names = itertools.chain([path.name], (f"{path.name}-{i}" for i in itertools.count(2)))
  return path.rename(next(folder / n for n in names if not os.path.lexists(folder / n)))
