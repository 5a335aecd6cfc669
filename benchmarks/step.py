"""Which trains faster and in less memory, pgjax or transformers with PEFT?

  python benchmarks/step.py [--device=cpu|gpu] [--only=REGEX] [--recompute=defaults|none|layers]

Both sides get the same weights, batch, dtype and optimizer (AdamW, clipped to norm 1), each in its
own process, and take turns, so that other load on the machine slows both. A case is a shape (tiny,
or mid with 100 M parameters) and a method. The first losses must agree; without LoRA also those
after two updates. A row: trained parameters, examples/s (from the median of the rounds), peak
memory, and the difference of the first losses. "Of products %" is model FLOPs a second,
recomputation not counted, over those of each side's own product of two large matrices, measured in
the same rounds: what its library reaches. Memory is that of the process on a CPU ("total" with
loading and compilation, "step" while it trains), and the peak of the framework's allocator on a
GPU. For transformers, qlora needs a GPU and bitsandbytes. Packages: requirements-parity.txt.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np
from side import ROOT, Side
from step_sides import PRODUCT

SIDES = ROOT / "benchmarks" / "step_sides.py"
NAMES = ("pgjax", "transformers")
PRODUCTS = 3  # In a round.
MB = 1e6
IMAGE_ROWS = 64  # Of transformers, for <image>, after those of text.
PREFIX = 0.75  # Share of the text; the rest has a loss.


class Shape(NamedTuple):
  """Sizes of a model and of its batch, and how many steps are measured."""

  img: dict[str, int]
  llm: dict[str, int]
  res: int
  text_len: int
  batch: dict[str, int]  # By device.
  rounds: int
  steps: int  # Of each side in a round.


SHAPES = {
  "tiny": Shape(
    img=dict(width=64, depth=2, mlp_dim=256, num_heads=4, patch_size=14),
    llm=dict(width=128, depth=2, mlp_dim=512, num_heads=4, num_kv_heads=2, head_dim=32, rows=1792),
    res=112,
    text_len=32,
    batch=dict(cpu=8, gpu=8),
    rounds=5,
    steps=10,
  ),
  # Vision, layers and token table share 100 M parameters as in PaliGemma 2 3B: 14 to 65 to 21.
  "mid": Shape(
    img=dict(width=320, depth=12, mlp_dim=1200, num_heads=5, patch_size=14),
    llm=dict(
      width=640, depth=11, mlp_dim=2560, num_heads=8, num_kv_heads=4, head_dim=64, rows=33_152
    ),
    res=224,
    text_len=64,
    batch=dict(cpu=2, gpu=32),
    rounds=3,
    steps=1,
  ),
}
LORA = dict(rank=8, alpha=16)
METHODS = ("full", "decoder", "attention", "lora", "qlora")


def rules(method: str, frozen: str) -> list[tuple[str, str]]:
  """`config.params` of a method, with the dtype in which frozen leaves are stored."""
  lora = f"lora(rank={LORA['rank']}, alpha={LORA['alpha']}, base={{base!r}})"
  freeze = (".*", f"freeze({frozen!r})")
  matrices = "llm/layers/(attn|mlp)/.*"
  return {
    "full": [(".*", "train")],
    "decoder": [("llm/.*", "train"), freeze],
    "attention": [("llm/layers/attn/.*", "train"), freeze],
    "lora": [(matrices, lora.format(base=frozen)), freeze],
    "qlora": [(matrices, lora.format(base="nf4")), freeze],
  }[method]


def model_fields(shape: Shape) -> dict[str, Any]:
  """A small PaliGemma 2: norms after each part, both soft-caps on."""
  llm = dict(shape.llm)
  rows = llm.pop("rows") + IMAGE_ROWS
  caps = dict(post_norms=True, attn_logits_softcap=50.0, final_logits_softcap=30.0)
  return dict(
    img=dict(variant="custom", **shape.img),
    llm=dict(variant="custom", vocab_size=rows, **llm, **caps),
  )


def write_weights(folder: pathlib.Path, shape: Shape) -> None:
  """A Hugging Face folder with random weights that bfloat16 holds exactly."""
  import ml_dtypes

  from pgjax import convert
  from pgjax.checkpoints import source as source_lib
  from pgjax.formats import lazy_array
  from pgjax.models import paligemma
  from pgjax.params import of_model

  rng = np.random.default_rng(0)
  model = model_fields(shape)
  leaves = {}
  for name, size in of_model.param_shapes(paligemma.Model(**model), shape.res).items():
    around = 1.0 if re.fullmatch("img/.*/scale", name) else 0.0
    values = around + 0.03 * rng.standard_normal(size, np.float32)
    leaves[name] = lazy_array.of_array(values.astype(ml_dtypes.bfloat16).astype(np.float32))
  source = source_lib.Source(
    name="random",
    path=folder,
    kind="orbax",
    leaves=leaves,
    model=model,
    res=shape.res,
    tokenizer=None,
    image_token=shape.llm["rows"],
    run=None,
  )
  convert.WRITERS["hf"](folder, source, leaves)


def write_batch(path: pathlib.Path, shape: Shape, rows: int) -> None:
  """Images and texts without padding; the last quarter of each text has a loss."""
  rng = np.random.default_rng(1)
  learned = np.arange(shape.text_len + 1) >= PREFIX * shape.text_len
  learned = np.broadcast_to(learned, (rows, shape.text_len + 1)).astype(np.int32)
  np.savez(
    path,
    image=rng.uniform(-1, 1, (rows, shape.res, shape.res, 3)).astype(np.float32),
    text=rng.integers(4, shape.llm["rows"], learned.shape).astype(np.int32),
    mask_ar=learned,
    mask_loss=learned,
  )


def measured(spec: dict[str, Any], shape: Shape, pythons: dict[str, str]) -> dict[str, Any]:
  """{side: measurements} of the sides that can run the case."""
  names = NAMES[:1] if spec["method"] == "qlora" and spec["device"] == "cpu" else NAMES
  sides, results = {}, {}
  for name in names:  # One after the other, so that compilations do not overlap.
    sides[name] = Side(name, pythons[name], spec, SIDES)
    results[name] = sides[name].answer()
  rounds, products = ({name: [] for name in names} for _ in range(2))
  for number in range(shape.rounds):
    for name in names if number % 2 == 0 else names[::-1]:
      products[name].append(sides[name].answer(f"products {PRODUCTS}")["seconds"] / PRODUCTS)
      rounds[name].append(sides[name].answer(f"steps {shape.steps}"))
  for name in names:
    reached = 2 * PRODUCT**3 / statistics.median(products[name])
    seconds = statistics.median(r["seconds"] for r in rounds[name]) / shape.steps
    results[name] |= sides[name].end()
    results[name] |= dict(examples_per_second=spec["batch"] / seconds, rounds=rounds[name])
    results[name] |= dict(of_products=results[NAMES[0]]["flops"] / seconds / reached)
  return results


def check(results: dict[str, Any], spec: dict[str, Any]) -> str:
  """The difference of the first losses; exits if the two compute different things."""
  if len(results) < 2:
    return ""
  ours, theirs = (results[name] for name in NAMES)
  if ours["trained"] != theirs["trained"]:
    raise SystemExit(f"{spec}: trained parameters {ours['trained']} and {theirs['trained']}")
  exact = spec["device"] == "cpu"
  limits = [1e-4 if exact else 2e-2]
  if "lora" not in spec["method"]:  # Each side draws its own factors.
    limits += 2 * [1e-3 if exact else 5e-2]
  apart = [abs(a / b - 1) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
  if any(a > limit for a, limit in zip(apart, limits, strict=False)):
    raise SystemExit(f"{spec}: losses {ours['losses']} and {theirs['losses']}")
  return f"{apart[0]:.0e}"


def row(case: str, results: dict[str, Any], apart: str) -> str:
  """One line of the table, in Markdown."""
  both = [results.get(name) for name in NAMES]
  speeds = [side and side["examples_per_second"] for side in both]
  cells = [case, f"{results[NAMES[0]]['trained']:,}"]
  cells += [f"{speed:.3g}" if speed else "n/a" for speed in speeds]
  cells.append(f"{speeds[0] / speeds[1]:.2f}" if speeds[1] else "")
  cells += [f"{100 * side['of_products']:.0f}" if side else "n/a" for side in both]
  for kind in ("peak_step", "peak_all"):
    cells += [f"{side[kind] / MB:,.0f}" if side else "n/a" for side in both]
  return "| " + " | ".join([*cells, apart]) + " |"


HEAD = (
  "| case | trained | ex/s pgjax | ex/s transformers | ratio | of products % pgjax"
  " | of products % transformers | step MB pgjax | step MB transformers | total MB pgjax"
  " | total MB transformers | losses differ by |"
)


def main() -> None:
  """Prints the table; --json writes all measurements."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
  parser.add_argument("--only", default=".*", help='a regex over cases such as "mid lora"')
  parser.add_argument(
    "--recompute",
    default="defaults",
    choices=["defaults", "none", "layers"],
    help="recomputation of activations: each side's default, none, or all of each layer",
  )
  parser.add_argument("--torch_python", default=sys.executable, help="the other side's interpreter")
  parser.add_argument("--json", type=pathlib.Path)
  args = parser.parse_args()
  sys.path.insert(0, str(ROOT))
  os.environ["JAX_PLATFORMS"] = "cpu"  # Of this process, which only writes files.
  pythons = dict(zip(NAMES, (sys.executable, args.torch_python), strict=True))
  frozen = dict(cpu="float32", gpu="bfloat16")[args.device]
  everything = {}
  print(f"{HEAD}\n{'| --- ' * HEAD.count(' | ')}| --- |")
  with tempfile.TemporaryDirectory() as folder:
    for name, shape in SHAPES.items():
      cases = {m: f"{name} {m}" for m in METHODS if re.fullmatch(args.only, f"{name} {m}")}
      batch = shape.batch[args.device]
      files = dict(weights=f"{folder}/{name}", data=f"{folder}/{name}.npz")
      if cases:
        write_weights(pathlib.Path(files["weights"]), shape)
        write_batch(pathlib.Path(files["data"]), shape, batch)
      for method, case in cases.items():
        spec = dict(files, method=method, device=args.device, batch=batch, res=shape.res)
        spec |= dict(text_len=shape.text_len, recompute=args.recompute, lora=LORA, frozen=frozen)
        results = measured(spec | dict(params=rules(method, frozen)), shape, pythons)
        print(row(case, results, check(results, spec)), flush=True)
        everything[case] = results
  if args.json:
    args.json.write_text(json.dumps(everything, indent=2))


if __name__ == "__main__":
  main()
