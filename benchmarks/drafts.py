"""Would drafts by n-gram look-up (prompt lookup decoding) make greedy decoding faster?

  python benchmarks/drafts.py --tokenizer=tokenizer.model [--data=../shared/data] [--no_timing]

A draft continues the most recent earlier place, in prompt or answer, that ends with the same 3, 2
or 1 tokens; the model then reads K drafted tokens at once and accepts those that it would have
chosen. The best case: a model that answers the truth. The first table has its tokens for each
verified draft, alone and in batches of 16, which take as many steps as their slowest row. The
second has the time of a step that reads 1 + K tokens a row, on this machine, with the 100 M
parameters of step.py and random weights: drafts win where the first figure is larger.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Sequence

import step

BATCH, STEPS, ROUNDS, NGRAM = 16, 16, 5, 3
DRAFTED = (1, 2, 4, 8)


def draft(tokens: Sequence[int], most: int) -> Sequence[int]:
  """Up to `most` tokens that may follow."""
  for n in range(min(NGRAM, len(tokens) - 1), 0, -1):
    for start in range(len(tokens) - n - 1, -1, -1):
      if tokens[start : start + n] == tokens[-n:]:
        return tokens[start + n : start + n + most]
  return ()


def num_steps(prompt: list[int], answer: list[int], most: int) -> int:
  """Steps after the first token, which the prefill chooses."""
  done, steps = 1, 0
  while done < len(answer):
    drafted = draft(prompt + answer[:done], most)
    right = [a == b for a, b in zip(drafted, answer[done:], strict=False)]
    done += [*right, False].index(False) + 1
    steps += 1
  return steps


def receipts(folder: pathlib.Path, encode) -> list[tuple[list[int], list[int]]]:
  """Prompts and JSON answers of SROIE, with <eos>."""
  rows = []
  for split in ("train", "valid", "test"):
    lines = (folder / "sroie" / split / "annotations.jsonl").read_text().splitlines()
    rows += [json.loads(line) for line in lines]
  return [(encode(row["prefix"]), [*encode(row["suffix"]), 1]) for row in rows]


def cells(folder: pathlib.Path, encode) -> list[tuple[list[int], list[int]]]:
  """Prompts and boxes of BCCD's test split, with <eos>."""
  data = json.loads((folder / "bccd/test/_annotations.coco.json").read_text())
  names = {entry["id"]: entry["name"] for entry in data["categories"]}
  answers = []
  for image in data["images"]:
    tokens, labels = [], []
    for entry in data["annotations"]:
      if entry["image_id"] == image["id"]:
        x, y, width, height = entry["bbox"]
        across, down = ((x, x + width), image["width"]), ((y, y + height), image["height"])
        corners = [(down, 0), (across, 0), (down, 1), (across, 1)]
        label = names[entry["category_id"]]
        tokens += encode(" ; ") if labels else []
        tokens += [256_000 + min(1023, int(side[i] / size * 1024)) for (side, size), i in corners]
        tokens += encode(f" {label}")
        labels.append(label)
    answers.append((encode("detect " + " ; ".join(sorted(set(labels)))), [*tokens, 1]))
  return answers


def accepted(rows: list[tuple[list[int], list[int]]], most: int) -> tuple[float, float]:
  """Tokens a step: over all answers, and in batches that end with their slowest row."""
  plain = [len(answer) - 1 for _, answer in rows]
  drafted = [num_steps(prompt, answer, most) for prompt, answer in rows]
  slowest = [
    sum(max(steps[i : i + BATCH]) for i in range(0, len(rows), BATCH)) for steps in (plain, drafted)
  ]
  return sum(plain) / sum(drafted), slowest[0] / slowest[1]


def timed(batch: int, counts: Sequence[int]) -> list[float]:
  """Seconds of a step that reads so many tokens a row; medians of turns."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from pgjax.inference import decode_weights
  from pgjax.layers import kv_cache
  from pgjax.models import paligemma

  shape = step.SHAPES["mid"]
  sizes = dict(shape.llm, vocab_size=shape.llm["rows"], post_norms=True, attn_logits_softcap=50.0)
  del sizes["rows"]
  model = paligemma.Model(dict(shape.img, variant="mid"), dict(sizes, variant="mid"), remat="none")
  slots, text = 160, np.ones((batch, 4), np.int32)
  image = np.zeros((batch, 28, 28, 3), np.float32)
  params = jax.jit(model.init)(jax.random.key(0), image, text, text)["params"]
  llm, config = {"params": params}, model.llm_config
  fuse = lambda layer: decode_weights.fuse(layer, "float32", model.constrain, kernels=False)  # noqa: E731
  layers = jax.jit(lambda: [fuse(a) for a in model.apply(llm, method="layer_params")])()
  heads = (batch, config.num_kv_heads)
  keys, values = (
    jnp.zeros((*heads, config.head_dim, slots)),
    jnp.zeros((*heads, slots, config.head_dim)),
  )
  caches = tuple(kv_cache.Cache(keys, values) for _ in layers)

  @jax.jit
  def run(params, layers, caches, tokens):
    def body(_, state):
      caches, tokens = state
      mask = jnp.ones((*tokens.shape, slots), bool)
      x = params["llm"]["embedder"]["input_embedding"][tokens]
      args = (x, caches, 80 + 0 * tokens, mask, jnp.int32(80), layers)
      h, caches = model.apply({"params": params}, *args, method="extend")
      logits = model.apply({"params": params}, h, method="logits")
      return caches, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return jax.lax.fori_loop(0, STEPS, body, (caches, tokens))[1]

  inputs = [jnp.ones((batch, count), jnp.int32) for count in counts]
  seconds = [[] for _ in counts]
  for turn in range(ROUNDS + 1):
    for times, tokens in zip(seconds, inputs, strict=True):
      began = time.perf_counter()
      jax.block_until_ready(run(params, layers, caches, tokens))
      if turn:  # The first compiles.
        times.append((time.perf_counter() - began) / STEPS)
  return [statistics.median(times) for times in seconds]


def main() -> None:
  """Prints both tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tokenizer", required=True, help="Gemma's")
  parser.add_argument("--data", type=pathlib.Path, default=step.ROOT.parent / "shared/data")
  parser.add_argument("--no_timing", action="store_true")
  args = parser.parse_args()
  import sentencepiece

  encode = sentencepiece.SentencePieceProcessor(model_file=args.tokenizer).encode
  print("| answers | tokens each | K | tokens a step | in batches of 16 |")
  print("| --- | --- | --- | --- | --- |")
  for name, read in dict(receipts=receipts, cells=cells).items():
    rows = read(args.data, encode)
    mean = statistics.mean(len(answer) for _, answer in rows)
    for most in DRAFTED:
      alone, batched = accepted(rows, most)
      print(f"| {name} | {mean:.0f} | {most} | {alone:.2f} | {batched:.2f} |")
  if args.no_timing:
    return
  counts = [1, *(1 + most for most in DRAFTED)]
  print(f"\n| batch | ms a token |{''.join(f' K={most} |' for most in DRAFTED)}")
  print("| --- " * (len(counts) + 1) + "|")
  for batch in (1, 8, 32):
    one, *more = timed(batch, counts)
    ratios = "".join(f" {seconds / one:.2f} |" for seconds in more)
    print(f"| {batch} | {one * 1e3:.1f} |{ratios}", flush=True)


if __name__ == "__main__":
  main()
