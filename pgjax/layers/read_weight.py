"""How does a module read its matrix, however the leaf is stored?"""

from typing import Any

import flax.linen as nn
import jax

from pgjax.layers import mixed_precision, quantization
from pgjax.layers.lora import Adapted, Linear, adapted
from pgjax.layers.quantization import Quantized


def read(module: nn.Module, name: str, init: Any, shape: tuple[int, ...], dtype: str) -> Linear:
  """The parameter `name` of a compact module in the compute dtype; a `dropout` rng: training."""
  stored = module.get_variable("params", name)
  if isinstance(stored, Linear):  # inference/decode_weights.py
    return stored
  if not isinstance(stored, Adapted | Quantized):
    return Linear(mixed_precision.weight(module.param(name, init, shape), dtype))
  base = stored.base if isinstance(stored, Adapted) else stored
  w = quantization.weight(base, dtype) if isinstance(base, Quantized) else base.astype(dtype)
  if base is stored:
    return Linear(w)
  training = stored.dropout > 0 and module.has_rng("dropout")
  key = jax.random.key_data(module.make_rng("dropout")) if training else None
  return adapted(w, stored, dtype, key)
