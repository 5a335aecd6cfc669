"""How does a data set that `tfds build` wrote as TFRecord become ArrayRecord, without TensorFlow?

Both formats hold the same serialized tf.train.Example: each file is copied record by record, after
its checksums are checked, and the metadata says array_record instead of tfrecord. Records, files
and their order stay, so that train[:5%] is the same rows. (tfds.load reads 16 files in turn; the
order here is that of ReadConfig(interleave_cycle_length=1).) A stopped run continues.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
import threading
from typing import Annotated, Any

import msgspec
import tqdm
from msgspec import Meta

from pgjax import disk
from pgjax.datasets import encoding, writing
from pgjax.errors import UserError, cut
from pgjax.formats import input_files, tfrecord, typed_json

_INFO, _FEATURES = "dataset_info.json", "features.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_STATE = ".source.state"
_DEPTH = 3  # Folders between DIR and a data set's version: NAME/CONFIG/VERSION.
_MOST_METADATA = 256 << 20
_BATCH = 64  # Rows between two movements of the bar.


_Count = Annotated[str, Meta(pattern=r"^\d{1,15}$")] | typed_json.Count


class _Split(msgspec.Struct):
  name: typed_json.Text
  shard_lengths: list[_Count] = msgspec.field(name="shardLengths", default_factory=list)
  template: str = msgspec.field(name="filepathTemplate", default=_TEMPLATE)


class _Info(msgspec.Struct):
  name: typed_json.Text
  version: typed_json.Text
  splits: list[_Split] = []
  config: str = msgspec.field(name="configName", default="")
  file_format: str = msgspec.field(name="fileFormat", default="tfrecord")


@dataclasses.dataclass(frozen=True)
class _Shard:
  source: pathlib.Path
  target: pathlib.Path
  rows: int


def convert(source: str, out: pathlib.Path, name: str | None, workers: int) -> list[str]:
  """Converts each data set in or below a folder; returns a line for each.

  name: "set" or "set/part" instead of the data set's own; for a single one.
  """
  tfrecord.crc32c()  # Fails here, not after the first file.
  folders = _data_sets(pathlib.Path(source).expanduser().absolute())
  if name and len(folders) > 1:
    names = ", ".join(str(folder) for folder in folders[:5])
    raise UserError(f"{name} can be the name of one data set, and {source} has {names}.")
  return [_convert(folder, out, name, workers) for folder in folders]


def _data_sets(source: pathlib.Path) -> list[pathlib.Path]:
  """The folders of versions: `source`, or the newest of each data set below it."""
  if not source.is_dir():
    raise UserError(f"--from_tfrecord={source} is not a folder.")
  if (source / _INFO).exists():
    return [source]
  patterns = ("/".join(["[!.]*"] * depth) for depth in range(1, _DEPTH + 1))
  newest: dict[pathlib.Path, pathlib.Path] = {}
  for pattern in patterns:
    for path in sorted(source.glob(f"{pattern}/{_INFO}")):
      folder = path.parent
      best = newest.setdefault(folder.parent, folder)
      newest[folder.parent] = max(best, folder, key=_version)
  if not newest:
    raise UserError(
      f"--from_tfrecord={source} is no data set of TFDS: neither it nor a folder in it has a "
      f"{_INFO}. It is a folder such as NAME/1.0.0."
    )
  return list(newest.values())


def _version(folder: pathlib.Path) -> list[int]:
  return [int(number) for number in folder.name.split(".") if number.isdigit()]


def _convert(source: pathlib.Path, out: pathlib.Path, name: str | None, workers: int) -> str:
  info = _checked_info(source)
  full = name or "/".join(part for part in (info.name, info.config) if part)
  folder = disk.inside(out, f"{full}/{info.version}", "The data set")
  if folder.resolve() == source.resolve():
    raise UserError(f"{source} is where the result would be written: name another folder, --out=.")
  sizes = {split.name: sum(map(int, split.shard_lengths)) for split in info.splits}
  line = f"{full}: " + ", ".join(f"{split} {n:,}" for split, n in sizes.items()) + f" in {folder}"
  if folder.exists():
    if _format(folder) != "array_record":
      raise UserError(f"{folder} exists and is not ArrayRecord: name another folder, --out=.")
    return f"{line} (prepared earlier; delete it to write it anew)"
  work = folder.with_name(f".{info.version}.incomplete")
  with writing.trouble(work), writing.lock(work):
    shards = _shards(source, work, info, full.split("/")[0])
    _forget_other(work, source, shards)
    missing = [shard for shard in shards if not _complete(shard)]
    _check_space(work, sum(_size(shard.source) for shard in missing))
    _copy_all(missing, full, sum(sizes.values()), workers)
    _write_metadata(source, work, full)
    for path in work.glob(".*"):  # The state of the run, and its lock.
      path.unlink()
    work.rename(folder)
  return line


def _checked_info(source: pathlib.Path) -> _Info:
  """dataset_info.json, if this data set can be converted and then read."""
  info = typed_json.read(source / _INFO, _Info)
  if info.file_format == "array_record":
    raise UserError(f"{source} is ArrayRecord already: read it with data_dir=.")
  if info.file_format != "tfrecord":
    raise UserError(f"{source} has files of the format {cut(info.file_format)}, not TFRecord.")
  if not (source / _FEATURES).exists():
    raise UserError(
      f"{source} has no {_FEATURES}, as what TFDS wrote before version 4.0: build it again."
    )
  import tensorflow_datasets as tfds

  try:
    tfds.features.FeaturesDict.from_config(os.fspath(source))
  except Exception as error:  # TFDS raises many types.
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{source / _FEATURES} cannot be read without TensorFlow: {reason}.") from error
  return info


def _format(folder: pathlib.Path) -> str:
  return typed_json.read(folder / _INFO, _Info).file_format if (folder / _INFO).exists() else "?"


def _shards(source: pathlib.Path, work: pathlib.Path, info: _Info, name: str) -> list[_Shard]:
  """Every file, in order; raises for those that are missing, all at once."""
  shards = []
  for split in info.splits:
    n = len(split.shard_lengths)
    for i, rows in enumerate(split.shard_lengths):
      of = f"{i:05d}-of-{n:05d}"
      fields = dict(DATASET=info.name, SPLIT=split.name, FILEFORMAT="tfrecord", SHARD_X_OF_Y=of)
      fields |= dict(SHARD_INDEX=f"{i:05d}", NUM_SHARDS=f"{n:05d}")
      file_name = split.template
      for field, value in fields.items():
        file_name = file_name.replace(f"{{{field}}}", value)
      path = input_files.inside(os.fspath(source), file_name, f"{source / _INFO}, splits")
      target = disk.inside(work, f"{name}-{split.name}.array_record-{of}", "The file")
      shards.append(_Shard(pathlib.Path(path), target, int(rows)))
  if missing := [shard.source.name for shard in shards if not shard.source.exists()]:
    shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" * (len(missing) > 10))
    raise UserError(f"{source} lacks {shown}: it is half of a copy, or was not built to its end.")
  return shards


def _complete(shard: _Shard) -> bool:
  return shard.target.exists() and encoding.length(shard.target) == shard.rows


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size


def _check_space(work: pathlib.Path, needed: int) -> None:
  free = disk.free_bytes(work)
  if needed > free:
    raise UserError(
      f"{work} needs about {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: make "
      "room, or use --out= for another disk."
    )


def _forget_other(work: pathlib.Path, source: pathlib.Path, shards: list[_Shard]) -> None:
  """Deletes what an earlier run copied, if it was from other files."""
  digest = hashlib.blake2b(os.fspath(source).encode(), digest_size=16)
  for path in [source / _INFO, *(shard.source for shard in shards)]:
    info = path.stat()
    digest.update(f"{path.name} {info.st_size} {info.st_mtime_ns}".encode())
  state, wanted = work / _STATE, digest.hexdigest()
  for path in work.glob(".*.partial"):
    path.unlink()
  if state.exists() and state.read_text() == wanted:
    return
  for path in work.glob("*.array_record-*"):
    path.unlink()
  disk.replace(state, wanted)


def _copy_all(shards: list[_Shard], name: str, total: int, workers: int) -> None:
  """Copies files in threads."""
  stop, seconds = threading.Event(), 0.5 if sys.stderr.isatty() else 30
  bar = tqdm.tqdm(
    total=total, initial=total - sum(shard.rows for shard in shards), desc=name, unit=" rows",
    file=sys.stderr, leave=False, mininterval=seconds, maxinterval=seconds, dynamic_ncols=True,
  )  # fmt: skip
  with bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:
    jobs = [pool.submit(_copy, shard, stop, bar) for shard in shards]
    try:
      for job in concurrent.futures.as_completed(jobs):
        job.result()
    except BaseException:
      stop.set()
      pool.shutdown(wait=True, cancel_futures=True)
      raise


def _copy(shard: _Shard, stop: threading.Event, bar: tqdm.tqdm) -> None:
  partial = shard.target.with_name(f".{shard.target.name}.partial")
  count = 0
  with encoding.writer(partial) as write:
    for record in tfrecord.records(shard.source):
      write(record)
      count += 1
      if count % _BATCH == 0:
        bar.update(_BATCH)
        if stop.is_set():
          return
  bar.update(count % _BATCH)
  if count != shard.rows:
    raise UserError(
      f"{shard.source} has {count:,} records and {_INFO} counts {shard.rows:,}: it is half of a "
      "copy, or of another version of the data set."
    )
  partial.replace(shard.target)


def _write_metadata(source: pathlib.Path, work: pathlib.Path, full: str) -> None:
  """Copies what is beside the records; dataset_info.json names the format, and `full`."""
  for path in sorted(source.iterdir()):
    kept = path.is_file() and ".tfrecord" not in path.name and _size(path) <= _MOST_METADATA
    if kept and path.name != _INFO:
      shutil.copyfile(path, work / path.name)
  info: dict[str, Any] = json.loads(input_files.file_bytes(source / _INFO))
  name, _, config = full.partition("/")
  if [info["name"], info.get("configName", "")] != [name, config]:
    info |= dict(name=name, configName=config, configDescription="")
  info["fileFormat"] = "array_record"
  for split in info.get("splits", ()):
    split["filepathTemplate"] = _TEMPLATE
  disk.replace(work / _INFO, disk.dumps(info))
