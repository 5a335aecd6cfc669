"""A PaliGemma small enough to compile in a second, a run's config for it, and random batches.

No parameter is zero, as many are at the start of a run, so that every one has an effect.
"""

import jax
import ml_collections
import numpy as np

from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.models import paligemma
from pgjax.params import of_model, rules as param_rules, tree as param_tree
from pgjax.training import optimizer, state as train_state, step as step_lib

IMG = dict(width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=8)
LLM = dict(
  variant="tiny",
  width=32,
  depth=2,
  mlp_dim=64,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  vocab_size=320,
  attn_logits_softcap=50.0,
  post_norms=True,
)
RES, PATCHES, TEXT_LEN = 16, 4, 8
FSDP = [(".*", 'fsdp(axis="data", min_size_to_shard_mb=0)')]


def model(llm=None, **fields):
  """Gemma 2 in small; `llm` and `fields` change it."""
  return paligemma.Model(img=IMG, llm={**LLM, **(llm or {})}, **fields)


def config(**fields):
  """Adam on everything at a constant rate; a large eps does not amplify rounding noise."""
  base = dict(
    seed=0,
    res=RES,
    num_frames=0,
    text_len=TEXT_LEN,
    input=dict(batch_size=8),
    params=[(".*", "train")],
    schedule=dict(decay_type="const"),
    optax_name="scale_by_adam",
    optax=dict(eps=1e-5),
    lr=1e-3,
    lr_mults=None,
    wd=1e-3,
    wd_mults=None,
    grad_clip_norm=1.0,
    stochastic_rounding=False,
    opt_state_memory="device",
    ema_decay=None,
    label_smoothing=0.1,
    microbatches=1,
    accumulation_dtype="float32",
    sharding_strategy=FSDP,
  )
  return ml_collections.ConfigDict({**base, **fields})


def parameters(model, seed=0):
  """Random parameters as a nested dict of numpy arrays."""
  rng = np.random.default_rng(seed)
  shapes = of_model.param_shapes(model, RES)
  values = {name: rng.normal(scale=0.15, size=shape) for name, shape in shapes.items()}
  return param_tree.unflatten({name: a.astype(np.float32) for name, a in values.items()})


def batch(rows=8, text_len=TEXT_LEN, seed=0):
  """Prefixes and suffixes of different lengths; row 0 has no token to learn, row 1 no padding."""
  rng = np.random.default_rng(seed)
  position = np.arange(text_len + 1)
  prefix_len = rng.integers(2, text_len // 2 + 1, size=(rows, 1))
  end = rng.integers(prefix_len + 1, text_len + 2, size=(rows, 1))
  end[0], end[1] = prefix_len[0], text_len + 1
  text = rng.integers(4, LLM["vocab_size"], size=(rows, text_len + 1))
  return dict(
    image=rng.uniform(-1, 1, size=(rows, RES, RES, 3)).astype(np.float32),
    text=np.where(position < end, text, 0).astype(np.int32),
    mask_ar=(position >= prefix_len).astype(np.int32),
    mask_loss=((position >= prefix_len) & (position < end)).astype(np.int32),
  )


def mesh(spec=(("data", -1),), devices=1):
  return mesh_lib.make_mesh(spec, jax.devices()[:devices])


class Run:
  """The state and step of one config on one mesh; the first call of `train_step` compiles."""

  def __init__(self, config, model, mesh):
    self.config, self.model, self.mesh = config, model, mesh
    self.rules = of_model.rules(model, config)
    names = param_rules.trained_names(self.rules)
    self.tx = optimizer.make(self.config, 100, names)
    self.abstract = train_state.abstract_state(self.model, self.tx, self.config, self.mesh)
    self.train_step = step_lib.jitted(self.model, self.tx, self.config, self.mesh)

  def state(self, values):
    """The first state, from nested numpy parameters; in new buffers, as a step reuses them."""
    stored = jax.tree.map(lambda a, leaf: a.astype(leaf.dtype), values, self.abstract.params)
    loaded = jax.device_put(stored, sharding.shardings_of(self.abstract.params))
    return train_state.init(self.model, self.tx, self.config, self.mesh, loaded=loaded)

  def steps(self, values, batches):
    """(last state, each step's measured values as a list of dicts of floats)."""
    state, log = self.state(values), []
    for batch in batches:
      state, measured = self.train_step(state, batch)
      log.append({name: float(a) for name, a in measured.items()})
    return state, log
