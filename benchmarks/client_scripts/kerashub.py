"""KerasHub: answers from the folder and the tokenizer.model of pgjax; PaliGemma 1 only.

python kerashub.py FOLDER WORK: as hf.py.
"""

import json
import os
import pathlib
import sys

os.environ["KERAS_BACKEND"] = "jax"

import keras_hub
import numpy as np


def main(path, work):
  """pgjax -> KerasHub; its transformers converter knows no PaliGemma 2."""
  if "paligemma2" in path.name:
    sys.exit("KerasHub reads PaliGemma 2 from a big_vision .npz only, by a tool of its repository")
  backbone = keras_hub.models.PaliGemmaBackbone.from_preset(str(path / "hf"), dtype="float32")
  data = np.load(path / "inputs.npz")
  new, prompts = int(data["new"]), data["prompts"]
  images = data["images"].astype(np.float32) / 127.5 - 1
  text = np.pad(prompts, ((0, 0), (0, new)))
  response = np.broadcast_to(np.arange(text.shape[1]) >= prompts.shape[1], text.shape)
  logits = []
  for step in range(new):
    at = prompts.shape[1] + step
    inputs = dict(images=images, token_ids=text, response_mask=response.astype(np.int32))
    hidden = backbone(inputs | dict(padding_mask=np.ones_like(text)))
    every = backbone.token_embedding(hidden, reverse=True)
    logits.append(np.asarray(every)[:, at - 1 - text.shape[1]])
    text[:, at] = logits[-1].argmax(-1)
  np.savez(work / "there.npz", logits=np.stack(logits, 1), answers=text[:, prompts.shape[1] :])
  tokenizer = keras_hub.models.PaliGemmaTokenizer(str(path / "hf/tokenizer.model"))
  texts = json.loads((path / "texts.json").read_text())
  ids = [np.asarray(tokenizer(text)).tolist() for text in texts]
  (work / "there.json").write_text(json.dumps(ids))


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:3]))
