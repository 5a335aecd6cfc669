"""The two programs that step.py compares: each loads, runs its first steps, then follows requests.

Usage: `python step_sides.py pgjax|transformers SPEC`, SPEC in JSON. It prints one JSON object a
line: first the trained parameters and the losses of the first steps, then the wall-clock and CPU
seconds of each `steps N` on stdin, and at `end` its memory. The transformers side imports no pgjax.
"""

import ctypes
import json
import os
import pathlib
import re
import sys
import time

import numpy as np

FIRST_STEPS = 3  # For compilation, caches, and the losses to compare.
PRODUCT = 2048  # The side of square matrices, whose product shows what the library reaches.
STATUS, CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
LR, CLIP = 1e-4, 1.0


def serve(first, step, gpu_peak=None, product=None, wait=None):
  """Reports the first steps, then follows requests. `step()` returns when its work is done.

  product: computes one matrix product of side PRODUCT. wait: called with the last result of a
  request, if `step()` may return earlier. Not ru_maxrss: a process inherits it from its parent.
  """
  print(json.dumps(first), flush=True)
  memory = dict(peak_all=peak_of_process())
  ctypes.CDLL(None).malloc_trim(0)  # Returns memory freed after loading and compilation.
  CLEAR.write_text("5")  # Resets the peak (proc_pid_clear_refs(5)).
  for request in sys.stdin:
    if request.strip() == "end":
      memory["peak_step"] = gpu_peak() if gpu_peak else peak_of_process()
      memory["peak_all"] = max(memory.values())
      print(json.dumps(memory), flush=True)
      return
    kind, number = request.split()
    call = dict(steps=step, products=product)[kind]
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(int(number)):
      result = call()
    if wait:
      wait(result)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    print(json.dumps(dict(seconds=seconds, cpu_seconds=cpu)), flush=True)


def product_of_jax(dtype):
  """Computes one matrix product of side PRODUCT; compiled."""
  import jax

  square = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT), dtype)
  multiply = jax.jit(jax.numpy.dot)
  multiply(square, square).block_until_ready()
  return lambda: multiply(square, square).block_until_ready()


def product_of_torch(device):
  """The same in torch; in bfloat16 on a GPU."""
  import torch

  gpu = device.type == "cuda"
  dtype = torch.bfloat16 if gpu else torch.float32
  square = torch.randn(PRODUCT, PRODUCT, dtype=dtype, device=device)

  def product():
    torch.mm(square, square)
    if gpu:
      torch.cuda.synchronize()

  product()
  return product


def peak_of_process():
  """Bytes."""
  return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1])


def pgjax(spec):
  """Our step as pgjax.train builds it, on one device."""
  import jax
  import ml_collections

  from configs import common
  from pgjax.checkpoints import initial, source
  from pgjax.distributed import mesh as mesh_lib
  from pgjax.models import paligemma
  from pgjax.params import of_model, rules as param_rules, tree as param_tree
  from pgjax.planning import flops
  from pgjax.training import optimizer as optimizer_lib, state as train_state, step as step_lib

  config = common.base()
  remat = dict(defaults=config.remat, none="none", layers="nothing_saveable")[spec["recompute"]]
  dtype = dict(cpu="float32", gpu="bfloat16")[spec["device"]]
  config.update(res=spec["res"], text_len=spec["text_len"], dtype=dtype, remat=remat, lr=LR)
  config.update(grad_clip_norm=CLIP, params=[tuple(rule) for rule in spec["params"]])
  config.schedule = ml_collections.ConfigDict(dict(decay_type="const"))
  config.input.batch_size = spec["batch"]
  config.model = dict(source.open_source(spec["weights"]).model, dtype=dtype, remat=remat)
  model = paligemma.Model(**config.model)
  mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
  leaves = of_model.stored_params(model, config)
  names = param_rules.trained_names(leaves.rules)
  tx = optimizer_lib.make(config, 1000, names)
  abstract = train_state.abstract_state(model, tx, config, mesh)
  values = initial.load_initial(spec["weights"], abstract.params, leaves)
  state = [train_state.init(model, tx, config, mesh, loaded=values)]
  trained = sum(leaf.size for leaf in param_tree.split(state[0].params, names)[0].values())
  del values
  batch = jax.device_put(dict(np.load(spec["data"])), mesh_lib.batch_sharding(mesh))
  train_step = step_lib.jitted(model, tx, config, mesh)

  def update():
    state[0], metrics = train_step(state[0], batch)
    return float(metrics["training_loss"])

  stats = jax.devices()[0].memory_stats
  gpu_peak = (lambda: stats()["peak_bytes_in_use"]) if spec["device"] == "gpu" else None
  first = dict(trained=trained, flops=flops.of_step(config, model, leaves))
  first["losses"] = [update() for _ in range(FIRST_STEPS)]
  serve(first, update, gpu_peak, product_of_jax(dtype))


