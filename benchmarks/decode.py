"""Which generates answers faster, pgjax or transformers?

  python benchmarks/decode.py [--device=cpu|gpu] [--only=REGEX] [--torch_python=PYTHON]

Both sides get the same random weights (the 100 M parameters of benchmarks/step.py), images and
prompts without padding, and generate all tokens: no answer ends early. Each side has its own
process, and they take turns. Most answers must be equal, token for token. A row: new tokens a
second (prefill included), "of products" (the FLOPs a second of the products with weights that
the answers need, over those of each side's own product of two large matrices, measured in the same
rounds: what its library reaches), peak memory while generating, and the share of equal answers.
Packages: requirements-parity.txt.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import sys
import tempfile
from typing import Any

import numpy as np
import step
from side import Side

SIDES = step.ROOT / "benchmarks" / "decode_sides.py"
METHODS = {
  "greedy": ("greedy", {}),
  "beam(3)": ("beam(3, length_penalty=1.0)", dict(num_beams=3, length_penalty=1.0)),
}
RES = dict(cpu=112, gpu=224)
HEAD = (
  "| method | tokens/s pgjax | tokens/s transformers | ratio | of products pgjax"
  " | of products transformers | MB pgjax | MB transformers | same |"
)
PROMPT_LEN, NEW_TOKENS, BATCH, ROUNDS = 16, 64, 32, 3


def write_batch(path: pathlib.Path, shape: step.Shape, res: int) -> None:
  """Images and prompts."""
  rng = np.random.default_rng(1)
  text = rng.integers(4, shape.llm["rows"], (BATCH, PROMPT_LEN)).astype(np.int32)
  image = rng.uniform(-1, 1, (BATCH, res, res, 3)).astype(np.float32)
  ones = np.ones_like(text)
  np.savez(path, image=image, text=text, mask_ar=0 * ones, mask_input=ones)


def measured(spec: dict[str, Any], pythons: dict[str, str]) -> dict[str, Any]:
  """{side: its measurements}."""
  sides, results = {}, {}
  for name in step.NAMES:
    sides[name] = Side(name, pythons[name], spec, SIDES)
    results[name] = sides[name].answer()
  rounds = {name: [] for name in step.NAMES}
  for number in range(ROUNDS):
    for name in step.NAMES if number % 2 == 0 else step.NAMES[::-1]:
      product = sides[name].answer(f"products {step.PRODUCTS}")
      rounds[name].append((sides[name].answer("steps 1"), product))
  flops, of_product = results["pgjax"].pop("flops"), 2 * step.PRODUCT**3
  for name in step.NAMES:
    seconds = statistics.median(answers["seconds"] for answers, _ in rounds[name])
    product = statistics.median(product["seconds"] for _, product in rounds[name])
    results[name] |= sides[name].end()
    results[name] |= dict(tokens_per_second=BATCH * NEW_TOKENS / seconds, rounds=rounds[name])
    results[name]["of_products"] = flops / seconds / (step.PRODUCTS * of_product / product)
  return results


def same(results: dict[str, Any]) -> float:
  """The share of equal answers; exits if the two compute different things."""
  ours, theirs = (np.array(results[name].pop("tokens")) for name in step.NAMES)
  share = float((ours == theirs).all(axis=1).mean())
  if share < 0.8:
    first = [int(np.argmax(row)) for row in ours != theirs if row.any()]
    raise SystemExit(
      f"Only {share:.0%} of the answers are equal; the others differ from tokens {first}."
    )
  return share


def main() -> None:
  """Prints the table; --json writes all measurements."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
  parser.add_argument("--only", default=".*", help='a regex over "greedy" and "beam(3)"')
  parser.add_argument("--attention", default="eager", help="theirs; Gemma 2's soft-cap wants eager")
  parser.add_argument("--torch_python", default=sys.executable, help="the other side's interpreter")
  parser.add_argument("--json", type=pathlib.Path)
  args = parser.parse_args()
  sys.path.insert(0, str(step.ROOT))
  os.environ["JAX_PLATFORMS"] = "cpu"  # Of this process, which only writes files.
  pythons = dict(zip(step.NAMES, (sys.executable, args.torch_python), strict=True))
  res, everything = RES[args.device], {}
  shape = step.SHAPES["mid"]._replace(res=res)
  print(f"{HEAD}\n{'| --- ' * HEAD.count(' | ')}| --- |")
  with tempfile.TemporaryDirectory() as folder:
    files = dict(weights=f"{folder}/weights", data=f"{folder}/data.npz")
    step.write_weights(pathlib.Path(files["weights"]), shape)
    write_batch(pathlib.Path(files["data"]), shape, res)
    for method, (ours, theirs) in METHODS.items():
      if not re.fullmatch(args.only, method):
        continue
      spec = dict(files, device=args.device, res=res, text_len=PROMPT_LEN, new_tokens=NEW_TOKENS)
      spec |= dict(ours=ours, theirs=theirs, attention=args.attention)
      results = measured(spec, pythons)
      share = same(results)
      speeds = [results[name]["tokens_per_second"] for name in step.NAMES]
      cells = [method, *(f"{speed:.4g}" for speed in speeds), f"{speeds[0] / speeds[1]:.2f}"]
      cells += [f"{results[name]['of_products']:.0%}" for name in step.NAMES]
      cells += [f"{results[name]['peak_step'] / step.MB:,.0f}" for name in step.NAMES]
      print("| " + " | ".join([*cells, f"{share:.0%}"]) + " |", flush=True)
      everything[method] = results
  if args.json:
    args.json.write_text(json.dumps(everything, indent=2))


if __name__ == "__main__":
  main()
