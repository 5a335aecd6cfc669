"""openpi: answers from the .npz of pgjax, by pi0-FAST of a checkout, which then saves; PaliGemma 1.

python openpi_fast.py FOLDER WORK CHECKOUT: as hf.py. Logits are those of its training step.
"""

import json
import pathlib
import sys

import flax.traverse_util
import jax
import jax.numpy as jnp
import jax_folders
import numpy as np
import orbax.checkpoint as ocp


def main(path, work, checkout):
  """Both directions."""
  sys.path.insert(0, str(checkout / "src"))
  from flax import nnx
  from openpi.models import gemma_fast, model as model_lib, pi0_fast, siglip
  from openpi.shared import download
  from openpi.training import weight_loaders

  facts = json.loads((path / "weights.npz.pgjax.json").read_text())
  llm, img = facts["model"]["llm"], dict(facts["model"]["img"])
  sizes = ("width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
  known = gemma_fast.get_config("gemma_2b")
  known.update({name: llm[name] for name in sizes})
  gemma_fast.get_config = lambda variant: known
  variant = {name: img[name] for name in ("width", "depth", "mlp_dim", "num_heads")}
  variant["patch_size"] = (img["patch_size"],) * 2
  siglip.decode_variant = lambda name: variant
  model_lib.IMAGE_RESOLUTION = (facts["res"],) * 2
  data = np.load(path / "inputs.npz")
  new, prompts = int(data["new"]), data["prompts"]
  images = jnp.asarray(data["images"].astype(np.float32) / 127.5 - 1)
  config = pi0_fast.Pi0FASTConfig(dtype="float32", max_token_len=prompts.shape[1] + new)
  empty = jax.tree.map(np.array, nnx.state(config.create(jax.random.key(0))).to_pure_dict())
  arrays = set(np.load(path / "weights.npz").files)

  def answers(file):
    saved = file.is_dir()
    download.maybe_download = lambda *_, **__: file / "params" if saved else file
    loader = weight_loaders.PaliGemmaWeightLoader()
    params = (weight_loaders.CheckpointWeightLoader("") if saved else loader).load(empty)
    named = flax.traverse_util.flatten_dict(params["PaliGemma"], sep="/")
    assert {f"params/{name}" for name in named} == arrays, "the loader leaves arrays out in silence"
    model = config.load(params)
    text = np.pad(prompts, ((0, 0), (0, new)))
    mask_ar = np.broadcast_to(np.arange(text.shape[1]) >= prompts.shape[1], text.shape)
    logits = []
    for at in range(prompts.shape[1], text.shape[1]):
      observation = model_lib.Observation(
        images=dict(base_0_rgb=images),
        image_masks=dict(base_0_rgb=jnp.ones(len(text), bool)),
        state=jnp.zeros((len(text), config.action_dim)),
        tokenized_prompt=jnp.asarray(text),
        tokenized_prompt_mask=jnp.ones(text.shape, bool),
        token_ar_mask=jnp.asarray(mask_ar.astype(np.int32)),
      )
      x, mask, ar = model.embed_inputs(observation)
      every, *_ = model.PaliGemma.llm(embedded_prefix=x, mask=pi0_fast.make_attn_mask(mask, ar))
      logits.append(np.asarray(every)[:, at - 1 - text.shape[1]])
      text[:, at] = logits[-1].argmax(-1)
    return dict(logits=np.stack(logits, 1), answers=text[:, prompts.shape[1] :])

  def save(tree, folder):
    with ocp.PyTreeCheckpointer() as writer:
      writer.save(folder / "params", dict(params=dict(PaliGemma=tree["params"])))

  jax_folders.both_ways(path, work, answers, save)


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:4]))
