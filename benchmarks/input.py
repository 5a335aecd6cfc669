"""How fast are batches made, without a model: pgjax beside datasets, DataLoader and the processor?

  python benchmarks/input.py [--images=../shared/data] [--rows=512] [--workers=0,2] [--rounds=3]

Both sides read the same JSON lines and image files, resize (both with antialiasing), tokenize
prefix and suffix and build batches of 16, in turns, so that both see the same load. Theirs is the
usual loop: `datasets.load_dataset("json")`, a torch DataLoader, and PaliGemmaProcessor (with
Pillow, or torchvision where it is installed) in the collate function. A row: examples a second
after the first batches (median of the rounds), which leaves out the start of worker processes,
and what that is per core. 0 workers are one thread a core for pgjax, and the main process for
DataLoader. Packages: requirements-parity.txt and datasets (--torch_python=PYTHON if elsewhere).
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIDES = ("pgjax", "transformers")
BATCH, TEXT_LEN = 16, 64
SKIPPED = 8  # Batches before the time counts: worker processes have started.


def pgjax(spec):
  """A function from a number of batches to an iterator over them."""
  sys.path.insert(0, str(ROOT))
  from configs import common
  from pgjax.data import pipeline, tokenizer

  config, tiny = common.base(), tokenizer.load("tiny")
  config.res, config.text_len = spec["res"], TEXT_LEN
  pp = f"decode|resize({spec['res']}, antialias=True)|value_range(-1, 1)"
  data = dict(name="jsonl", fname=spec["file"], root="/")
  config.input.update(data=data, pp=pp, batch_size=BATCH)
  config.input.update(num_threads=spec["cores"], num_workers=spec["workers"])
  batches = pipeline.train_batches(config, tiny)

  return lambda count: itertools.islice(batches.at(0), count)


def transformers(spec):
  """As `pgjax`, by the usual loop."""
  os.environ["HF_HUB_OFFLINE"] = "1"
  import datasets
  import torch
  from PIL import Image
  from transformers import AutoProcessor

  datasets.disable_progress_bars()
  torch.set_num_threads(spec["cores"])
  rows = datasets.load_dataset(
    "json", data_files=spec["file"], split="train", cache_dir=spec["folder"]
  )
  processor = AutoProcessor.from_pretrained(f"{spec['folder']}/{spec['res']}")

  def collate(examples):
    images = [Image.open(example["image"]).convert("RGB") for example in examples]
    prefixes = ["<image>" + example["prefix"] for example in examples]
    suffixes = [example["suffix"] for example in examples]
    return processor(
      text=prefixes, images=images, suffix=suffixes, return_tensors="pt", padding="longest"
    )

  def make(count):
    loader = torch.utils.data.DataLoader(
      rows, BATCH, shuffle=True, num_workers=spec["workers"], collate_fn=collate, drop_last=True
    )
    return itertools.islice(loader, count)

  return make


def write_processor(folder, res):
  """PaliGemma's processor files, with the small tokenizer."""
  sys.path.insert(0, str(ROOT))
  from pgjax.data import tokenizer
  from pgjax.huggingface import processor

  files = processor.processor_files(tokenizer.load("tiny").source, res=res, method="bilinear")
  folder.mkdir()
  for name, content in files.items():
    (folder / name).write_bytes(content)


def write_rows(folder, images, rows):
  """JSON lines with that many rows over all images."""
  suffixes = {".jpg", ".jpeg", ".png"}
  paths = sorted(p for p in images.rglob("*") if p.suffix.lower() in suffixes)
  if not paths:
    sys.exit(f"error: --images={images} has no .jpg, .jpeg or .png; name the folder of the images.")
  step = max(1, len(paths) // rows)
  chosen = list(itertools.islice(itertools.cycle(paths[::step]), rows))
  lines = [
    dict(image=str(p), prefix="what is shown?", suffix=f"number {i}") for i, p in enumerate(chosen)
  ]
  file = folder / "train.jsonl"
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(file)


def serve(spec):
  """Prints a line when ready, then for each number of batches on stdin the measured seconds."""
  make = dict(pgjax=pgjax, transformers=transformers)[spec["side"]](spec)
  print("ready", flush=True)
  for line in sys.stdin:
    batches = make(int(line))
    for _ in range(SKIPPED):
      next(batches)
    start = time.perf_counter()
    for _ in batches:
      pass
    del batches  # Ends its workers.
    print(time.perf_counter() - start, flush=True)


def measured(specs, pythons, rounds, batches):
  """{side: examples a second}, in turns."""
  sides, seconds = {}, {side: [] for side in specs}
  for side, spec in specs.items():
    command = [pythons[side], str(pathlib.Path(__file__).resolve()), f"--serve={json.dumps(spec)}"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    sides[side] = subprocess.Popen(command, cwd=spec["folder"], **pipes)
    if sides[side].stdout.readline() != "ready\n":
      sys.exit(f"error: {side} ended with status {sides[side].wait()}; see above.")
  for number in range(rounds):
    for side in sorted(sides, reverse=bool(number % 2)):
      print(batches, file=sides[side].stdin, flush=True)
      seconds[side].append(float(sides[side].stdout.readline()))
  for side in sides.values():
    side.stdin.close()
    side.wait()
  return {
    side: BATCH * (batches - SKIPPED) / statistics.median(times) for side, times in seconds.items()
  }


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--images", type=pathlib.Path, default=ROOT.parent / "shared/data")
  parser.add_argument("--rows", type=int, default=1024, help="of a round; a multiple of 16")
  parser.add_argument("--workers", default="0,2", help="numbers of worker processes")
  parser.add_argument("--res", default="224,448,896")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--torch_python", default=sys.executable, help="the other side's interpreter")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    serve(json.loads(args.serve))
    return
  cores = len(os.sched_getaffinity(0))
  pythons = dict(zip(SIDES, (sys.executable, args.torch_python), strict=True))
  print(f"{cores} cores\n\n| px | workers | pgjax/s | a core | transformers/s | ratio |")
  print("| --- | --- | --- | --- | --- | --- |")
  with tempfile.TemporaryDirectory() as folder:
    scratch = pathlib.Path(folder)
    file = write_rows(scratch, args.images.resolve(), args.rows)
    for res in map(int, args.res.split(",")):
      write_processor(scratch / str(res), res)
      for workers in map(int, args.workers.split(",")):
        fixed = dict(file=file, folder=folder, res=res, workers=workers, cores=cores)
        specs = {side: dict(fixed, side=side) for side in SIDES}
        rates = measured(specs, pythons, args.rounds, args.rows // BATCH)
        ours, theirs = (rates[side] for side in SIDES)
        cells = [res, workers, *(f"{r:.1f}" for r in (ours, ours / cores, theirs))]
        print("| " + " | ".join(map(str, [*cells, f"{ours / theirs:.2f}"])) + " |", flush=True)


if __name__ == "__main__":
  main()
