"""Turns a data set's official download into ArrayRecord files that TFDS reads without TensorFlow.

python -m pgjax.prepare chartqa --raw=DIR [--out=DIR] [--parts=human,augmented]
python -m pgjax.prepare easyvqa [--out=DIR]

--out is where TFDS looks for data sets: $TFDS_DATA_DIR, or ~/tensorflow_datasets. A config then
names the data set as "chartqa/augmented", with data_dir= if --out was another folder.
"""

import contextlib
import io
import os
import pathlib
import sys
import tempfile

import tensorflow_datasets as tfds
from absl import app, flags, logging

from pgjax.datasets import chartqa, easyvqa
from pgjax.errors import UserError

BUILDERS = dict(chartqa=(chartqa, chartqa.ChartQA), easyvqa=(easyvqa, easyvqa.EasyVQA))

FLAGS = flags.FLAGS
flags.DEFINE_string("raw", None, "Folder of the official download.")
flags.DEFINE_string("out", None, "Where prepared data sets live; default $TFDS_DATA_DIR.")
flags.DEFINE_list("parts", None, "Parts to prepare; default all.")


def prepare(dataset: str, raw: str | None, out: str, parts: list[str] | None = None) -> list[str]:
  """Writes the data set below `out`; one line for each part that is there afterwards."""
  if dataset not in BUILDERS:
    raise UserError(f"pgjax.prepare knows {', '.join(BUILDERS)}, not '{dataset}'.")
  module, builder_class = BUILDERS[dataset]
  if module.PARTS and not raw:
    raise UserError(f"pgjax.prepare {dataset} needs --raw=DIR, the folder of its download.")
  parts = tuple(parts or module.PARTS)
  module.check(raw, parts)
  tfds.disable_progress_bar()
  return [_prepare_one(builder_class, raw, out, part) for part in parts or [None]]


def _prepare_one(builder_class, raw, out, part) -> str:
  name = builder_class.name if part is None else f"{builder_class.name}/{part}"
  sys.stderr.write(f"Preparing {name} ...\n")
  try:
    builder = builder_class(data_dir=out, config=part, file_format="array_record")
    with (
      tempfile.TemporaryDirectory() as downloads,  # Nothing is downloaded; TFDS wants the folder.
      contextlib.redirect_stdout(io.StringIO()),
    ):
      config = tfds.download.DownloadConfig(manual_dir=raw)
      builder.download_and_prepare(download_dir=downloads, download_config=config)
  except OSError as error:
    raise UserError(f"{out} cannot be written: {error.strerror or error}.") from None
  sizes = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
  return f"{name}: {sizes} in {builder.data_path}"


def main(argv):
  """One data set."""
  if len(argv) != 2:
    raise UserError(f"Name one data set: python -m pgjax.prepare {'|'.join(BUILDERS)} --raw=DIR")
  logging.set_verbosity(logging.WARNING)
  out = FLAGS.out or os.environ.get("TFDS_DATA_DIR") or pathlib.Path("~/tensorflow_datasets")
  for line in prepare(argv[1], FLAGS.raw, str(pathlib.Path(out).expanduser()), FLAGS.parts):
    sys.stdout.write(line + "\n")


def run(argv):
  """`main`, with a user's mistake told in its one sentence."""
  try:
    main(argv)
  except UserError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(1)


if __name__ == "__main__":
  app.run(run)
