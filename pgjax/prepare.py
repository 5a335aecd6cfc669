"""Converts a data set's official download to ArrayRecord files that TFDS reads without TensorFlow.

python -m pgjax.prepare NAME                       prints where its files come from
python -m pgjax.prepare NAME --raw=DIR [--out=DIR] [--parts=A,B] [--splits=train,val]
python -m pgjax.prepare jsonl --data='coco(fname="a.json")' --out=DIR [--to=array_record]
python -m pgjax.prepare [NAME] --from_tfrecord=DIR --out=DIR      a data set that tfds build wrote

--out is $TFDS_DATA_DIR or ~/tensorflow_datasets by default. A config then names the data set as
"chartqa/augmented", with data_dir= for another folder. A run that was stopped continues when it is
started again. Rows are in the order of the data set's TFDS builder, so that train[:5%] is the same.

"jsonl" writes your own data, from any source of docs/data.md, as JSONL with image, prefix and
suffix and a folder of images, or as ArrayRecord.
"""

from __future__ import annotations

if __name__ == "__main__":  # Before the imports below, which take a moment.
  from pgjax.distributed import signals

  signals.begin("Stopped by {}; the same command continues.")

import os
import pathlib
import re
from typing import Any

from etils import epy

from pgjax import cli, disk
from pgjax.datasets import base, download, registry
from pgjax.errors import UserError, cut

with epy.lazy_imports():  # Not for --help or a mistake in the command line.
  from absl import logging

  from pgjax.data import export
  from pgjax.datasets import from_tfrecord, writing

WORKERS = min(16, 4 + (os.cpu_count() or 1))
FLAGS = [
  cli.Flag(
    "dataset",
    str,
    required=True,
    positional=True,
    instead="from_tfrecord",
    help="a name of the table above, or of a transfer's config",
  ),
  cli.Flag("raw", str, help="folder of the official download"),
  cli.Flag("from_tfrecord", str, help="a folder that `tfds build` wrote, to make ArrayRecord of"),
  cli.Flag("out", str, help="folder of prepared data sets, if not $TFDS_DATA_DIR"),
  cli.Flag("parts", list, help="the parts to prepare, if not all"),
  cli.Flag("splits", list, help="the splits to prepare, if not all"),
  cli.Flag("skip_bad_images", bool, False, help="drop rows whose image is missing or damaged"),
  cli.Flag("workers", int, WORKERS, least=1, help="threads that read and write"),
  cli.Flag("data", str, help='jsonl: the source, such as yolo(fname="data.yaml", split="train")'),
  cli.Flag("pp", str, "", help="jsonl: ops that make prefix and suffix of the source's columns"),
  cli.Flag("keep", list, help="jsonl: other columns to write"),
  cli.Flag("split", str, "train", help="jsonl: the name of the file, or of the split"),
  cli.Flag("to", str, "jsonl", help="jsonl: jsonl or array_record"),
  cli.Flag("name", str, "mine", help="jsonl: the name of the ArrayRecord data set"),
  cli.Flag("val_ids", str, help="stvqa: a file with the images of its val split, one a line"),
]
OPTIONS = ("val_ids",)  # Flags of single data sets.
_OTHER = {"split": " Did you mean --splits?", "splits": " Did you mean --split?"}


def main(args: Any) -> None:
  """Writes the data set; prints a line for each part."""
  if args.from_tfrecord:
    _from_tfrecord(args)
    return
  if args.dataset == "jsonl":
    _write_own(args)
    return
  own = dict(data=None, pp="", keep=None, split="train", to="jsonl", name="mine")
  if strange := [flag for flag, value in own.items() if getattr(args, flag) != value]:
    raise UserError(f"--{strange[0]} is only for pgjax.prepare jsonl.{_OTHER.get(strange[0], '')}")
  jobs = [_checked(data, args) for data in registry.of_name(args.dataset)]
  logging.set_verbosity(logging.WARNING)
  folder = disk.open_folder(_out(args), "--out")
  how = writing.Options(args.workers, args.skip_bad_images)
  for data, raw, parts, splits in jobs:
    for part in parts:
      if here := [split for split in splits if split in data.counts(part)]:
        cli.say(writing.prepare(data, raw, folder, part, here, how))


