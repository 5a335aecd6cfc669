"""How much does one decoded token of PaliGemma 3B move, compiled for a GPU that is not there?

  python benchmarks/decode_compiled.py [--device=H200] [--only=REGEX] [--hlo=DIR]

XLA's GPU compiler compiles the decode program of pgjax/inference/decode.py from abstract shapes, on
a machine without a GPU; it needs the wheels of requirements-plan.txt. A row: gigabytes (1e9 bytes)
that the loop's body reads and writes for one token of all rows, its kernels, its modelled
milliseconds (bytes at the GPU's bandwidth plus 3 us a kernel; no time was measured), temporaries
of the whole program, seconds of compilation. --hlo writes each program as text.
"""

import argparse
import os
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pgjax.planning import gpus

PALIGEMMA1, PALIGEMMA2 = "gemma_2b", "gemma2_2b"
BF16, INT8, NF4 = (f'freeze("{dtype}")' for dtype in ("bfloat16", "int8", "nf4"))
LORA, QLORA = (f'lora(rank=8, base="{dtype}")' for dtype in ("bfloat16", "nf4"))
LAYERS = "llm/layers/(attn|mlp)/.*"
TEXT_LEN, NEW_TOKENS, LAUNCH = 32, 64, 3e-6
# name: (variant, batch, devices, how the text tower's matrices are stored, method)
CASES = {
  "bf16_b64": (PALIGEMMA2, 64, 1, BF16, "greedy"),
  "int8_b64": (PALIGEMMA2, 64, 1, INT8, "greedy"),
  "nf4_b64": (PALIGEMMA2, 64, 1, NF4, "greedy"),
  "lora_b64": (PALIGEMMA2, 64, 1, LORA, "greedy"),
  "qlora_b64": (PALIGEMMA2, 64, 1, QLORA, "greedy"),
  "bf16_b1": (PALIGEMMA2, 1, 1, BF16, "greedy"),
  "int8_b1": (PALIGEMMA2, 1, 1, INT8, "greedy"),
  "nf4_b1": (PALIGEMMA2, 1, 1, NF4, "greedy"),
  "bf16_beam3_b16": (PALIGEMMA2, 16, 1, BF16, "beam(3)"),
  "paligemma1_b64": (PALIGEMMA1, 64, 1, BF16, "greedy"),
  "fsdp8_b64": (PALIGEMMA2, 64, 8, BF16, "greedy"),
}


def compiled(variant, batch_size, num_devices, stored, method, device):
  """The decode program of a case, compiled for `num_devices` of that GPU."""
  import jax
  import ml_collections
  import numpy as np

  from pgjax.checkpoints import load as load_params
  from pgjax.config import decode_method
  from pgjax.distributed import mesh as mesh_lib, sharding
  from pgjax.inference import decode
  from pgjax.models import paligemma
  from pgjax.params import of_model
  from pgjax.planning import compiler

  params = [(LAYERS, stored), (".*", BF16)]
  config = ml_collections.ConfigDict(
    dict(params=params, dtype="bfloat16", res=224, sharding_strategy=[(".*", 'fsdp("data")')])
  )
  mesh = mesh_lib.make_mesh([("data", -1)], compiler.devices(device, num_devices))
  model = paligemma.Model(
    img=dict(variant="So400m/14"), llm=dict(variant=variant), dtype="bfloat16", remat="none"
  )
  leaves = of_model.stored_params(model, config)
  abstract = load_params.abstract_params(leaves, config, mesh)
  run = decode.jitted(
    model,
    mesh,
    sharding.shardings_of(abstract),
    max_decode_len=NEW_TOKENS,
    method=decode_method.parse(method, "method"),
    readable=sharding.for_model(leaves, mesh),
  )
  text = ((TEXT_LEN,), np.int32)
  shapes = dict(image=((224, 224, 3), np.float32), text=text, mask_ar=text, mask_input=text)
  batch = {
    name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=mesh_lib.batch_sharding(mesh))
    for name, (shape, dtype) in (shapes | dict(_mask=((), np.bool_))).items()
  }
  return jax.jit(run).lower(abstract, batch).compile()


def loop_body(text):
  """Kernels of the loop over tokens, whose trip count depends on the data: (costs, names)."""
  from pgjax.planning import hlo_text

  program, entry = hlo_text.parse(text)
  loops = [i for i in program[entry] if i.op == "while" and "known_trip_count" not in i.attributes]
  (loop,) = loops
  return list(_kernels(program, hlo_text.called(loop, "body")[0]))


def _kernels(program, name):
  """(instruction, cost) of a computation, its calls and, once an iteration, its loops."""
  from pgjax.planning import hlo_text, timeline

  types = {i.name: i.type for i in program[name]}
  for i in program[name]:
    inner = hlo_text.called(i, "body" if i.op == "while" else "calls|to_apply")
    if i.op in timeline.FREE or i.op.endswith("-done") or i.op == "async-update":
      continue
    if i.op in ("call", "async-start", "while") and inner:
      trips = re.search(r'known_trip_count":\{"n":"(\d+)"', i.attributes)
      for _ in range(int(trips[1]) if trips else 1):
        yield from _kernels(program, inner[0])
    elif i.op != "conditional":
      yield i, hlo_text.cost(i, types, program)


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--device", default="H200", choices=list(gpus.GPUS))
  parser.add_argument("--only", default=".*", help="a regex over the names of the cases")
  parser.add_argument("--hlo", type=pathlib.Path, help="a folder for the compiled programs")
  args = parser.parse_args()
  if not (named := [name for name in CASES if re.fullmatch(args.only, name)]):
    sys.exit(f"error: --only={args.only} matches none of {', '.join(CASES)}.")
  from pgjax.planning import compiler  # After --help: it imports JAX.

  if not compiler.can_compile_for_gpus():
    sys.exit(
      "error: XLA's GPU compiler is not installed: pip install --no-deps -r requirements-plan.txt"
      " (docs/plan.md)."
    )
  bandwidth = gpus.GPUS[args.device].bandwidth
  print("| case | GB a token | kernels | modelled ms | temporaries, GB | compiled in s |")
  print("| --- | --- | --- | --- | --- | --- |")
  for name in named:
    start = time.monotonic()
    program = compiled(*CASES[name], args.device)
    text, seconds = program.as_text(), time.monotonic() - start
    kernels = loop_body(text)
    moved = sum(cost.bytes for _, cost in kernels)
    milliseconds = 1e3 * (moved / bandwidth + LAUNCH * len(kernels))
    temporaries = program.memory_analysis().temp_size_in_bytes
    cells = [name, f"{moved / 1e9:.2f}", str(len(kernels)), f"{milliseconds:.2f}"]
    cells += [f"{temporaries / 1e9:.2f}", f"{seconds:.0f}"]
    print("| " + " | ".join(cells) + " |", flush=True)
    if args.hlo:
      args.hlo.mkdir(parents=True, exist_ok=True)
      (args.hlo / f"{name}.txt").write_text(text)


if __name__ == "__main__":
  if any(os.environ.get(key) != value for key, value in gpus.ENVIRONMENT.items()):
    os.execvpe(sys.executable, [sys.executable, *sys.argv], {**os.environ, **gpus.ENVIRONMENT})
  main()