def transformers(spec):
  """The usual loop of torch around PaliGemmaForConditionalGeneration."""
  import torch

  gpu = spec["device"] == "gpu"
  device = torch.device("cuda" if gpu else "cpu")
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = torch_model(spec, device)
  inputs = torch_inputs(np.load(spec["data"]), model.config, device)
  moving = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(moving, lr=LR, weight_decay=0.0, fused=True)

  def update():
    with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
      loss = model(**inputs, use_cache=False).loss  # As transformers 5 trains by itself.
    loss.backward()
    torch.nn.utils.clip_grad_norm_(moving, CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()

  first = dict(trained=sum(p.numel() for p in moving))
  first["losses"] = [update() for _ in range(FIRST_STEPS)]
  serve(first, update, torch.cuda.max_memory_allocated if gpu else None, product_of_torch(device))


def torch_model(spec, device):
  """The model with trained parameters in float32 and the others in `frozen`."""
  import peft
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
  quantized = None
  if spec["method"] == "qlora":
    quantized = transformers.BitsAndBytesConfig(
      load_in_4bit=True,
      bnb_4bit_quant_type="nf4",
      bnb_4bit_compute_dtype=torch.bfloat16,
      llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head"],
    )
  model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
    spec["weights"],
    attn_implementation="eager",  # Gemma 2's soft-cap; transformers 5 refuses the others.
    dtype=getattr(torch, spec["frozen"]) if "lora" in spec["method"] else torch.float32,
    quantization_config=quantized,
    device_map=device,
  )
  # Before peft, which marks inputs for it. By itself only its preparation for k-bit training does.
  recompute = spec["recompute"] == "layers" or (spec["recompute"] == "defaults" and quantized)
  if quantized:
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=recompute)
  elif recompute:
    model.gradient_checkpointing_enable(dict(use_reentrant=False))
  if "lora" in spec["method"]:
    lora = peft.LoraConfig(
      r=spec["lora"]["rank"],
      lora_alpha=spec["lora"]["alpha"],
      target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
    )
    return peft.get_peft_model(model, lora).train()
  pattern = {
    "full": ".*",
    "decoder": ".*language_model.*",
    "attention": ".*language_model.*self_attn.*",
  }
  for name, parameter in model.named_parameters():
    parameter.requires_grad_(bool(re.fullmatch(pattern[spec["method"]], name)))
    if not parameter.requires_grad:
      parameter.data = parameter.data.to(getattr(torch, spec["frozen"]))
  return model.train()  # No dropout in it; older versions know no prefix when they evaluate.


def torch_inputs(data, config, device):
  """Images before text; bidirectional attention in the prefix; labels only on the suffix."""
  import torch

  text = torch.tensor(data["text"], dtype=torch.long)
  learned = torch.tensor(data["mask_loss"], dtype=torch.long)
  patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
  images = torch.full((len(text), patches), config.image_token_index)
  nothing = torch.zeros_like(images)
  inputs = dict(
    input_ids=torch.cat([images, text], 1),
    pixel_values=torch.tensor(data["image"]).permute(0, 3, 1, 2).contiguous(),
    attention_mask=torch.ones(len(text), patches + text.shape[1], dtype=torch.long),
    token_type_ids=torch.cat([nothing, learned], 1),
    labels=torch.cat([nothing - 100, torch.where(learned == 1, text, -100)], 1),
  )
  return {name: tensor.to(device) for name, tensor in inputs.items()}


if __name__ == "__main__":
  dict(pgjax=pgjax, transformers=transformers)[sys.argv[1]](json.loads(sys.argv[2]))
