"""How much memory does a training step of PaliGemma need on a GPU, without having it?

  python benchmarks/memory.py [--device=H200] [--only=REGEX] [--hlo=DIR]

XLA's GPU compiler compiles the real step from abstract shapes, on a machine without a GPU; it needs
the wheels of requirements-plan.txt. A row: gigabytes (1e9 bytes) of arguments, of temporaries,
their sum, and seconds of compilation. Not included: cuBLAS workspaces, fragmentation, the CUDA
context. --hlo writes each compiled program as text, and prints what a fused kernel multiplies.
"""

import argparse
import os
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from configs import common
from pgjax.planning import gpus

FULL = dict(params=[(".*", "train")])
ATTENTION = dict(
  params=[("llm/layers/attn/.*", "train"), (".*", 'freeze("bfloat16")')],
  optax_name="big_vision.sgd",
  grad_clip_norm=None,
  wd=None,
)
NO_VIT = dict(
  params=[("img/head/.*", "train"), ("img/.*", 'freeze("bfloat16")'), ("llm/.*", "train")]
)
ADAM8 = dict(optax_name="pgjax.adam8bit")
LORA, QLORA = (dict(params=common.TUNE[name]) for name in ("lora", "qlora"))
F32, BF16 = dict(dtype="float32"), dict(dtype="bfloat16")
AT_448 = dict(res=448, text_len=512)
AT_896 = dict(res=896, text_len=512)
MICRO4 = dict(microbatches=4)
VIDEO = dict(num_frames=16)
PLAIN, CHUNKED = (dict(attention=name) for name in ("plain", "chunked"))
FLASH, TRITON = dict(attention="flash"), dict(attention="triton")
LEAST, REFERENCE, PRODUCTS, ATTENTION_OUT, OUTPUTS, GATE = (
  dict(remat=name)
  for name in (
    *("least_memory", "nothing_saveable", "products_saveable", "attention_saveable"),
    *("outputs_saveable", "mlp_gate_saveable"),
  )
)
# name: (batch, devices, fields that differ from PaliGemma 2 3B, 224 px, 128 text tokens)
CASES = {
  "full_f32_b32": (32, 1, FULL | F32),
  "full_f32_b64": (64, 1, FULL | F32),
  "full_b32": (32, 1, FULL | BF16),
  "full_b32_least": (32, 1, FULL | BF16 | LEAST),
  "full_b32_reference": (32, 1, FULL | BF16 | REFERENCE),
  "full_b32_products": (32, 1, FULL | BF16 | PRODUCTS),
  "full_b32_outputs": (32, 1, FULL | BF16 | OUTPUTS),
  "full_b32_outputs_flash": (32, 1, FULL | BF16 | OUTPUTS | FLASH),
  "full_b32_gate": (32, 1, FULL | BF16 | GATE),
  "full_b32_products_flash": (32, 1, FULL | BF16 | PRODUCTS | FLASH),
  "full_b32_micro4": (32, 1, FULL | BF16 | MICRO4),
  "full_b32_micro4_bf16": (32, 1, FULL | BF16 | MICRO4 | dict(accumulation_dtype="bfloat16")),
  "full_b64": (64, 1, FULL | BF16),
  "no_vit_b32": (32, 1, NO_VIT | BF16),
  "no_vit_adam8bit_b32": (32, 1, NO_VIT | BF16 | ADAM8),
  "no_vit_adam_bf16_b32": (32, 1, NO_VIT | BF16 | dict(optax_name="pgjax.adam_bf16")),
  "no_vit_lion_b32": (32, 1, NO_VIT | BF16 | dict(optax_name="scale_by_lion")),
  "full_adam8bit_b32": (32, 1, FULL | BF16 | ADAM8),
  "attention_b32": (32, 1, ATTENTION | BF16),
  "attention_b32_products": (32, 1, ATTENTION | BF16 | PRODUCTS),
  "attention_b8": (8, 1, ATTENTION | BF16),
  "lora_b32": (32, 1, LORA | BF16),
  "lora_b32_outputs": (32, 1, LORA | BF16 | OUTPUTS),
  "lora_b32_products": (32, 1, LORA | BF16 | PRODUCTS),
  "qlora_b32": (32, 1, QLORA | BF16),
  "full_448_b8": (8, 1, FULL | BF16 | AT_448),
  "full_896_b2": (2, 1, FULL | BF16 | AT_896),
  "full_896_b2_attention": (2, 1, FULL | BF16 | AT_896 | ATTENTION_OUT),
  **{
    f"full_{size}_{policy}": (batch, 1, FULL | BF16 | resolution | remat)
    for size, batch, resolution in (
      *(("448_b8", 8, AT_448), ("896_b2", 2, AT_896)),
      *(("896_b3", 3, AT_896), ("896_b4", 4, AT_896), ("896_b8", 8, AT_896)),
    )
    for policy, remat in dict(outputs=OUTPUTS, gate=GATE, products=PRODUCTS).items()
  },
  "full_448_b32": (32, 1, FULL | BF16 | AT_448),
  "full_448_b32_least": (32, 1, FULL | BF16 | AT_448 | LEAST),
  "full_896_b8": (8, 1, FULL | BF16 | AT_896),
  "full_896_b8_least": (8, 1, FULL | BF16 | AT_896 | LEAST),
  "lora_896_b16": (16, 1, LORA | BF16 | AT_896),
  "lora_896_b16_plain": (16, 1, LORA | BF16 | AT_896 | PLAIN),
  "lora_896_b16_chunked": (16, 1, LORA | BF16 | AT_896 | CHUNKED),
  "qlora_896_b4": (4, 1, QLORA | BF16 | AT_896),
  "lora_video_b8": (8, 1, LORA | BF16 | VIDEO),
  "full_fsdp8_b64": (64, 8, FULL | BF16),
  "full_fsdp8_b64_products": (64, 8, FULL | BF16 | PRODUCTS),
  "full_fsdp8_b64_least": (64, 8, FULL | BF16 | LEAST),
}


