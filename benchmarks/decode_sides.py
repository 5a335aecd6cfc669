"""The two programs that decode.py compares, with the protocol of step_sides.py.

Usage: `python decode_sides.py pgjax|transformers SPEC`, SPEC in JSON. The first line of output has
the tokens of the answers; a step is one batch of answers.
"""

import json
import math
import os
import re
import sys

import numpy as np
from step_sides import product_of_jax, product_of_torch, serve


def pgjax(spec):
  """The decode that pgjax.evaluate runs, on one device; the answers are read on the host."""
  import jax

  from configs import common
  from pgjax.checkpoints import initial, load as load_params, source
  from pgjax.config import decode_method
  from pgjax.distributed import mesh as mesh_lib, sharding
  from pgjax.inference import decode
  from pgjax.models import paligemma
  from pgjax.params import of_model

  config = common.base()
  dtype = dict(cpu="float32", gpu="bfloat16")[spec["device"]]
  config.update(res=spec["res"], text_len=spec["text_len"], dtype=dtype)
  config.params = [(".*", f'freeze("{dtype}")')]
  config.model = dict(source.open_source(spec["weights"]).model, dtype=dtype, remat="none")
  model = paligemma.Model(**config.model)
  mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
  leaves = of_model.stored_params(model, config)
  abstract = load_params.abstract_params(leaves, config, mesh)
  values = initial.load_initial(spec["weights"], abstract, leaves)
  run = decode.jitted(
    model,
    mesh,
    sharding.shardings_of(abstract),
    max_decode_len=spec["new_tokens"],
    method=decode_method.parse(spec["ours"]),
    eos=-1,
    readable=sharding.for_model(leaves, mesh),
  )
  data = dict(np.load(spec["data"]))
  batch = jax.device_put(data, mesh_lib.batch_sharding(mesh))

  def answer():
    return np.asarray(run(values, batch).tokens)

  stats = jax.devices()[0].memory_stats
  gpu_peak = (lambda: stats()["peak_bytes_in_use"]) if spec["device"] == "gpu" else None
  first = dict(tokens=answer().tolist(), flops=flops(data, spec, leaves))
  serve(first, answer, gpu_peak, product_of_jax(dtype))


def flops(data, spec, leaves):
  """Of the products with weights that a batch of answers needs, attention left out.

  Each prompt is read once, by its last token alone in the last layer, but for keys and values.
  """
  from pgjax.config import decode_method
  from pgjax.params import tree as param_tree

  shapes = {name: leaf.shape for name, leaf in param_tree.flatten(leaves.abstract()).items()}

  def weights(pattern):
    return sum(math.prod(shape) for name, shape in shapes.items() if re.fullmatch(pattern, name))

  depth, *_ = shapes["llm/layers/mlp/linear"]
  layers, kv = weights("llm/layers/.*(_einsum.*|linear)"), weights("llm/layers/attn/kv_.*")
  rows, prompt_len = data["text"].shape
  size = shapes["img/embedding/kernel"][0]
  patches = math.prod(n // size for n in data["image"].shape[1:3])
  more = (spec["new_tokens"] - 1) * decode_method.parse(spec["ours"]).branches
  of_image = patches * weights("img/.*/kernel")
  of_text = (patches + prompt_len + more) * layers
  unread = (patches + prompt_len - 1) * (layers - kv) / depth
  of_logits = (1 + more) * weights("llm/embedder/.*")
  return 2 * rows * (of_image + of_text - unread + of_logits)


def transformers(spec):
  """model.generate, as its page for PaliGemma shows it."""
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
  gpu = spec["device"] == "gpu"
  device = torch.device("cuda" if gpu else "cpu")
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
    spec["weights"],
    attn_implementation=spec["attention"],
    dtype=torch.bfloat16 if gpu else torch.float32,
    device_map=device,
  ).eval()
  data = np.load(spec["data"])
  text = torch.tensor(data["text"], dtype=torch.long)
  config = model.config
  patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
  images = torch.full((len(text), patches), config.image_token_index)
  inputs = dict(
    input_ids=torch.cat([images, text], 1),
    pixel_values=torch.tensor(data["image"]).permute(0, 3, 1, 2).contiguous().to(model.dtype),
    attention_mask=torch.ones(len(text), patches + text.shape[1], dtype=torch.long),
  )
  if transformers.__version__.startswith("5"):  # 4.57 does so by default.
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
  inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
  model.generation_config.eos_token_id = None  # Both sides generate all tokens.
  fields = dict(max_new_tokens=spec["new_tokens"], do_sample=False, **spec["theirs"])

  def answer():
    with torch.inference_mode():
      return model.generate(**inputs, **fields)[:, inputs["input_ids"].shape[1] :].cpu().numpy()

  peak = torch.cuda.max_memory_allocated if gpu else None
  serve(dict(tokens=answer().tolist()), answer, peak, product_of_torch(device))


if __name__ == "__main__":
  dict(pgjax=pgjax, transformers=transformers)[sys.argv[1]](json.loads(sys.argv[2]))
