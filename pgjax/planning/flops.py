"""How many floating-point operations does one training example need?

Model FLOPs, without recomputation (docs/flops.md). A product with P weights costs 2 P a token
forward, 2 P for the gradient of its input and 2 P for the gradient of the weight. The weight's
gradient counts if the weight trains; the input's if anything at or before that stage of the model
trains, because the layers of a stage run in one scan.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pgjax.models import paligemma
from pgjax.params import names as param_names, of_model, rules as param_rules, tree as param_tree
from pgjax.params.storage import StoredParams
from pgjax.planning import gpus
from pgjax.training import run_log

# The stages of the forward pass, in order, by the names of their parameters.
_STAGES = (
  r"img/(embedding/.*|pos_embedding)",
  r"img/Transformer/encoderblock/.*",
  r"img/(Transformer/encoder_norm|head)/.*",
  r"llm/layers/.*",
  r"llm/.*",
)
_PATCHES, _VISION, _CONNECTOR, _DECODER, _VOCABULARY = range(len(_STAGES))
_NO_PRODUCT = ("bias", "scale", "pos_embedding")


def work(config: Any, model: paligemma.Model, devices: Iterable[Any]) -> run_log.Work:
  """Examples, tokens (of image and text) and FLOPs of a step on these devices."""
  images, batch_size = max(config.num_frames, 1), config.input.batch_size
  patch = model.img_config.patch_size
  tokens = images * (config.res // patch[0]) * (config.res // patch[1]) + config.text_len
  flops = of_step(config, model, of_model.stored_params(model, config))
  return run_log.Work(batch_size, batch_size * tokens, flops, gpus.peak_flops(list(devices)))


def of_step(config: Any, model: paligemma.Model, leaves: StoredParams) -> float:
  """FLOPs of one step, over all devices."""
  stored = param_tree.flatten(leaves.abstract())
  factors = {name: a for name, a in stored.items() if name.startswith(param_names.LORA)}
  return config.input.batch_size * train_flops(
    model,
    leaves.shapes | factors,
    param_rules.trained_names(leaves.rules),
    res=config.res,
    text_len=config.text_len,
    num_images=max(config.num_frames, 1),
  )


def train_flops(
  model: paligemma.Model,
  shapes: Mapping[str, Any],
  trained: Collection[str],
  *,
  res: int,
  text_len: int,
  num_images: int = 1,
) -> float:
  """FLOPs of one example, forward and backward.

  shapes: flat, the model's declared parameters and the LoRA factors. trained: the names with a
  gradient. If everything trains, it is three times the forward pass.
  """
  img, llm = model.img_config, model.llm_config
  patches = (res // img.patch_size[0]) * (res // img.patch_size[1])
  soft = patches * num_images
  S = soft + text_len
  tokens = (soft, soft, soft, S, text_len)
  trained = frozenset(trained)
  # The token table is read before the decoder, and again for the logits.
  reached = [_DECODER if _base(n) == paligemma.TOKEN_TABLE else _stage(n) for n in trained]
  first = min(reached, default=len(_STAGES))  # Activations from here on need gradients.
  total = 0
  for name, leaf in shapes.items():
    if name.rsplit("/", 1)[-1] not in _NO_PRODUCT:
      stage = _stage(name)
      passes = 1 + (stage >= first) + (name in trained)
      total += passes * 2 * math.prod(leaf.shape) * tokens[stage]
  scores = {
    _VISION: 4 * img.depth * patches**2 * img.width * num_images,
    _DECODER: 4 * llm.depth * S**2 * llm.num_heads * llm.head_dim,
  }
  for stage, flops in scores.items():  # Both sides of these products are activations.
    total += flops * (3 if stage >= first else 1)
  return float(total)


def _stage(name: str) -> int:
  """The index in _STAGES of the parameter's product."""
  return next(i for i, pattern in enumerate(_STAGES) if re.fullmatch(pattern, _base(name)))


def _base(name: str) -> str:
  return name.removeprefix(param_names.LORA)
