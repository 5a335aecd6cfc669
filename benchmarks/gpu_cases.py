"""The cases of benchmarks/gpu.py: training steps and decoding."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks import memory

NEW_TOKENS, PROMPT_LEN = 64, 16
NO_TIME = "no time left; give more --minutes"


class Case(NamedTuple):
  """A batch size, and the fields in which the config differs (benchmarks/memory.py)."""

  name: str
  batch: int
  fields: Mapping[str, Any]
  rare: bool = False  # Only with --full.


def _tuned(name, **fields):
  from configs import common

  return dict(params=common.TUNE[name], dtype="bfloat16") | fields


_FULL, _ATTENTION = memory.FULL | memory.BF16, memory.ATTENTION | memory.BF16
_PRODUCTS, _ATTENTION_OUT = memory.PRODUCTS, memory.ATTENTION_OUT
_448, _896 = memory.AT_448, memory.AT_896
STEPS = [
  Case("full_224_b32", 32, _FULL),
  Case("full_224_b32_products", 32, _FULL | _PRODUCTS),
  Case("full_224_b32_plain", 32, _FULL | memory.PLAIN),
  Case("full_224_b32_outputs", 32, _FULL | memory.OUTPUTS, rare=True),
  Case("full_224_b32_flash", 32, _FULL | memory.FLASH, rare=True),
  Case("full_224_b8", 8, _FULL),
  Case("full_448_b8", 8, _FULL | _448),
  Case("full_448_b8_plain", 8, _FULL | _448 | memory.PLAIN, rare=True),
  Case("full_448_b8_outputs", 8, _FULL | _448 | memory.OUTPUTS, rare=True),
  Case("full_896_b2", 2, _FULL | _896),
  Case("full_896_b2_plain", 2, _FULL | _896 | memory.PLAIN),
  Case("full_896_b2_outputs", 2, _FULL | _896 | memory.OUTPUTS, rare=True),
  Case("full_896_b2_attention", 2, _FULL | _896 | _ATTENTION_OUT, rare=True),
  Case("attention_224_b32", 32, _ATTENTION),
  Case("attention_448_b8", 8, _ATTENTION | _448, rare=True),
  Case("attention_896_b2", 2, _ATTENTION | _896, rare=True),
  Case("lora_224_b8", 8, _tuned("lora")),
  Case("lora_224_b32", 32, _tuned("lora")),
  Case("lora_224_b32_products", 32, _tuned("lora") | _PRODUCTS),
  Case("lora_448_b8", 8, _tuned("lora") | _448, rare=True),
  Case("lora_896_b4", 4, _tuned("lora") | _896),
  Case("lora_896_b4_plain", 4, _tuned("lora") | _896 | memory.PLAIN),
  Case("lora_896_b4_attention", 4, _tuned("lora") | _896 | _ATTENTION_OUT),
  Case("qlora_224_b32", 32, _tuned("qlora")),
  Case("qlora_448_b8", 8, _tuned("qlora") | _448, rare=True),
  Case("qlora_896_b4", 4, _tuned("qlora") | _896, rare=True),
  Case("full_adam8bit_224_b32", 32, _FULL | memory.ADAM8, rare=True),
]
DECODES = [
  Case("greedy_b64", 64, dict(method="greedy", stored="bfloat16")),
  Case("greedy_b1", 1, dict(method="greedy", stored="bfloat16")),
  Case("greedy_b64_int8", 64, dict(method="greedy", stored="int8")),
  Case("greedy_b64_nf4", 64, dict(method="greedy", stored="nf4")),
  Case("beam3_b64", 64, dict(method="beam(3)", stored="bfloat16")),
  Case("greedy_b1_nf4", 1, dict(method="greedy", stored="nf4"), rare=True),
]
_TINY_TEXT = 32


def tiny_model() -> dict[str, Any]:
  """Sizes of the model of benchmarks/step.py's tiny shape, and its resolution."""
  caps = dict(post_norms=True, attn_logits_softcap=50.0, final_logits_softcap=30.0)
  img = dict(width=64, depth=2, mlp_dim=256, num_heads=4, patch_size=14)
  llm = dict(width=128, depth=2, mlp_dim=512, num_heads=4, num_kv_heads=2, head_dim=32)
  llm |= dict(vocab_size=1856, **caps)
  return dict(img=dict(variant="custom", **img), llm=dict(variant="custom", **llm))


