"""The two programs that gpu_turns.py compares, with the protocol of step_sides.py for each case.

Usage: `python gpu_sides.py pgjax|transformers SPEC`, SPEC in JSON: device (cpu or gpu) and tiny.
A line of stdin gives name and batch of a case. The reply has the losses of its first steps, or how
many tokens its answers have, or an error; requests follow until `end`, and `{}` once its memory is
free. Weights are random. The transformers side has the usual loops around
PaliGemmaForConditionalGeneration, and imports no pgjax.
"""

import gc
import json
import sys

from side import first_line
from step_sides import serve

NEW_TOKENS, PROMPT_LEN, TEXT_LEN, LR = 64, 16, 128, 1e-5


def pgjax(name, batch, device, tiny):
  """A case of gpu_cases.py, compiled, with what `serve` takes."""
  import jax

  from benchmarks import gpu_cases

  case = next(c for c in [*gpu_cases.STEPS, *gpu_cases.DECODES] if c.name == name)
  if case in gpu_cases.DECODES:
    made = gpu_cases.Decode(case, NEW_TOKENS, tiny)
  else:
    made = gpu_cases.Step(case, tiny)
  call = made.ready(made.lower().compile())
  first = measured_first(name, lambda: jax.device_get(call()))
  stats = jax.devices()[0].memory_stats
  gpu_peak = (lambda: stats()["peak_bytes_in_use"]) if device == "gpu" else None
  return dict(first=first, step=call, gpu_peak=gpu_peak, wait=jax.block_until_ready)


def transformers(name, batch, device, tiny):
  """The same by transformers and PEFT."""
  import torch

  gpu = device == "gpu"
  # Without a GPU, and before its first array, there are no statistics.
  retries = lambda: torch.cuda.memory_stats().get("num_alloc_retries", 0) if gpu else 0  # noqa: E731
  before = retries()
  make = decode if decodes(name) else step
  call = make(name, batch, tiny, "cuda" if gpu else "cpu")
  if gpu:
    torch.cuda.reset_peak_memory_stats()
  first = measured_first(name, lambda: call().cpu().numpy())
  first["retries"] = retries() - before
  wait = (lambda _: torch.cuda.synchronize()) if gpu else None
  return dict(
    first=first, step=call, gpu_peak=torch.cuda.max_memory_allocated if gpu else None, wait=wait
  )


def decodes(name):
  """Whether the case generates text."""
  return name.startswith(("greedy", "beam"))


def measured_first(name, call):
  """What the first calls of a case compute."""
  if decodes(name):
    return dict(tokens=call().shape[1])
  return dict(losses=[float(call()) for _ in range(2)])


def make_model(tiny, device, dtype):
  """PaliGemma 2 3B at 224 px; tiny: the model of gpu_cases.tiny_model at 28 px."""
  import torch
  import transformers

  transformers.utils.logging.set_verbosity_error()
  text = dict(hidden_size=2304, intermediate_size=9216, num_hidden_layers=26)
  text |= dict(num_attention_heads=8, num_key_value_heads=4, head_dim=256, vocab_size=257_216)
  image = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27)
  image |= dict(num_attention_heads=16, image_size=224, patch_size=14)
  if tiny:
    text |= dict(hidden_size=128, intermediate_size=512, num_hidden_layers=2)
    text |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=1857)
    image |= dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2)
    image |= dict(num_attention_heads=4, image_size=28)
  tokens = (image["image_size"] // image["patch_size"]) ** 2
  config = transformers.PaliGemmaConfig(
    text_config=transformers.Gemma2Config(final_logit_softcapping=None, **text).to_dict(),
    vision_config=dict(
      model_type="siglip_vision_model", projection_dim=text["hidden_size"], num_image_tokens=tokens,
      vision_use_head=False, **image,
    ),
    image_token_index=text["vocab_size"] - 1,
    projection_dim=text["hidden_size"],
    attn_implementation="eager",  # Gemma 2's soft-cap; transformers 5 refuses the others.
  )  # fmt: skip
  torch.set_default_dtype(dtype)
  try:
    with torch.device(device):
      return transformers.PaliGemmaForConditionalGeneration(config)
  finally:
    torch.set_default_dtype(torch.float32)


def make_inputs(config, batch, length, device):
  """Random images and texts; the last quarter of a text has labels."""
  import torch

  side, patch = config.vision_config.image_size, config.vision_config.patch_size
  soft = (side // patch) ** 2
  text = torch.randint(4, config.text_config.vocab_size - 2, (batch, length))
  learned = (torch.arange(length) >= 0.75 * length).expand(batch, -1)
  ids = torch.cat([torch.full((batch, soft), config.image_token_index), text], 1)
  nothing = torch.zeros(batch, soft, dtype=torch.long)
  inputs = dict(
    input_ids=ids,
    pixel_values=torch.rand(batch, 3, side, side) * 2 - 1,
    attention_mask=torch.ones_like(ids),
    token_type_ids=torch.cat([nothing, learned.long()], 1),
    labels=torch.cat([nothing - 100, torch.where(learned, text, -100)], 1),
  )
  return {name: tensor.to(device) for name, tensor in inputs.items()}


def step(name, batch, tiny, device):
  """One update of AdamW: everything in float32 masters, or LoRA on a bfloat16 base."""
  import torch

  lora = name.startswith("lora")
  model = make_model(tiny, device, torch.bfloat16 if lora else torch.float32)
  if lora:
    import peft

    targets = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets))
  model.train()
  inputs = make_inputs(model.config, batch, TEXT_LEN // 4 if tiny else TEXT_LEN, device)
  moving = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(moving, lr=LR, fused=True)

  def update():
    with torch.autocast(device, torch.bfloat16):
      loss = model(**inputs, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(moving, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach().float()

  return update


def decode(name, batch, tiny, device):
  """One call of generate; it returns the new tokens."""
  import torch

  model = make_model(tiny, device, torch.bfloat16).eval()
  inputs = make_inputs(model.config, batch, PROMPT_LEN, device)
  del inputs["labels"]
  inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
  inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
  model.generation_config.eos_token_id = None  # All tokens are generated.
  fields = dict(num_beams=3) if name.startswith("beam3") else {}

  def answer():
    with torch.inference_mode():
      ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **fields)
    return ids[:, inputs["input_ids"].shape[1] :]

  return answer


def release():
  """Returns a case's memory to the device."""
  gc.collect()
  if torch := sys.modules.get("torch"):
    torch.cuda.empty_cache()  # Does nothing without a GPU.


def main():
  """Serves the cases that stdin names."""
  make, spec = dict(pgjax=pgjax, transformers=transformers)[sys.argv[1]], json.loads(sys.argv[2])
  for line in sys.stdin:
    try:
      made = make(**json.loads(line), **spec)
    except Exception as error:  # One that does not fit must not end the others.
      made = dict(error=first_line(error))
    if "error" in made:
      release()
      print(json.dumps(made), flush=True)
      continue
    serve(**made)
    del made
    release()
    print(json.dumps({}), flush=True)


if __name__ == "__main__":
  main()
