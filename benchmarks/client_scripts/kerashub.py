"""KerasHub: answers from pgjax's weights and its tokenizer.model.

python kerashub.py FOLDER WORK CHECKOUT: as hf.py. PaliGemma 1 is read from the Hugging Face folder,
PaliGemma 2 from the .npz, by the tool in KerasHub's repository, of which CHECKOUT is a clone.
"""

import importlib.util
import json
import os
import pathlib
import sys

os.environ["KERAS_BACKEND"] = "jax"

import keras_hub
import numpy as np


def backbone_of(path, checkout):
  """The model with pgjax's weights."""
  if path.name == "paligemma":
    return keras_hub.models.PaliGemmaBackbone.from_preset(str(path / "hf"), dtype="float32")
  file = checkout / "tools/checkpoint_conversion/convert_pali_gemma2_checkpoints.py"
  spec = importlib.util.spec_from_file_location("tool", file)
  spec.loader.exec_module(tool := importlib.util.module_from_spec(spec))
  facts = json.loads((path / "weights.npz.pgjax.json").read_text())
  img, llm = facts["model"]["img"], facts["model"]["llm"]
  backbone = keras_hub.models.PaliGemmaBackbone(  # The tool has fields of published sizes only.
    image_size=facts["res"],
    vocabulary_size=llm["vocab_size"],
    vit_patch_size=img["patch_size"],
    vit_num_heads=img["num_heads"],
    vit_hidden_dim=img["width"],
    vit_num_layers=img["depth"],
    vit_intermediate_dim=img["mlp_dim"],
    num_layers=llm["depth"],
    num_query_heads=llm["num_heads"],
    num_key_value_heads=llm["num_kv_heads"],
    hidden_dim=llm["width"],
    intermediate_dim=2 * llm["mlp_dim"],
    head_dim=llm["head_dim"],
    use_post_ffw_norm=True,
    use_post_attention_norm=True,
    final_logit_soft_cap=30,
    attention_logit_soft_cap=50,
    use_sliding_window_attention=True,
    sliding_window_size=4096,
    dtype="float32",
  )
  return tool.convert_weights(backbone, tool.format_weights(np.load(path / "weights.npz")))


def answers(backbone, path):
  """dict(logits, answers), by forward passes of the prompt and the answer so far."""
  data = np.load(path / "inputs.npz")
  new, prompts = int(data["new"]), data["prompts"]
  images = data["images"].astype(np.float32) / 127.5 - 1
  text = np.pad(prompts, ((0, 0), (0, new)))
  response = np.broadcast_to(np.arange(text.shape[1]) >= prompts.shape[1], text.shape)
  logits = []
  for at in range(prompts.shape[1], text.shape[1]):
    inputs = dict(images=images, token_ids=text, response_mask=response.astype(np.int32))
    hidden = backbone(inputs | dict(padding_mask=np.ones_like(text)))
    every = backbone.token_embedding(hidden, reverse=True)
    logits.append(np.asarray(every)[:, at - 1 - text.shape[1]])
    text[:, at] = logits[-1].argmax(-1)
  return dict(logits=np.stack(logits, 1), answers=text[:, prompts.shape[1] :])


def main(path, work, checkout):
  """pgjax -> KerasHub."""
  tokenizer = keras_hub.models.PaliGemmaTokenizer(str(path / "hf/tokenizer.model"))
  texts = json.loads((path / "texts.json").read_text())
  ids = [np.asarray(tokenizer(text)).tolist() for text in texts]
  (work / "there.json").write_text(json.dumps(ids))
  np.savez(work / "there.npz", **answers(backbone_of(path, checkout), path))


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:4]))
