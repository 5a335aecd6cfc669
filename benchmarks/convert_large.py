"""Time and peak memory of converting a full-size PaliGemma, Hugging Face -> orbax -> Hugging Face.

  python benchmarks/convert_large.py --dir=DIR [--variant=gemma2_2b] [--to=orbax,hf,bv,hf]

Writes a checkpoint with random bfloat16 weights to DIR, runs `python -m pgjax.convert` along the
chain, without and with --verify, each in its own process, compares the last Hugging Face folder
with the first one byte by byte, and prints a line for each step and for a plain copy of the files.
DIR needs space for four models; all output is removed at the end.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import ml_dtypes
import numpy as np
import psutil

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pgjax import convert  # noqa: E402
from pgjax.checkpoints import source as source_lib  # noqa: E402
from pgjax.data import tokenizer  # noqa: E402
from pgjax.formats import lazy_array  # noqa: E402
from pgjax.huggingface import names as hf_names  # noqa: E402
from pgjax.models import paligemma  # noqa: E402
from pgjax.params import of_model  # noqa: E402


def random_source(variant: str) -> source_lib.Source:
  """A model whose leaves are generated, block by block, when they are read."""
  llm = dict(variant=variant, vocab_size=hf_names.VOCAB_SIZE + hf_names.IMAGE_ROWS)
  model = dict(img=dict(variant="So400m/14"), llm=llm)
  leaves = {
    name: random_leaf(shape, seed)
    for seed, (name, shape) in enumerate(
      of_model.param_shapes(paligemma.Model(**model), 224).items()
    )
  }
  return source_lib.Source(
    name="random",
    path=pathlib.Path("random"),
    kind="orbax",
    leaves=leaves,
    model=model,
    res=224,
    tokenizer=tokenizer.TINY.read_bytes(),
    image_token=hf_names.VOCAB_SIZE,
    run=None,
  )


def random_leaf(shape, seed) -> lazy_array.LazyArray:
  """bfloat16 numbers around 0.02; a row depends only on its index."""

  def rows(start, stop):
    values = np.empty((stop - start, *shape[1:]), ml_dtypes.bfloat16)
    for i in range(start, stop):
      rng = np.random.default_rng([seed, i])
      values[i - start] = rng.standard_normal(shape[1:], np.float32) * np.float32(0.02)
    return values

  return lazy_array.LazyArray(tuple(shape), np.dtype(ml_dtypes.bfloat16), rows)


def peak_of(command: list[str]) -> tuple[float, float]:
  """(seconds, peak bytes of the process's own memory, sampled 50 times a second)."""
  start = time.monotonic()
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
  peak, done = 0, threading.Event()

  def watch():
    nonlocal peak
    seen = psutil.Process(process.pid)
    while not done.wait(0.02):
      try:
        peak = max(peak, seen.memory_info().rss)
      except psutil.Error:
        return

  thread = threading.Thread(target=watch)
  thread.start()
  status = process.wait()
  done.set()
  thread.join()
  if status:
    raise SystemExit(f"{' '.join(command)} ended with {status}")
  return time.monotonic() - start, peak


def same_files(a: pathlib.Path, b: pathlib.Path) -> bool:
  """Whether both folders hold the same weight files, byte for byte."""
  names = sorted(p.name for p in a.glob("*.safetensors"))
  if names != sorted(p.name for p in b.glob("*.safetensors")):
    return False
  return all(subprocess.run(["cmp", a / n, b / n], check=False).returncode == 0 for n in names)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--dir", required=True, type=pathlib.Path)
  parser.add_argument("--variant", default="gemma2_2b")
  parser.add_argument("--to", default="orbax,hf")
  args = parser.parse_args()
  folder = args.dir / "convert_large"
  folder.mkdir(parents=True)
  source = random_source(args.variant)
  first = folder / "0-hf"
  convert.WRITERS["hf"](first, source, source.leaves)
  total = sum(leaf.nbytes for leaf in source.leaves.values())
  largest = max(leaf.nbytes for leaf in source.leaves.values())
  print(f"{args.variant}: {total / 1e9:.2f} GB, largest leaf {largest / 2**30:.2f} GiB")
  print(f"allowed: 1.5 x largest leaf + 1 GiB = {1.5 * largest / 2**30 + 1:.2f} GiB")
  start = time.monotonic()
  shutil.copytree(first, folder / "copy")
  print(f"{'plain copy of the files':40} {time.monotonic() - start:6.1f} s")
  shutil.rmtree(folder / "copy")
  before = first
  for i, to in enumerate(args.to.split(","), 1):
    after = folder / f"{i}-{to}{'.npz' if to == 'bv' else ''}"
    command = [sys.executable, "-m", "pgjax.convert", f"--src={before}", f"--dst={after}"]
    for verify in (False, True):
      seconds, peak = peak_of([*command, f"--to={to}", *["--verify"] * verify])
      what = f"{before.name} -> {after.name}{', verified' * verify}"
      print(f"{what:40} {seconds:6.1f} s  peak {peak / 2**30:5.2f} GiB", flush=True)
      if not verify:
        shutil.rmtree(after) if after.is_dir() else after.unlink()
    if before != first:
      shutil.rmtree(before) if before.is_dir() else before.unlink()
    before = after
  if to == "hf":
    print(f"equal to the first folder, byte for byte: {same_files(first, before)}")
  shutil.rmtree(folder)


if __name__ == "__main__":
  main()