def sized(case: Case, tiny: bool) -> Case:
  """The case; tiny: with a batch of at most 2, or 4 prompts."""
  return case._replace(
    batch=min(case.batch, 4 if "method" in case.fields else 2) if tiny else case.batch
  )


def _config(case, tiny, **fields):
  """The config of a case; tiny: one eighth of the resolution, a small model and batch."""
  fields = {
    key: value for key, value in case.fields.items() if key not in ("method", "stored")
  } | fields
  config = memory.run_config(case.batch, fields)
  if tiny:
    config.res, config.text_len = config.res // 224 * 28, _TINY_TEXT
    config.model.update(tiny_model())
  return config


@functools.cache
def _filled() -> Callable[..., Any]:
  """One jitted function for all cases, so that each shape is compiled once."""
  import jax
  import jax.numpy as jnp

  def values(key, shape, dtype):
    if jnp.issubdtype(dtype, jnp.integer):
      return jax.random.bits(key, shape, f"uint{8 * dtype.itemsize}").astype(dtype)
    return (0.02 * jax.random.normal(key, shape, "float32")).astype(dtype)

  return jax.jit(values, static_argnums=(1, 2))


def _random_params(abstract: Any) -> Any:
  """Normal values of a standard deviation of 0.02, and random codes of quantized leaves."""
  import jax

  leaves, tree = jax.tree.flatten(abstract)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  filled = [_filled()(key, a.shape, a.dtype) for key, a in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(tree, filled)


def _random_batch(abstract: Mapping[str, Any], vocab_size: int) -> dict[str, np.ndarray]:
  """Images and texts without padding; the last quarter of each text has a loss."""
  rng = np.random.default_rng(0)
  batch = {}
  for name, leaf in abstract.items():
    if name == "image":
      batch[name] = rng.uniform(-1, 1, leaf.shape).astype(np.float32)
    elif name == "text":
      batch[name] = rng.integers(4, vocab_size, leaf.shape).astype(np.int32)
    else:
      later = np.arange(leaf.shape[1]) >= 0.75 * leaf.shape[1]
      batch[name] = np.broadcast_to(later, leaf.shape).astype(leaf.dtype)
  return batch


class Step:
  """A training step on one device."""

  def __init__(self, case: Case, tiny: bool):
    """Shapes only; `lower`, then `ready` once it is compiled."""
    import jax

    from pgjax.distributed import mesh as mesh_lib
    from pgjax.layers import remat
    from pgjax.models import paligemma
    from pgjax.params import of_model
    from pgjax.planning import compiler, flops as flops_lib, gpus
    from pgjax.training import optimizer, state as train_state

    self.case, self.config = sized(case, tiny), _config(case, tiny)
    self.config.input.batch_size = self.case.batch
    self._mesh = mesh_lib.make_mesh([("data", -1)], jax.devices()[:1])
    self._model = paligemma.Model(**self.config.model)
    self._leaves = of_model.stored_params(self._model, self.config)
    trained = of_model.trained_shapes(self._model, self.config)
    self._tx = optimizer.make(self.config, 1000, trained)
    self._state = train_state.abstract_state(self._model, self._tx, self.config, self._mesh)
    self._batch = compiler.abstract_batch(self.config, self._mesh)
    self.remat = remat.chosen(self.config.remat, self.config.dtype, 1)
    self.flops = flops_lib.of_step(self.config, self._model, self._leaves)
    self.peak_flops = gpus.peak_flops(jax.devices()[:1])
    self._live = None

  def lower(self) -> Any:
    """What XLA compiles."""
    from pgjax.training import step as step_lib

    update = step_lib.jitted(self._model, self._tx, self.config, self._mesh)
    return update.lower(self._state, self._batch)

  def need(self, program: Any) -> int:
    """The planner's bytes of arguments and temporaries."""
    from pgjax.planning import memory as planned

    temporaries = program.memory_analysis().temp_size_in_bytes
    args = (self.config, self._model, self._state, self._batch, self._leaves.rules)
    return planned.need(*args, temporaries).step

  def ready(self, program: Any) -> Callable[[], Any]:
    """One update a call, of random weights; it returns the loss. Raises `program` if an error."""
    import jax

    from pgjax.distributed import mesh as mesh_lib
    from pgjax.training import state as train_state

    if isinstance(program, Exception):
      raise program
    values = _random_params(self._state.params)
    state = train_state.init(self._model, self._tx, self.config, self._mesh, loaded=values)
    batch = _random_batch(self._batch, self._model.llm_config.vocab_size)
    self._live = [state, jax.device_put(batch, mesh_lib.batch_sharding(self._mesh))]

    def update():
      self._live[0], measured = program(*self._live)
      return measured["training_loss"]

    return update

  def free(self) -> None:
    """Drops the state."""
    self._live = None


class Decode:
  """Answers to a batch of prompts, all of `length` tokens, as pgjax.evaluate computes them."""

  def __init__(self, case: Case, length: int, tiny: bool):
    """Shapes only; `lower`, then `ready` once it is compiled."""
    import jax

    from pgjax.checkpoints import load
    from pgjax.config import decode_method
    from pgjax.distributed import mesh as mesh_lib, sharding
    from pgjax.inference import decode
    from pgjax.models import paligemma
    from pgjax.params import of_model, tree as param_tree

    self.case = sized(case, tiny)
    stored, rest = case.fields["stored"], 'freeze("bfloat16")'
    rules = [("llm/layers/(attn|mlp)/.*|img/.*/kernel", f'freeze("{stored}")'), (".*", rest)]
    self.config = _config(case, tiny, params=rules, dtype="bfloat16")
    mesh = mesh_lib.make_mesh([("data", -1)], jax.devices()[:1])
    model = paligemma.Model(**self.config.model)
    leaves = of_model.stored_params(model, self.config)
    self._params = load.abstract_params(leaves, self.config, mesh)
    self._vocab_size, self._rows = model.llm_config.vocab_size, mesh_lib.batch_sharding(mesh)
    text_tower = {
      name: a for name, a in param_tree.flatten(self._params).items() if name.startswith("llm/")
    }
    self.weight_bytes = sum(a.size * a.dtype.itemsize for a in text_tower.values())
    self._run = decode.jitted(
      model,
      mesh,
      sharding.shardings_of(self._params),
      max_decode_len=length,
      method=decode_method.parse(case.fields["method"]),
      eos=-1,
      readable=sharding.for_model(leaves, mesh),
    )
    self._live = None

  def _abstract(self):
    import jax

    shape = (self.case.batch, PROMPT_LEN)
    text = jax.ShapeDtypeStruct(shape, np.int32, sharding=self._rows)
    image = (shape[0], self.config.res, self.config.res, 3)
    image = jax.ShapeDtypeStruct(image, np.float32, sharding=self._rows)
    return dict(image=image, text=text, mask_ar=text, mask_input=text)

  def lower(self) -> Any:
    """What XLA compiles."""
    import jax

    return jax.jit(self._run).lower(self._params, self._abstract())

  def ready(self, program: Any) -> Callable[[], Any]:
    """One batch of answers a call, by random weights. Raises `program` if it is an error."""
    import jax

    if isinstance(program, Exception):
      raise program
    batch = _random_batch(self._abstract(), self._vocab_size)
    batch |= dict(mask_ar=0 * batch["mask_ar"], mask_input=0 * batch["mask_input"] + 1)
    self._live = [_random_params(self._params), jax.device_put(batch, self._rows)]
    return lambda: program(*self._live).tokens

  def free(self) -> None:
    """Drops the weights."""
    self._live = None