def _checked(data: base.DataSet, args: Any) -> tuple[base.DataSet, base.Raw, list, list]:
  """(data set, its download, parts, splits), where nothing is missing."""
  parts = _parts(data, args)
  splits = base.chosen("split", args.splits, data.split_names(parts), _default(data, parts))
  raw = base.Raw(args.raw or ".", _options(data, args))
  if data.needs_raw:
    if not args.raw:
      cli.say(download.describe(data))
      raise UserError(f"pgjax.prepare {data.name} needs --raw=DIR, the folder of its download.")
    download.check(data, raw.folder, parts, splits)
  elif args.raw:
    raise UserError(f"pgjax.prepare {data.name} takes no --raw: it comes from {data.source}.")
  return data, raw, parts, splits


def _from_tfrecord(args: Any) -> None:
  """Copies a data set of TFDS; NAME is its name in the copy, if not the same."""
  if strange := [flag for flag in ("raw", "parts", "splits", *OPTIONS) if getattr(args, flag)]:
    raise UserError(f"--from_tfrecord copies a whole data set: leave --{strange[0]} out.")
  if args.dataset and not re.fullmatch(r"[A-Za-z_]\w*(/[\w.-]+)?", args.dataset):
    raise UserError(f"{cut(args.dataset)!r} is no name of a data set, such as 'set' or 'set/part'.")
  logging.set_verbosity(logging.WARNING)
  folder = disk.open_folder(_out(args), "--out")
  for line in from_tfrecord.convert(args.from_tfrecord, folder, args.dataset, args.workers):
    cli.say(line)


def _out(args: Any) -> str:
  return args.out or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"


def _write_own(args: Any) -> None:
  """Writes the data of --data as JSONL or ArrayRecord."""
  if not args.data:
    raise UserError("pgjax.prepare jsonl needs --data=, such as --data='coco(fname=\"a.json\")'.")
  of_downloads = ("raw", "parts", "splits", "skip_bad_images", *OPTIONS)
  if strange := [flag for flag in of_downloads if getattr(args, flag)]:
    raise UserError(f"--{strange[0]} is not for pgjax.prepare jsonl.{_OTHER.get(strange[0], '')}")
  if args.to not in ("jsonl", "array_record"):
    raise UserError(f"--to={args.to} must be jsonl or array_record.")
  if args.to == "jsonl" and not args.out:
    raise UserError("pgjax.prepare jsonl needs --out=, the folder of the file and its images.")
  rows = export.opened(args.data, args.pp, args.keep or ())
  folder = disk.open_folder(_out(args), "--out")
  if args.to == "jsonl":
    cli.say(export.to_jsonl(rows, folder, args.split, args.workers))
  else:
    logging.set_verbosity(logging.WARNING)
    cli.say(export.to_array_record(rows, folder, args.name, args.split, args.workers))


def _parts(data: base.DataSet, args: Any) -> list[str | None]:
  if args.parts is not None and not data.parts:
    raise UserError(f"{data.name} has no parts: leave --parts out.")
  known = data.part_names()
  return base.chosen("part", args.parts, known, known)


def _default(data: base.DataSet, parts: list[str | None]) -> list[str]:
  return [split for split in data.split_names(parts) if split not in data.extra_splits]


def _options(data: base.DataSet, args: Any) -> dict[str, Any]:
  given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
  if strange := [name for name in given if name not in data.options]:
    raise UserError(f"--{strange[0]} is not an option of {data.name}.")
  return {name: pathlib.Path(value).expanduser() for name, value in given.items()}


if __name__ == "__main__":
  cli.run(main, f"{__doc__}\n{registry.help_table()}", FLAGS, config="none")
