"""How do bfloat16 numbers take in updates that are smaller than their rounding?

bfloat16 has 8 significant bits: what changes a number by less than 2^-9 of itself is lost, each
time, when it is rounded to the nearest. Rounded up or down by chance, in proportion to the
distance, it arrives on average (stochastic rounding). `check` refuses runs that need it and do not
have it; `applied` adds updates to weights; `adam_bf16` keeps Adam's moments in 2 bytes each.
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

_LOST = (
  2.0**-9
)  # A smaller relative change of a bfloat16 number never survives rounding to nearest.

# Optimizers whose updates, before lr, are of about 1 an element, wherever the gradient is not 0.
_OF_SIZE_ONE = re.compile(
  r"pgjax\.\w+|big_vision\.scale_by_adafactor|lion|scale_by_lion|(scale_by_)?(adam|adamw|adamax|"
  r"adamaxw|nadam|nadamw|radam|amsgrad|adabelief|belief|yogi|adan|rmsprop|rms|stddev|factored_rms)"
)
_GRADIENTS = re.compile(r"sgd|identity|trace|big_vision\.(sgd|momentum_hp)")

# Summed over in a product, but not matrices of params/names.py: (name, axes). The table's rows are
# looked up and multiplied by sqrt(width).
_ALSO_SUMMED = {"llm/embedder/input_embedding": (1,), "img/embedding/kernel": (0, 1, 2)}


def stochastic(x: jax.Array, key: jax.Array) -> jax.Array:
  """float32 to bfloat16, up or down by chance so that the expected value is x.

  The same on any mesh: an element's chance depends on the key and on its place in the array alone.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  rounded = (bits + _random_16(x.shape, key)) & jnp.uint32(0xFFFF0000)
  # A NaN keeps its bits: the sum could carry into its sign and make it a zero.
  rounded = jnp.where(jnp.isnan(x), bits, rounded)
  return jax.lax.bitcast_convert_type(rounded, jnp.float32).astype(jnp.bfloat16)


def _random_16(shape, key):
  """16 random bits an element, by hashing its place.

  jax.random would do, but on GPUs writes its 8 bytes an element to memory, where a hash is fused
  into what uses it. Arrays may have more than 2^32 elements, so the first axis counts for itself.
  """
  words = jax.random.key_data(key).astype(jnp.uint32)
  place, stride = jnp.zeros(shape, jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    place += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
    stride *= shape[axis]
  row = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) if shape else jnp.uint32(0)
  return _mixed(_mixed(place ^ words[0]) + row + words[1]) >> 16


def _mixed(x):
  """A bijection of 32 bits in which each output bit depends on all input bits.

  lowbias32 of C. Wellons' hash-prospector, public domain.
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def leaf_key(key: jax.Array, name: str) -> jax.Array:
  """A leaf's own key, of its name, so that other leaves coming or going change nothing."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def applied(
  leaves: Mapping[str, jax.Array], updates: Mapping[str, jax.Array], key: jax.Array | None
) -> dict[str, jax.Array]:
  """leaves + updates in the leaves' dtypes; with a key, bfloat16 ones are rounded by chance."""
  new = {}
  for name, leaf in leaves.items():
    total = leaf.astype(jnp.float32) + updates[name]
    by_chance = key is not None and leaf.dtype == jnp.bfloat16
    new[name] = stochastic(total, leaf_key(key, name)) if by_chance else total.astype(leaf.dtype)
  return new


class AdamBf16State(NamedTuple):
  """Both moments in bfloat16, by the names of the leaves."""

  count: jax.Array  # int32 []
  m: dict[str, jax.Array]
  v: dict[str, jax.Array]


def adam_bf16(
  b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
  """scale_by_adam with both moments in bfloat16, rounded by chance.

  With b2 = 0.999 and rounding to the nearest a second moment would never fall: that takes 0.1% a
  step, and all below 0.2% to 0.4% is lost. It would rise only where a squared gradient is more
  than three to five times as large.
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
      new.m[name] = stochastic(m, leaf_key(key, f"m/{name}"))
      new.v[name] = stochastic(v, leaf_key(key, f"v/{name}"))
    return updates, new

  return optax.GradientTransformation(init, update)


def check(config: Any, leaves: Mapping[str, Any]) -> None:
  """Refuses bfloat16 weights whose updates would be lost, as far as it can be known beforehand.

  `leaves`: the trained leaves as stored, arrays or shapes, by name.
  """
  narrow = [name for name, leaf in leaves.items() if leaf.dtype == jnp.bfloat16]
  if config.stochastic_rounding:
    if not narrow:
      raise UserError(
        "config.stochastic_rounding=True has nothing to round: no trained parameter is stored in "
        'bfloat16. Set it to False, or give config.params a value train("bfloat16").'
      )
    return
  update = update_size(config, sum(math.prod(leaf.shape) for leaf in leaves.values()))
  if update is None:
    return
  for name in narrow:
    weight, change = typical_size(name, leaves[name].shape), update * _lr_mult(config, name)
    if weight is not None and change < _LOST * weight:
      raise UserError(
        f"config.params stores {name} in bfloat16, where a typical weight of {weight:.2g} loses "
        f"every change below {_LOST * weight:.1g}, and config.lr={config.lr:g} with "
        f"{config.optax_name} makes changes of about {change:.1g}, so most "
        "weights would stand still. Set config.stochastic_rounding=True, store what trains in "
        'float32 ("train"), or raise config.lr.'
      )


def update_size(config: Any, num_trained: int) -> float | None:
  """The size of an update of one weight at the peak of the schedule; None where nobody can know.

  Adam and its kin: about lr. Plain gradients: with clipping their root mean square is at most
  the clipping norm over the root of how many there are; without clipping it is not known.
  """
  if _OF_SIZE_ONE.fullmatch(config.optax_name):
    return config.lr
  if _GRADIENTS.fullmatch(config.optax_name) and config.grad_clip_norm:
    momentum = config.optax.get("momentum", config.optax.get("decay", None))
    if momentum is None:
      momentum = 0.9 if config.optax_name == "big_vision.momentum_hp" else 0.0
    return config.lr * config.grad_clip_norm / math.sqrt(num_trained) / (1.0 - momentum)
  return None


def typical_size(name: str, shape: Sequence[int]) -> float | None:
  """The root mean square that a matrix is initialized with; None for what has no fan-in."""
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
