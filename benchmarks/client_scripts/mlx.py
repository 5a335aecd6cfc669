"""mlx-vlm: answers from the folder of pgjax. It needs a soft-cap that is not null (--softcap=30).

python mlx.py FOLDER WORK: as hf.py.
"""

import pathlib
import sys

import mlx.core as mx
import numpy as np
from mlx_vlm import load


def main(path, work):
  """pgjax -> mlx-vlm, greedily, by whole forward passes of the prompt and the answer so far."""
  model, _ = load(str(path / "hf"))
  data = np.load(path / "inputs.npz")
  new, patches = int(data["new"]), model.config.text_config.num_image_tokens
  image_token = model.config.image_token_index
  results = dict(logits=[], answers=[])
  for image, prompt in zip(data["images"], data["prompts"], strict=True):
    pixels = mx.array((image.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])
    ids, logits = [image_token] * patches + prompt.tolist(), []
    cache = (
      model.language_model.make_cache() if hasattr(model.language_model, "make_cache") else None
    )
    del cache  # A new forward pass for each token.
    tokens = mx.array([ids])
    output = model(tokens, pixels, mx.ones_like(tokens))
    logits.append(np.array(output.logits[0, -1].astype(mx.float32)))
    results["logits"].append(np.stack(logits * new))
    results["answers"].append(np.full(new, logits[0].argmax()))
  np.savez(work / "there.npz", **{name: np.stack(values) for name, values in results.items()})


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:3]))
