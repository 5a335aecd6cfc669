"""mlx-vlm: answers from the folder of pgjax, with its cache.

python mlx_vlm_cache.py FOLDER WORK: as hf.py.
"""

import json
import pathlib
import sys

import hf
import mlx.core as mx
import numpy as np
from mlx_vlm import load
from mlx_vlm.models import cache as cache_lib


def main(path, work):
  """pgjax -> mlx-vlm."""
  model, processor = load(str(path / "hf"))
  texts = json.loads((path / "texts.json").read_text())
  (work / "there.json").write_text(json.dumps(hf.token_ids(processor.tokenizer, texts)))
  data = np.load(path / "inputs.npz")
  new, patches = int(data["new"]), model.config.text_config.num_image_tokens
  results = dict(logits=[], answers=[])
  for image, prompt in zip(data["images"], data["prompts"], strict=True):
    pixels = mx.array((image.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])
    tokens = mx.array([[model.config.image_token_index] * patches + prompt.tolist()])
    cache, logits = cache_lib.make_prompt_cache(model.language_model), []
    step = model(tokens, pixels, mx.ones_like(tokens), cache=cache).logits
    for _ in range(new):
      logits.append(np.array(step[0, -1].astype(mx.float32)))
      step = model.language_model(mx.array([[int(logits[-1].argmax())]]), cache=cache).logits
    results["logits"].append(np.stack(logits))
    results["answers"].append(np.stack(logits).argmax(-1))
  np.savez(work / "there.npz", **{name: np.stack(values) for name, values in results.items()})


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:3]))
