"""Converts a data set's official download to ArrayRecord files that TFDS reads without TensorFlow.

python -m pgjax.prepare chartqa --raw=DIR [--out=DIR] [--parts=human,augmented]
python -m pgjax.prepare easyvqa [--out=DIR]

--out is $TFDS_DATA_DIR or ~/tensorflow_datasets by default. A config then names the data set as
"chartqa/augmented", with data_dir= for another folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from typing import Any

from etils import epy

from pgjax import cli
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  import tensorflow_datasets as tfds
  from absl import logging

  from pgjax.datasets import chartqa, easyvqa

BUILDERS = dict(chartqa=(chartqa, "ChartQA"), easyvqa=(easyvqa, "EasyVQA"))

FLAGS = [
  cli.Flag("dataset", str, required=True, positional=True, help=" or ".join(BUILDERS)),
  cli.Flag("raw", str, help="folder of the official download"),
  cli.Flag("out", str, help="folder of prepared data sets, if not $TFDS_DATA_DIR"),
  cli.Flag("parts", list, help="the parts to prepare, if not all"),
]


def main(args: Any) -> None:
  """Writes the data set; prints a line for each part."""
  logging.set_verbosity(logging.WARNING)
  out = os.path.expanduser(args.out or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
  if args.dataset not in BUILDERS:
    raise UserError(f"pgjax.prepare knows {', '.join(BUILDERS)}, not '{args.dataset}'.")
  module, class_name = BUILDERS[args.dataset]
  if module.PARTS and not args.raw:
    raise UserError(f"pgjax.prepare {args.dataset} needs --raw=DIR, the folder of its download.")
  parts = tuple(args.parts or module.PARTS)
  module.check(args.raw, parts)
  tfds.disable_progress_bar()
  for part in parts or [None]:
    cli.say(prepared(getattr(module, class_name), args.raw, out, part))


def prepared(builder_class: Any, raw: str | None, out: str, part: str | None) -> str:
  """Writes one part below `out`; returns its sizes and path."""
  name = builder_class.name if part is None else f"{builder_class.name}/{part}"
  sys.stderr.write(f"Preparing {name} ...\n")
  try:
    builder = builder_class(data_dir=out, config=part, file_format="array_record")
    with (
      tempfile.TemporaryDirectory() as downloads,  # Stays empty, but TFDS requires it.
      contextlib.redirect_stdout(io.StringIO()),
    ):
      config = tfds.download.DownloadConfig(manual_dir=raw)
      builder.download_and_prepare(download_dir=downloads, download_config=config)
  except OSError as error:
    raise UserError(f"{out} cannot be written: {error.strerror or error}.") from None
  sizes = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
  return f"{name}: {sizes} in {builder.data_path}"


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config="none")