def run_config(batch_size, fields):
  """The config of a case: the fields that training/step.py and training/optimizer.py read."""
  import ml_collections

  base = dict(
    seed=0,
    res=224,
    num_frames=0,
    text_len=128,
    label_smoothing=0.0,
    microbatches=1,
    accumulation_dtype="float32",
    remat="balanced",
    attention="auto",
    sharding_strategy=[(".*", 'fsdp(axis="data")')],
    input=dict(batch_size=batch_size),
    optax_name="scale_by_adam",
    optax={},
    lr=1e-5,
    lr_mults=None,
    wd=3e-7,
    wd_mults=None,
    grad_clip_norm=1.0,
    stochastic_rounding=False,
    opt_state_memory="device",
    ema_decay=None,
    schedule=dict(decay_type="cosine", warmup_percent=0.05),
  )
  config = ml_collections.ConfigDict(base | fields)
  config.model = dict(
    img=dict(variant="So400m/14"),
    llm=dict(variant="gemma2_2b", final_logits_softcap=0.0),
    dtype=config.dtype,
    remat=config.remat,
    attention=config.attention,
  )
  return config


def compiled_step(batch_size, num_devices, fields, device):
  """The step of a case, compiled for `num_devices` of that GPU."""
  from pgjax.distributed import mesh as mesh_lib
  from pgjax.models import paligemma
  from pgjax.params import of_model, rules as param_rules
  from pgjax.planning import compiler
  from pgjax.training import optimizer, state as train_state, step as step_lib

  config = run_config(batch_size, fields)
  mesh = mesh_lib.make_mesh([("data", -1)], compiler.devices(device, num_devices))
  model = paligemma.Model(**config.model)
  tx = optimizer.make(config, 1000, param_rules.trained_names(of_model.rules(model, config)))
  state = train_state.abstract_state(model, tx, config, mesh)
  batch = compiler.abstract_batch(config, mesh)
  return step_lib.jitted(model, tx, config, mesh).lower(state, batch).compile()


def with_trip_counts(text, tokens, train_table):
  """The program with the maximal trip count of its one loop of unknown length, the loss.

  The loop runs only the chunks that have tokens with a loss; a sum of costs must count all.
  """
  from pgjax.layers import cross_entropy

  chunks = -(-tokens // cross_entropy.chunk_size(tokens, train_table))
  lines = text.splitlines()
  for i, line in enumerate(lines):
    if " while(" in line and "known_trip_count" not in line:
      lines[i] = line + f', backend_config={{"known_trip_count":{{"n":"{chunks}"}}}}'
  return "\n".join(lines)


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--device", default="H200", choices=list(gpus.GPUS))
  parser.add_argument("--only", default=".*", help="a regex over the names of the cases")
  parser.add_argument("--hlo", help="a folder for the compiled programs")
  args = parser.parse_args()
  try:
    named = [name for name in CASES if re.fullmatch(args.only, name)]
  except re.error as error:
    sys.exit(f"error: --only={args.only} is not a regular expression: {error}.")
  if not named:
    sys.exit(f"error: --only={args.only} matches none of {', '.join(CASES)}.")
  from pgjax.planning import compiler, hlo_text, kernel_flops  # After --help: they import JAX.

  if not compiler.can_compile_for_gpus():
    sys.exit(
      "error: XLA's GPU compiler is not installed: pip install --no-deps -r requirements-plan.txt"
      " (docs/plan.md)."
    )
  print(
    f"{'case':22s} {'arguments':>9s} {'temporaries':>11s} {'sum':>7s} {'compile':>8s}   GB each"
  )
  for name in named:
    batch_size, num_devices, fields = CASES[name]
    start = time.monotonic()
    compiled = compiled_step(batch_size, num_devices, fields, args.device)
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    seconds = time.monotonic() - start
    row = [b / 1e9 for b in (arguments, temporaries, arguments + temporaries)]
    print(f"{name:22s} {row[0]:9.2f} {row[1]:11.2f} {row[2]:7.2f} {seconds:6.0f} s", flush=True)
    if args.hlo:
      folder = pathlib.Path(args.hlo)
      folder.mkdir(parents=True, exist_ok=True)
      train_table = fields["params"] == FULL["params"]
      tokens = batch_size // num_devices * fields.get("text_len", 128)
      text = with_trip_counts(compiled.as_text(), tokens, train_table)
      (folder / f"{name}.txt").write_text(text)
      parts = hlo_text.executed(text)
      if flops := sum(times * kernel_flops.of(i, types) for i, types, times in parts):
        print(f"{'':22s} and {flops / 1e12:.1f} TFLOP in attention kernels", flush=True)


if __name__ == "__main__":
  if any(os.environ.get(key) != value for key, value in gpus.ENVIRONMENT.items()):
    os.execvpe(sys.executable, [sys.executable, *sys.argv], {**os.environ, **gpus.ENVIRONMENT})
  main()
