"""big_vision: answers from the .npz of pgjax, by the model and the loader of a checkout.

python bv.py FOLDER WORK CHECKOUT: as hf.py.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np


def main(path, work, checkout):
  """pgjax -> big_vision, with its prefill and decoding steps."""
  sys.path.insert(0, str(checkout))
  import ml_collections
  from big_vision.models.ppp import gemma
  from big_vision.models.proj.paligemma import paligemma

  facts = json.loads((path / "weights.npz.pgjax.json").read_text())["model"]
  llm, known = facts["llm"], gemma.get_config("gemma_2b")
  if llm.get("post_norms"):
    known = gemma.get_config("gemma2_2b")
  for name in ("width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim"):
    known[name] = llm[name]
  gemma.get_config = lambda variant: ml_collections.ConfigDict(known)
  img = facts["img"]
  img = {n: img[n] for n in ("width", "depth", "mlp_dim", "num_heads")}
  img |= dict(patch_size=(facts["img"]["patch_size"],) * 2, pool_type="none", scan=True)
  cap = llm.get("final_logits_softcap", 0.0)
  text = dict(vocab_size=llm["vocab_size"], cache_dtype=None, final_logits_softcap=cap)
  model = paligemma.Model(img=img, llm=text)
  params = {}
  for name, array in np.load(path / "weights.npz").items():
    *parents, leaf = name.split("/")
    inside = params
    for parent in parents:
      inside = inside.setdefault(parent, {})
    inside[leaf] = jnp.asarray(array)
  data = np.load(path / "inputs.npz")
  new, prompts = int(data["new"]), jnp.asarray(data["prompts"])
  images = jnp.asarray(data["images"].astype(np.float32) / 127.5 - 1)

  def apply(method, *inputs, cache=None, **named):
    variables = params | ({"cache": cache} if cache else {})
    return model.apply(variables, *inputs, method=method, mutable=["cache"], **named)

  (given, _), _ = apply(
    model.embed_image_and_text, images, prompts, mask_ar=jnp.zeros_like(prompts)
  )
  x, input_mask, mask_ar = given
  size = x.shape[1] + new
  step, state = apply(model.prefill_cache, x, input_mask, mask_ar, cache_size=size)
  logits, answers = [], []
  for _ in range(new):
    logits.append(np.asarray(step)[:, -1])
    answers.append(logits[-1].argmax(-1))
    (x, _), _ = apply(model.embed_text, jnp.asarray(answers[-1])[:, None])
    step, state = apply(model.extend_cache, x, cache=state["cache"])
  jax.block_until_ready(step)
  np.savez(work / "there.npz", logits=np.stack(logits, 1), answers=np.stack(answers, 1))


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:4]))
