"""big_vision: answers from the .npz of pgjax, by a checkout, which then saves its own folder.

python bv.py FOLDER WORK CHECKOUT: as hf.py. Its answers come from its prefill and decoding steps.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import jax_folders
import numpy as np
from jax.experimental.array_serialization import serialization


def model_of(path):
  """The model and its config, with the sizes of pgjax's model in place of a published variant."""
  import ml_collections
  from big_vision.models.ppp import gemma
  from big_vision.models.proj.paligemma import paligemma

  facts = json.loads((path / "weights.npz.pgjax.json").read_text())["model"]
  llm, img = facts["llm"], facts["img"]
  known = gemma.get_config("gemma2_2b" if llm.get("post_norms") else "gemma_2b")
  for name in ("width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim"):
    known[name] = llm[name]
  gemma.get_config = lambda variant: ml_collections.ConfigDict(known)
  sizes = {name: img[name] for name in ("width", "depth", "mlp_dim", "num_heads")}
  config = ml_collections.ConfigDict(
    dict(
      img=dict(sizes, patch_size=(img["patch_size"],) * 2, pool_type="none", scan=True),
      llm=dict(
        vocab_size=llm["vocab_size"],
        cache_dtype=None,
        final_logits_softcap=llm.get("final_logits_softcap", 0.0),
      ),
    )
  )
  return paligemma.Model(**config), lambda file: paligemma.load(None, str(file), config)


def main(path, work, checkout):
  """Both directions."""
  sys.path.insert(0, str(checkout))
  model, load = model_of(path)
  data = np.load(path / "inputs.npz")
  new, prompts = int(data["new"]), jnp.asarray(data["prompts"])
  images = jnp.asarray(data["images"].astype(np.float32) / 127.5 - 1)

  def answers(file):
    params = load(file)

    def apply(method, *inputs, cache=None, **named):
      variables = dict(params=params) | (dict(cache=cache) if cache else {})
      return model.apply(variables, *inputs, method=method, mutable=["cache"], **named)

    (inputs, _), _ = apply(
      model.embed_image_and_text, images, prompts, mask_ar=jnp.zeros_like(prompts)
    )
    x, input_mask, mask_ar = inputs
    step, state = apply(model.prefill_cache, x, input_mask, mask_ar, cache_size=x.shape[1] + new)
    logits, tokens = [], []
    for _ in range(new):
      logits.append(np.asarray(step)[:, -1])
      tokens.append(logits[-1].argmax(-1))
      (x, _), _ = apply(model.embed_text, jnp.asarray(tokens[-1])[:, None])
      step, state = apply(model.extend_cache, x, cache=state["cache"])
    return dict(logits=np.stack(logits, 1), answers=np.stack(tokens, 1))

  def save(tree, folder):
    from big_vision import utils

    manager = serialization.GlobalAsyncCheckpointManager()
    utils.tssave(manager, jax.tree.map(jnp.asarray, tree), str(folder))
    manager.wait_until_finished()

  jax_folders.both_ways(path, work, answers, save)


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:4]))
