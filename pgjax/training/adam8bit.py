"""Adam with moments of one byte each: block-wise dynamic quantization (arXiv:2110.02861).

Each element has a code of a fixed map of 256 values, each block a float32 scale. Codes have their
leaf's shape and sharding. XLA fuses decoding and encoding into the update, so that no whole moment
exists in float32.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pgjax.errors import UserError

SMALL = 4096  # Leaves with fewer elements have float32 moments, as in bitsandbytes.
_LEAST_BLOCK = 64  # Shorter blocks would spend more on scales than they save: float32 too.
_DECADES = 7


class Adam8bitState(NamedTuple):
  """Both moments, by leaf name: codes for a leaf with a scale, float32 otherwise."""

  count: jax.Array  # int32 []
  m: dict[str, jax.Array]
  m_scale: dict[str, jax.Array]
  v: dict[str, jax.Array]
  v_scale: dict[str, jax.Array]


class Blocks(NamedTuple):
  """How a leaf is cut into blocks."""

  axis: int
  size: int

  def split(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The leaf's shape with the axis split into (number of blocks, size of a block)."""
    a = self.axis
    return (*shape[:a], shape[a] // self.size, self.size, *shape[a + 1 :])

  def scales(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the leaf's scales."""
    a = self.axis
    return (*shape[:a], shape[a] // self.size, *shape[a + 1 :])


def adam8bit(
  b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, block: int = 256
) -> optax.GradientTransformation:
  """scale_by_adam for flat dicts of leaves, with codes for moments; `block`: the largest block."""
  if not isinstance(block, int) or block < _LEAST_BLOCK:
    raise UserError(
      f"config.optax.block={block} must be a whole number >= {_LEAST_BLOCK}; try 256."
    )

  def moments(grad, old, blocks):
    m, v, m_scale, v_scale = old
    if blocks:
      m, v = decode(SIGNED, m, m_scale, blocks), decode(UNSIGNED, v, v_scale, blocks)
    return b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad * grad

  def init(leaves):
    state = Adam8bitState(jnp.zeros([], jnp.int32), {}, {}, {}, {})
    for name, leaf in leaves.items():
      if blocks := blocks_of(leaf.shape, block):
        state.m[name] = jnp.full(leaf.shape, SIGNED.zero, jnp.uint8)
        state.v[name] = jnp.full(leaf.shape, UNSIGNED.zero, jnp.uint8)
        state.m_scale[name] = jnp.zeros(blocks.scales(leaf.shape), jnp.float32)
        state.v_scale[name] = jnp.zeros(blocks.scales(leaf.shape), jnp.float32)
      else:
        state.m[name] = jnp.zeros(leaf.shape, jnp.float32)
        state.v[name] = jnp.zeros(leaf.shape, jnp.float32)
    return state

  def update(grads, state, leaves=None):
    count = optax.safe_increment(state.count)
    correct_m, correct_v = (1 - b ** count.astype(jnp.float32) for b in (b1, b2))
    new = Adam8bitState(count, {}, {}, {}, {})
    updates = {}
    for name, grad in grads.items():
      blocks = blocks_of(grad.shape, block)
      old = state.m[name], state.v[name], state.m_scale.get(name), state.v_scale.get(name)
      m, v = moments(grad.astype(jnp.float32), old, blocks)
      if blocks:
        # Three passes (scales, update, codes), each from the old codes. Without the barriers XLA
        # joins them and stores both moments of a leaf in float32 in between.
        scales = new.m_scale[name], new.v_scale[name] = scale_of(m, blocks), scale_of(v, blocks)
        old, scales = jax.lax.optimization_barrier((old, scales))
        m, v = moments(grad.astype(jnp.float32), old, blocks)
      updates[name] = (m / correct_m) / (jnp.sqrt(v / correct_v) + eps)
      if blocks:
        old, scales, updates[name] = jax.lax.optimization_barrier((old, scales, updates[name]))
        m, v = moments(grad.astype(jnp.float32), old, blocks)
        m, v = encode(SIGNED, m, scales[0], blocks), encode(UNSIGNED, v, scales[1], blocks)
      new.m[name], new.v[name] = m, v
    return updates, new

  return optax.GradientTransformation(init, update)


def blocks_of(shape: tuple[int, ...], block: int) -> Blocks | None:
  """Equal blocks of at most `block` along the last axis but the longest (fsdp's); None: float32."""
  if math.prod(shape) < SMALL:
    return None
  longest = max(range(len(shape)), key=lambda axis: (shape[axis], axis))
  for axis in [*(a for a in reversed(range(len(shape))) if a != longest), longest]:
    size = max(n for n in range(1, block + 1) if shape[axis] % n == 0)
    if size >= _LEAST_BLOCK:
      return Blocks(axis, size)
  return None


def scale_of(x: jax.Array, blocks: Blocks) -> jax.Array:
  """The largest magnitude of each block."""
  return jnp.max(jnp.abs(x.reshape(blocks.split(x.shape))), axis=blocks.axis + 1)


def decode(map_: "Map", codes: jax.Array, scale: jax.Array, blocks: Blocks) -> jax.Array:
  """float32 values of the codes, given the scales of their blocks."""
  return map_.value(codes) * _per_element(scale, codes.shape, blocks)


def encode(map_: "Map", x: jax.Array, scale: jax.Array, blocks: Blocks) -> jax.Array:
  """The codes of the values nearest to x."""
  return map_.nearest(x / _per_element(jnp.where(scale > 0, scale, 1.0), x.shape, blocks))


def _per_element(scale, shape, blocks):
  """Each element's scale. Nothing else is reshaped, so that XLA writes codes in place."""
  scale = jnp.expand_dims(scale, blocks.axis + 1)
  return jnp.broadcast_to(scale, blocks.split(shape)).reshape(shape)


class Map:
  """The dynamic map: zero, one, and the middles of equal cells of [0.1, 1] in each of 7 decades.

  Each decade has twice as many cells as the one below. bitsandbytes' functional.
  create_dynamic_map(signed, max_exponent_bits=7, total_bits=8) defines the same 256 values.
  Codes and values are computed, not looked up: XLA does not write the result of a gather in place.
  No constant here is 0: XLA would share it with the initial zeros of the table's gradient, as a
  live array (2.4 GB for PaliGemma 2 3B).
  """

  def __init__(self, *, signed: bool):
    """The lowest decade has one cell if signed, two otherwise."""
    self.signed = signed
    self.cells = [2 ** (k if signed else k + 1) for k in range(_DECADES)]
    tops = [10.0 ** (k + 1 - _DECADES) for k in range(_DECADES)]
    self.widths = [0.9 * top / n for top, n in zip(tops, self.cells, strict=True)]
    self.firsts = [1 + sum(self.cells[:k]) for k in range(_DECADES + 1)]  # Indices in `positive`.
    middles = [
      0.1 * top + width * (np.arange(n) + 0.5)
      for top, width, n in zip(tops, self.widths, self.cells, strict=True)
    ]
    self.positive = np.concatenate([[0.0], *middles, [1.0]])
    self.zero = self.firsts[-1] - 1 if signed else 0  # The code of 0; there is no -1.
    self.values = np.concatenate([-self.positive[self.zero : 0 : -1], self.positive])

  def value(self, codes: jax.Array) -> jax.Array:
    """The codes' values."""
    offset = codes.astype(jnp.float32) - self.zero
    index = jnp.abs(offset)
    widths = [*self.widths, self.widths[-1]]
    starts = [self.positive[f] - f * w for f, w in zip(self.firsts, widths, strict=True)]
    start, width = np.float32(starts[0]), np.float32(widths[0])
    for k in range(1, _DECADES + 1):
      above = index >= self.firsts[k]
      start = jnp.where(above, np.float32(starts[k]), start)
      width = jnp.where(above, np.float32(widths[k]), width)
    return jnp.sign(offset) * (start + index * width)

  def nearest(self, x: jax.Array) -> jax.Array:
    """The code of the value nearest to each x in [-1, 1], but of a nonzero second moment never 0.

    Its element would be divided by almost nothing and move by up to 1 / sqrt(1 - b2) times the
    rate in every step.
    """
    edges = ((self.positive[1:] + self.positive[:-1]) / 2).astype(np.float32)
    a = jnp.abs(x)
    first, cells, width = (np.float32(c[0]) for c in (self.firsts, self.cells, self.widths))
    for k in range(1, _DECADES):
      above = a >= edges[self.firsts[k] - 1]
      first = jnp.where(above, np.float32(self.firsts[k]), first)
      cells = jnp.where(above, np.float32(self.cells[k]), cells)
      width = jnp.where(above, np.float32(self.widths[k]), width)
    # A decade begins at a ninth of its length.
    cell = jnp.floor(jnp.clip(a / width - cells / 9, 0.5, cells - 0.5))
    index = jnp.where(a >= edges[-1], np.float32(len(edges)), first + cell)
    if self.signed:
      index = jnp.sign(x) * jnp.sign(jnp.floor(a / edges[0])) * index
      return (self.zero + jnp.maximum(index, -self.zero)).astype(jnp.uint8)
    return (jnp.sign(a) * index).astype(jnp.uint8)


SIGNED, UNSIGNED = Map(signed=True), Map(signed=False)
