"""A step folder with a config and random weights, small enough to answer in a second."""

import numpy as np

from pgjax.checkpoints import orbax_params
from pgjax.config import load as config_load, validate as config_validate
from pgjax.data import tokenizer
from pgjax.formats import lazy_array
from pgjax.models import paligemma
from pgjax.params import of_model, storage, tree as param_tree

TOWER = dict(width=16, depth=1, mlp_dim=32, num_heads=2)
FIELDS = {
  "total_steps": 10,
  "text_len": 20,
  "model.img": dict(TOWER, variant="tiny", patch_size=16),
  "model.llm": dict(TOWER, variant="tiny", num_kv_heads=1, head_dim=8, vocab_size=1792),
  "evals.val.data": dict(name="easy_vqa", split="train[60:90]"),
  "evals.val.batch_size": 8,
  "evals.val.max_decode_len": 5,
  "evals.test.data": dict(name="easy_vqa", split="test[:20]"),
  "evals.test.batch_size": 8,
}


def write(folder, root, last=10, **settings):
  """Saves step 7 of `last` of a run of configs/easyvqa.py; `settings` are fields, a__b for a.b."""
  fields = FIELDS | {name.replace("__", "."): value for name, value in settings.items()}
  config = config_validate.validated(config_load.load(str(root / "configs/easyvqa.py"), fields))
  saved = config.to_dict()
  model = {part: saved["model"][part] for part in ("img", "llm")}
  shapes = of_model.param_shapes(paligemma.Model(**model), config.res)
  stored = param_tree.flatten(storage.of(shapes, config.params, config.dtype).abstract())
  rng = np.random.default_rng(0)
  arrays = {
    name: lazy_array.of_array(rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype))
    for name, leaf in stored.items()
  }
  run = dict(
    step=7, config=saved, identity={}, position=dict(step=7, total_steps=last, evaluated=True)
  )
  orbax_params.write_params(folder, arrays, run, tokenizer.TINY.read_bytes())
  return str(folder)
