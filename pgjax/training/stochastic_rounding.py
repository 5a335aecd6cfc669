"""Stochastic rounding: how do bfloat16 weights and moments take updates below their precision?

Rounding to nearest loses every change of less than 2^-9 of a bfloat16 number. Rounded up or down
with probabilities in proportion to the distances, updates arrive on average.
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgjax.errors import UserError
from pgjax.params import names as param_names

_LOST = 2.0**-9  # Smaller relative changes of a bfloat16 number are lost in rounding to nearest.

# Optimizers whose updates, before lr, are about 1 per element wherever the gradient is not 0.
_OF_SIZE_ONE = re.compile(
  r"pgjax\.\w+|big_vision\.scale_by_adafactor|lion|scale_by_lion|(scale_by_)?(adam|adamw|adamax|"
  r"adamaxw|nadam|nadamw|radam|amsgrad|adabelief|belief|yogi|adan|rmsprop|rms|stddev|factored_rms)"
)
_GRADIENTS = re.compile(r"sgd|identity|trace|big_vision\.(sgd|momentum_hp)")

# {name: axes of the fan-in} of leaves that params/names.py does not list as matrices. The table's
# rows are looked up and multiplied by sqrt(width).
_ALSO_SUMMED = {"llm/embedder/input_embedding": (1,), "img/embedding/kernel": (0, 1, 2)}


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
  """float32 to bfloat16, up or down so that the expected value is x.

  The same on any mesh: only the key and an element's index decide.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  rounded = (bits + _random_16(x.shape, key)) & jnp.uint32(0xFFFF0000)
  # A NaN keeps its bits: the sum could carry into its sign and make it a zero.
  rounded = jnp.where(jnp.isnan(x), bits, rounded)
  return jax.lax.bitcast_convert_type(rounded, jnp.float32).astype(jnp.bfloat16)


def _random_16(shape, key):
  """16 random bits per element: a hash of its index.

  On GPUs jax.random would write 8 bytes per element to memory; a hash is fused into its consumer.
  Arrays may have more than 2^32 elements, so the first axis is hashed separately.
  """
  words = jax.random.key_data(key).astype(jnp.uint32)
  index, stride = jnp.zeros(shape, jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
    stride *= shape[axis]
  row = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) if shape else jnp.uint32(0)
  return _mixed(_mixed(index ^ words[0]) + row + words[1]) >> 16


def _mixed(x):
  """A 32-bit hash: lowbias32 of C. Wellons' hash-prospector, public domain."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def leaf_key(key: jax.Array, name: str) -> jax.Array:
  """A leaf's own key, from its name, so that it does not depend on the other leaves."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def apply_updates(
  leaves: Mapping[str, jax.Array], updates: Mapping[str, jax.Array], key: jax.Array | None
) -> dict[str, jax.Array]:
  """leaves + updates in the leaves' dtypes; with a key, bfloat16 is rounded stochastically."""
  new = {}
  for name, leaf in leaves.items():
    total = leaf.astype(jnp.float32) + updates[name]
    if key is not None and leaf.dtype == jnp.bfloat16:
      new[name] = round_stochastically(total, leaf_key(key, name))
    else:
      new[name] = total.astype(leaf.dtype)
  return new


class AdamBf16State(NamedTuple):
  """Both moments in bfloat16, by leaf name."""

  count: jax.Array  # int32 []
  m: dict[str, jax.Array]
  v: dict[str, jax.Array]


def adam_bf16(
  b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
  """scale_by_adam with both moments in bfloat16, rounded stochastically.

  With b2 = 0.999 a second moment falls by at most 0.1% a step, and rounding to nearest loses all
  below 0.2% to 0.4%: it would never fall, and rise only for squared gradients 3 to 5 times larger.
  """

  def init(leaves):
    zeros = lambda: {n: jnp.zeros(leaf.shape, jnp.bfloat16) for n, leaf in leaves.items()}  # noqa: E731
    return AdamBf16State(jnp.zeros([], jnp.int32), zeros(), zeros())

  def update(grads, state, leaves=None):
    count = optax.safe_increment(state.count)
    key = jax.random.fold_in(jax.random.key(0), count)
    correct_m, correct_v = (1 - b ** count.astype(jnp.float32) for b in (b1, b2))
    new, updates = AdamBf16State(count, {}, {}), {}
    for name, grad in grads.items():
      grad = grad.astype(jnp.float32)
      m = b1 * state.m[name].astype(jnp.float32) + (1 - b1) * grad
      v = b2 * state.v[name].astype(jnp.float32) + (1 - b2) * grad * grad
      updates[name] = (m / correct_m) / (jnp.sqrt(v / correct_v) + eps)
      new.m[name] = round_stochastically(m, leaf_key(key, f"m/{name}"))
      new.v[name] = round_stochastically(v, leaf_key(key, f"v/{name}"))
    return updates, new

  return optax.GradientTransformation(init, update)


def check(config: Any, leaves: Mapping[str, Any]) -> None:
  """Refuses bfloat16 weights whose updates would be lost, if that can be known beforehand.

  leaves: the trainable leaves as stored, arrays or shapes, by name.
  """
  narrow = [name for name, leaf in leaves.items() if leaf.dtype == jnp.bfloat16]
  if config.stochastic_rounding:
    if not narrow:
      raise UserError(
        "config.stochastic_rounding=True has nothing to round: no trained parameter is stored in "
        'bfloat16. Set it to False, or give config.params a value train("bfloat16").'
      )
    return
  update = _update_size(config, sum(math.prod(leaf.shape) for leaf in leaves.values()))
  for name in narrow if update is not None else ():
    weight, change = typical_size(name, leaves[name].shape), update * _lr_mult(config, name)
    if weight is not None and change < _LOST * weight:
      raise UserError(
        f"config.params stores {name} in bfloat16, where a typical weight of {weight:.2g} loses "
        f"every change below {_LOST * weight:.1g}, and config.lr={config.lr:g} with "
        f"{config.optax_name} makes changes of about {change:.1g}, so most weights would never"
        " change. Set config.stochastic_rounding=True, store what trains in float32"
        ' ("train"), or raise config.lr.'
      )


def _update_size(config: Any, num_trained: int) -> float | None:
  """The typical update of one weight at the peak of the schedule; None if unknown."""
  if _OF_SIZE_ONE.fullmatch(config.optax_name):
    return config.lr
  if _GRADIENTS.fullmatch(config.optax_name) and config.grad_clip_norm:
    # The root mean square of N gradients is at most the clipping norm over sqrt(N).
    momentum = config.optax.get("momentum", config.optax.get("decay"))
    if momentum is None:
      momentum = 0.9 if config.optax_name == "big_vision.momentum_hp" else 0.0
    return config.lr * config.grad_clip_norm / math.sqrt(num_trained) / (1.0 - momentum)
  return None


def typical_size(name: str, shape: Sequence[int]) -> float | None:
  """The root mean square that a matrix is initialized with; None without a fan-in."""
  if name in _ALSO_SUMMED:
    axes = _ALSO_SUMMED[name]
  elif matrix := param_names.matrix(name):
    axes = [matrix.axes.index(axis) for axis in matrix.summed]
  else:
    return None
  return math.prod(shape[axis] for axis in axes) ** -0.5


def _lr_mult(config, name):
  patterns = config.lr_mults or ()
  return next((mult for pattern, mult in patterns if re.fullmatch(pattern, name)), 1.0)
