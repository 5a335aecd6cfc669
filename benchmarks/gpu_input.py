"""The input pipeline alone, on images that it makes, for benchmarks/gpu.py."""

import os
import pathlib
import tempfile
import time

import numpy as np

from benchmarks import input as input_benchmark

IMAGES, SIZE = 64, (640, 480)


def write_images(folder: pathlib.Path) -> None:
  """JPEG files with edges and smooth parts, as photos have."""
  from PIL import Image

  rng = np.random.default_rng(0)
  for number in range(IMAGES):
    coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
    image = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
    image.paste(Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8)), (80, 60))
    image.save(folder / f"{number:03}.jpg", quality=90)


def examples_per_second(res: int, batches: int) -> float:
  """Of benchmarks/input.py's pgjax side: decoded, resized and tokenized, a thread a core."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write_images(folder)
    rows = input_benchmark.BATCH * (batches + input_benchmark.SKIPPED)
    file = input_benchmark.write_rows(folder, folder, rows)
    cores = len(os.sched_getaffinity(0))
    make = input_benchmark.pgjax(dict(res=res, file=file, cores=cores, workers=0))
    made = make(batches + input_benchmark.SKIPPED)
    for _ in range(input_benchmark.SKIPPED):
      next(made)
    start = time.perf_counter()
    count = sum(1 for _ in made)
    return count * input_benchmark.BATCH / (time.perf_counter() - start)
