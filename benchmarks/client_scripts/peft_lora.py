"""PEFT: answers with an adapter of pgjax, then saves one of its own.

python peft_lora.py FOLDER WORK: as hf.py; FOLDER/adapter is pgjax's adapter on FOLDER/hf.
"""

import pathlib
import sys

import hf
import numpy as np
import peft
import torch
import transformers


def base(path):
  """The model in FOLDER/hf."""
  return transformers.PaliGemmaForConditionalGeneration.from_pretrained(
    path / "hf", torch_dtype=torch.float32
  ).eval()


def main(path, work):
  """An adapter of pgjax here, and one from here."""
  adapted = peft.PeftModel.from_pretrained(base(path), path / "adapter").eval()
  np.savez(work / "there.npz", **hf.answers(adapted, path))
  config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
  adapted = peft.get_peft_model(base(path), config).eval()
  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in adapted.named_parameters():
      if "lora_" in name:
        parameter.copy_(0.2 * torch.randn(parameter.shape))
  adapted.save_pretrained(work / "saved")
  np.savez(work / "back.npz", **hf.answers(adapted, path))


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:3]))
