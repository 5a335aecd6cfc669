"""The side of transformers and PEFT in benchmarks/gpu.py: one JSON object a line, a case each.

Usage: `python -m benchmarks.gpu_torch SECONDS [--tiny]`; no case starts after SECONDS. The usual
loops around PaliGemmaForConditionalGeneration, with random weights of PaliGemma 2 3B. No pgjax.
"""

import gc
import json
import sys
import time

NEW_TOKENS, PROMPT_LEN, TEXT_LEN, LR = 64, 16, 128, 1e-5
STEPS = [("full_224_b8", 8), ("lora_224_b8", 8), ("lora_224_b32", 32)]
DECODES = [("greedy_b64", 64, {}), ("beam3_b64", 64, dict(num_beams=3))]


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
  inputs = make_inputs(model.config, batch, 16 if tiny else TEXT_LEN, device)
  moving = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(moving, lr=LR, fused=True)

  def update():
    with torch.autocast(device, torch.bfloat16):
      loss = model(**inputs, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(moving, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return update


def decode(batch, fields, tiny, device):
  """One call of generate."""
  import torch

  model = make_model(tiny, device, torch.bfloat16).eval()
  inputs = make_inputs(model.config, batch, PROMPT_LEN, device)
  del inputs["labels"]
  inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
  inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
  model.generation_config.eos_token_id = None  # All tokens are generated.

  def answer():
    with torch.inference_mode():
      model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **fields)

  return answer


def measure(name, batch, per_call, make, device):
  """Prints a row: the median of three rounds, after two calls."""
  import torch

  gpu = device == "cuda"
  row = dict(case=name, batch=batch, ms="", rate="", peak="")
  try:
    call = make()
    if gpu:
      torch.cuda.reset_peak_memory_stats()
    times, repeat = [], 4 if per_call == batch else 1
    for number in range(4):
      start = time.perf_counter()
      for _ in range(repeat if number else 2):
        call()
      if gpu:
        torch.cuda.synchronize()
      times.append((time.perf_counter() - start) / repeat)
    seconds = sorted(times[1:])[1]
    row |= dict(ms=f"{1e3 * seconds:.1f}", rate=f"{per_call / seconds:,.1f}")
    row["peak"] = f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if gpu else ""
  except Exception as error:
    row["ms"] = f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/")[:160]
  print(json.dumps(row), flush=True)
  call = None
  gc.collect()
  if gpu:
    torch.cuda.empty_cache()


def main():
  """All cases that fit in the time."""
  import torch

  end, tiny = time.monotonic() + float(sys.argv[1]), "--tiny" in sys.argv
  device = "cuda" if torch.cuda.is_available() else "cpu"
  cases = [
    (name, batch, batch, lambda name=name, batch=batch: step(name, batch, tiny, device))
    for name, batch in STEPS
  ]
  cases += [
    (name, batch, batch * NEW_TOKENS, lambda b=batch, f=fields: decode(b, f, tiny, device))
    for name, batch, fields in DECODES
  ]
  for name, batch, per_call, make in cases:
    if time.monotonic() < end:
      measure(name, min(batch, 4) if tiny else batch, per_call, make, device)


if __name__ == "__main__":
  main()
