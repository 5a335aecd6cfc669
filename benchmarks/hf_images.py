"""How far are pgjax's pixels from those of Hugging Face's PaliGemma processor, on 50 real images?

Prints a table for docs/weights.md: each of our resize ops against the processor's two backends
(Pillow; torchvision), as the largest and the mean difference on the scale of [-1, 1], where one
level of 8 bits is 0.0078. Needs requirements-parity.txt and the folder of images; torchvision's
columns appear where it is installed (torchvision 0.28.0 belongs to torch 2.13.0).

python benchmarks/hf_images.py [--images=../shared/data] [--res=224]
"""

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
import tempfile

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"  # Before transformers is imported.

from pgjax.data import tokenizer  # noqa: E402
from pgjax.data.pp import parse  # noqa: E402
from pgjax.huggingface import processor as processor_lib  # noqa: E402

FOLDERS = {"chartqa/val/png/*.png": 20, "bccd/test/*.jpg": 15, "sroie/train/**/*.*g": 15}
ROWS = (  # The op, and the `method` that the processor is written with.
  ('resize({res}, method="bicubic")', "bicubic"),
  ("resize({res}, antialias=True)", "bicubic"),
  ("resize({res})", "bicubic"),
  ("resize({res}, antialias=True)", "bilinear"),
  ("resize({res})", "bilinear"),
)


def main():
  """Prints the versions and the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=pathlib.Path, default=ROOT.parent / "shared/data")
  parser.add_argument("--res", type=int, default=224)
  args = parser.parse_args()
  for package in ("transformers", "torch"):
    if importlib.util.find_spec(package) is None:
      sys.exit(f"error: {package} is not installed: pip install -r requirements-parity.txt.")
  paths = [p for glob, n in FOLDERS.items() for p in sorted(args.images.glob(glob))[:n]]
  if not paths:
    folders = ", ".join(FOLDERS)
    sys.exit(f"error: --images={args.images} has none of {folders}; name the folder of the images.")
  ways = ["pillow", "torchvision"] if importlib.util.find_spec("torchvision") else ["pillow"]
  versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", *ways)]
  print(f"{len(paths)} images, {args.res} px; {', '.join(versions)}\n")
  heads = ["op of pgjax", "processor's `resample`", *(f"{w}: max | mean" for w in ways)]
  print("| " + " | ".join(heads) + " |\n" + "| --- " * (2 + 2 * len(ways)) + "|")
  for op, method in ROWS:
    op = op.format(res=args.res)
    prepare = parse.parse(f"decode(precise=True)|{op}|value_range(-1, 1)")
    cells = []
    for way in ways:
      theirs = processor(args.res, method, fast=way == "torchvision")
      largest, mean = differences(prepare, theirs, paths)
      cells += [f"{largest:.4f}", f"{mean:.5f}"] if largest else ["0", "0"]
    print(f"| `{op}` | {method} | {' | '.join(cells)} |")


def processor(res: int, method: str, fast: bool):
  """The image processor of a folder that pgjax writes."""
  from transformers import AutoImageProcessor

  source = tokenizer.load("tiny").source
  files = processor_lib.processor_files(source, res=res, method=method)
  with tempfile.TemporaryDirectory() as folder:
    for name, content in files.items():
      (pathlib.Path(folder) / name).write_bytes(content)
    return AutoImageProcessor.from_pretrained(folder, use_fast=fast)


def differences(prepare, processor, paths) -> tuple[float, float]:
  """(largest, mean) absolute difference over all pixels of all images."""
  largest, total = 0.0, 0.0
  for path in paths:
    ours = prepare({"image": path.read_bytes()})["image"]
    theirs = processor(Image.open(path), return_tensors="pt")["pixel_values"][0].numpy()
    difference = np.abs(ours.astype(np.float64) - theirs.transpose(1, 2, 0))
    largest, total = max(largest, difference.max()), total + difference.mean()
  return float(largest), float(total / len(paths))


if __name__ == "__main__":
  main()
