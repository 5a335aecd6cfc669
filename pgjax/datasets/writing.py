"""How are rows written as ArrayRecord, in parallel, so that a stopped run continues?

Each split is planned first: its rows, in TFDS's order (by a hash of the split's name and the key),
are cut into shards. Threads then read the images and write the shards, below
NAME/[PART/].VERSION.incomplete. A shard gets its name when it is complete, and the folder gets its
own when all splits are: what reads as a data set is whole. A run that was stopped keeps the shards
of the same plan.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import logging
import os
import pathlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import tqdm

from pgjax import disk
from pgjax.datasets import encoding
from pgjax.datasets.base import DataSet, File, Raw
from pgjax.errors import UserError
from pgjax.formats import typed_json

SHARD_BYTES = 256 << 20
_ROW_BYTES = 1024  # Of what is not a file, for the number of shards.
_log = logging.getLogger("pgjax.prepare")


@dataclasses.dataclass(frozen=True)
class Options:
  """What the command line decides, besides which parts and splits."""

  workers: int = 8
  skip_bad_images: bool = False  # Drop rows whose image is missing or damaged.


class _State(msgspec.Struct):
  """.SPLIT.state: for which rows the shards of a split were written."""

  fingerprint: str
  shards: int


@dataclasses.dataclass
class _Plan:
  split: str
  rows: list[tuple[Any, Any]]  # (key, example), in the order of the file.
  dropped: int  # Rows without their image.
  bytes: int
  fingerprint: str
  shards: int

  def bounds(self, shard: int) -> tuple[int, int]:
    """The rows of a shard."""
    n = len(self.rows)
    return n * shard // self.shards, n * (shard + 1) // self.shards


def prepare(
  data: DataSet, raw: Raw, out: pathlib.Path, part: str | None, splits: Sequence[str], how: Options
) -> str:
  """Writes the splits that are not prepared yet; returns their sizes and the folder in a line."""
  folder = out / data.full_name(part) / data.version
  done = encoding.prepared_splits(folder, data)
  wanted = [split for split in splits if split not in done]
  if not wanted:
    sizes = {split: n for split, n in done.items() if split in splits}
    _compare(data, part, sizes)
    return f"{_line(data, part, sizes)} in {folder} (prepared earlier; delete it to write it anew)"
  work = folder.with_name(f".{data.version}.incomplete")
  with trouble(work), lock(work):
    written = {split: _write_split(data, raw, work, part, split, how) for split in wanted}
    encoding.publish(data, part, work, folder, written)
  sizes = {split: sum(lengths) for split, lengths in written.items()}
  sizes = {split: sizes.get(split, done.get(split)) for split in splits}
  _compare(data, part, sizes)
  return f"{_line(data, part, sizes)} in {folder}"


def _line(data: DataSet, part: str | None, sizes: dict[str, int]) -> str:
  return f"{data.full_name(part)}: " + ", ".join(f"{s} {n:,}" for s, n in sizes.items())


def _compare(data: DataSet, part: str | None, sizes: dict[str, int]) -> None:
  """Warns where the number of rows is not the published one."""
  counts = data.counts(part)
  other = [f"{s} {n:,} of {counts[s]:,}" for s, n in sizes.items() if counts[s] not in (None, n)]
  if other:
    _log.warning(
      "%s does not have the published number of rows: %s. Is the download complete?",
      data.full_name(part),
      ", ".join(other),
    )


@contextlib.contextmanager
def lock(work: pathlib.Path) -> Iterator[None]:
  """Two runs may not write one folder."""
  work.mkdir(parents=True, exist_ok=True)
  with open(work / ".lock", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f"Another pgjax.prepare is writing {work}: wait for its end.") from None
    except OSError:  # A file system without locks.
      pass
    yield


@contextlib.contextmanager
def trouble(work: pathlib.Path) -> Iterator[None]:
  """Errors of the disk, which ArrayRecord raises as RuntimeError, as a UserError."""
  try:
    yield
  except (OSError, RuntimeError) as error:
    if (reason := disk.disk_trouble(error)) is None:
      raise
    raise UserError(
      f"{work} cannot be written ({reason}). What is complete stays: make room, or use --out= for "
      "another disk, and start the same command again."
    ) from error


def _write_split(
  data: DataSet, raw: Raw, work: pathlib.Path, part: str | None, split: str, how: Options
) -> list[int]:
  """Writes the shards that are missing; returns the number of rows in each shard."""
  name = f"{data.full_name(part)} {split}"
  plan = _plan(data, raw, part, split, how)
  paths = [work / encoding.shard_name(data, split, i, plan.shards) for i in range(plan.shards)]
  _forget_other(work, data, plan)
  missing = [i for i, path in enumerate(paths) if not path.exists()]
  if len(missing) < plan.shards:
    _log.info("%s: continues after %d of %d files", name, plan.shards - len(missing), plan.shards)
  _check_space(work, plan.bytes * len(missing) // plan.shards)
  _run(data, plan, {i: paths[i] for i in missing}, name, how)
  lengths = [encoding.length(path) or 0 for path in paths]
  if not sum(lengths):
    raise UserError(f"{name}: no row has an image that can be read.")
  dropped = plan.dropped + len(plan.rows) - sum(lengths)
  if dropped:
    why = data.lost_images.get(split, "--skip_bad_images")
    text = "%s: %s of %s rows dropped, because their image is missing or damaged (%s)"
    _log.warning(text, name, f"{dropped:,}", f"{sum(lengths) + dropped:,}", why)
  return lengths


def _plan(data: DataSet, raw: Raw, part: str | None, split: str, how: Options) -> _Plan:
  rows = list(_bar(f"{data.full_name(part)} {split}: reading", data.rows(raw, part, split)))
  if not rows:
    raise UserError(f"{data.full_name(part)}: the download has no rows for the split '{split}'.")
  rows, dropped, sizes = _with_images(data, part, split, rows, how)
  key_hash = encoding.key_hash(split)
  hashed = sorted((key_hash(key), i) for i, (key, _) in enumerate(rows))
  for (one, i), (two, j) in itertools.pairwise(hashed):
    if one == two:
      raise UserError(
        f"{data.full_name(part)}, split '{split}': rows {i} and {j} have the same id "
        f"{rows[i][0]!r}."
      )
  digest = hashlib.blake2b(digest_size=16)
  total = 0
  for _, i in hashed:
    digest.update(repr((rows[i][0], _described(rows[i][1], sizes))).encode())
    total += _ROW_BYTES + sum(sizes[file.path][0] for file in files_of(rows[i][1]))
  shards = min(max(1, round(total / SHARD_BYTES)), len(rows))
  ordered = [rows[i] for _, i in hashed]
  return _Plan(split, ordered, dropped, total, digest.hexdigest(), shards)


def _with_images(data: DataSet, part: str | None, split: str, rows: list, how: Options):
  """(rows whose images exist, how many do not, {path: (bytes, time)})."""
  sizes: dict[str, tuple[int, int] | None] = {}
  first = None
  for _, example in rows:
    for file in files_of(example):
      if file.path not in sizes:
        sizes[file.path] = _stat(file.path)
        if sizes[file.path] is None:
          first = first or file
  if first is None:
    return rows, 0, sizes
  here = [row for row in rows if all(sizes[file.path] for file in files_of(row[1]))]
  if not here or not (how.skip_bad_images or split in data.lost_images):
    raise UserError(
      f"{first.where}: {first.path} does not exist; {data.full_name(part)}, split '{split}', lacks "
      f"{_lost(sizes)}. Complete the download, or drop their rows with --skip_bad_images."
    )
  return here, len(rows) - len(here), sizes


def _lost(sizes: dict[str, Any]) -> str:
  lost = [path for path, size in sizes.items() if size is None]
  folders = sorted({os.path.basename(os.path.dirname(path)) for path in lost})[:5]
  return f"{len(lost):,} of {len(sizes):,} images (in {', '.join(folders)})"


def _stat(path: str) -> tuple[int, int] | None:
  try:
    info = os.stat(path)
  except OSError:
    return None
  return info.st_size, info.st_mtime_ns


def files_of(value: Any) -> Iterator[File]:
  """All files in an example."""
  if isinstance(value, File):
    yield value
  elif isinstance(value, dict):
    for inner in value.values():
      yield from files_of(inner)
  elif isinstance(value, list) and value and not isinstance(value[0], str):
    for inner in value:
      yield from files_of(inner)


def _described(value: Any, sizes: dict) -> Any:
  """What decides a value, without addresses of memory."""
  if isinstance(value, File):
    return value.path, sizes[value.path], value.edit is not None
  if isinstance(value, dict):
    return {name: _described(inner, sizes) for name, inner in value.items()}
  if isinstance(value, list):
    return [_described(inner, sizes) for inner in value]
  return getattr(value, "__qualname__", "computed") if callable(value) else value


def _forget_other(work: pathlib.Path, data: DataSet, plan: _Plan) -> None:
  """Deletes what an earlier run wrote of this split, if it was for other rows or is damaged."""
  for path in work.glob(".*.partial"):
    path.unlink()
  state = work / f".{plan.split}.state"
  wanted = _State(plan.fingerprint, plan.shards)
  with contextlib.suppress(UserError):
    if typed_json.read(state, _State) == wanted:
      for path in work.glob(f"{data.name}-{plan.split}.array_record-*"):
        if encoding.length(path) is None:
          path.unlink()
      return
  for path in work.glob(f"{data.name}-{plan.split}.array_record-*"):
    path.unlink()
  disk.replace(state, msgspec.json.encode(wanted))


def _check_space(work: pathlib.Path, needed: int) -> None:
  free = disk.free_bytes(work)
  if needed > free:
    raise UserError(
      f"{work} needs about {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: make "
      "room, or use --out= for another disk."
    )


def _run(data: DataSet, plan: _Plan, paths: dict, name: str, how: Options) -> None:
  """Writes shards in threads."""
  if not paths:
    return
  bounds = {i: plan.bounds(i) for i in paths}
  total, written = len(plan.rows), sum(end - start for start, end in bounds.values())
  stop = threading.Event()
  bar = _bar(name, total=total, initial=total - written)
  encoder = encoding.Encoder(data, skip_bad=how.skip_bad_images)
  with bar, concurrent.futures.ThreadPoolExecutor(how.workers) as pool:
    jobs = [
      pool.submit(_write_shard, encoder, plan.rows[slice(*bounds[i])], path, stop, bar)
      for i, path in paths.items()
    ]
    try:
      for job in concurrent.futures.as_completed(jobs):
        job.result()
    except BaseException:
      stop.set()
      pool.shutdown(wait=True, cancel_futures=True)
      raise


def _bar(text: str, *rows: Iterator, **more: int) -> tqdm.tqdm:
  """A line of progress on stderr: rows a second and the time that is left."""
  seconds = 0.5 if sys.stderr.isatty() else 30  # In a log, not so often.
  look = dict(unit=" rows", file=sys.stderr, leave=False, dynamic_ncols=True)
  return tqdm.tqdm(*rows, desc=text, mininterval=seconds, maxinterval=seconds, **look, **more)


def _write_shard(encoder, rows, path: pathlib.Path, stop: threading.Event, bar: tqdm.tqdm) -> None:
  """Writes one file, without the rows whose image is damaged."""
  partial = path.with_name(f".{path.name}.partial")
  with encoding.writer(partial) as write:
    for key, example in rows:
      if stop.is_set():
        return
      if (record := encoder.record(key, example)) is not None:
        write(record)
      bar.update()
  partial.replace(path)
