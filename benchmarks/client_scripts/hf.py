"""transformers: answers from a folder of pgjax, then saves a changed model with new words.

python hf.py FOLDER WORK: FOLDER as benchmarks/clients.py makes it; writes there.* and back.*.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

WORDS = ["<card_a>", "<card_b>"]
transformers.logging.set_verbosity_error()


def answers(model, path):
  """dict(logits, answers) of greedy decoding."""
  data = np.load(path / "inputs.npz")
  new, config = int(data["new"]), model.config
  image = getattr(config, "image_token_index", None) or config.image_token_id
  patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
  results = dict(logits=[], answers=[])
  for pixels, prompt in zip(data["images"], data["prompts"], strict=True):
    ids = torch.tensor([[image] * patches + prompt.tolist()])
    values = torch.tensor(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
      output = model.generate(
        input_ids=ids,
        pixel_values=values,
        attention_mask=torch.ones_like(ids),
        token_type_ids=torch.zeros_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
      )
    results["logits"].append(np.stack([step[0].float().numpy() for step in output.logits]))
    results["answers"].append(output.sequences[0, -new:].numpy())
  return {name: np.stack(values) for name, values in results.items()}


def token_ids(tokenizer, texts):
  """The ids of each text, without <bos>."""
  return tokenizer(texts, add_special_tokens=False)["input_ids"]


def main(path, work):
  """Both directions."""
  model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
    path / "hf", torch_dtype=torch.float32
  ).eval()
  processor = transformers.AutoProcessor.from_pretrained(path / "hf")
  texts = json.loads((path / "texts.json").read_text())
  (work / "there.json").write_text(json.dumps(token_ids(processor.tokenizer, texts)))
  np.savez(work / "there.npz", **answers(model, path))
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.02 * torch.randn(parameter.shape)
  processor.tokenizer.add_tokens(WORDS)
  rows = model.get_input_embeddings().weight.shape[0]
  if len(processor.tokenizer) > rows:
    model.resize_token_embeddings(len(processor.tokenizer))
  model.save_pretrained(work / "saved")
  processor.save_pretrained(work / "saved")
  texts = [text if i % 2 else WORDS[i % 3 % 2] + text for i, text in enumerate(texts)]
  (work / "back_texts.json").write_text(json.dumps(texts))
  (work / "back.json").write_text(json.dumps(token_ids(processor.tokenizer, texts)))
  np.savez(work / "back.npz", **answers(model, path))


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:3]))
