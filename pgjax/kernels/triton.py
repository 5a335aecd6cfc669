"""Fused attention of our own for NVIDIA GPUs from Ampere on, with a backward pass: Triton.

This file chooses the blocks; the kernels are in triton_attention.py, which imports Pallas. Axes: as
there.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Array, Float

from pgjax.kernels.visible_keys import VisibleKeys

# Up to so many keys, reading the gradient of scores costs less than making them once more.
MOST_STORED_KEYS = 512
_LARGE_SHARED_MEMORY = (9, 10)  # Whole numbers of compute capabilities with 227 KiB.


class Tile(NamedTuple):
  """What one program of a kernel holds."""

  queries: int
  keys: int
  warps: int
  stages: int  # Of the loop's loads, in shared memory.
  head_size: int


class Blocks(NamedTuple):
  """The tiles of the three kernels."""

  forward: Tile
  queries: Tile  # Backward, for the queries' gradient.
  keys: Tile  # Backward, for the gradients of keys and values.


def parts(head_size: int) -> tuple[tuple[int, int], ...]:
  """(start, size) of the parts of a head: powers of two, at least 16, that cover it."""
  found, start, rest = [], 0, -(-head_size // 16) * 16
  while rest:
    size = 1 << (rest.bit_length() - 1)
    found.append((start, size))
    start, rest = start + size, rest - size
  return tuple(found)


def padded(head_size: int) -> int:
  """The numbers of a head that products are over."""
  return sum(size for _, size in parts(head_size))


def blocks(head_size: int, capability: float | None) -> Blocks:
  """The tiles that fit the registers and the shared memory; None: small ones, for tests."""
  H = head_size
  if capability is None:
    return Blocks(*[Tile(16, 16, 4, 1, H)] * 3)
  if padded(H) <= 128:
    return Blocks(Tile(128, 64, 4, 2, H), Tile(64, 64, 4, 2, H), Tile(64, 64, 4, 2, H))
  if int(capability) in _LARGE_SHARED_MEMORY:
    queries = 64 if int(capability) == 9 else 32  # Products of capability 10 need more of it.
    return Blocks(Tile(128, 64, 8, 2, H), Tile(64, 64, 8, 2, H), Tile(queries, 64, 8, 2, H))
  return Blocks(Tile(64, 32, 4, 1, H), Tile(32, 32, 4, 1, H), Tile(32, 32, 4, 1, H))


def stores_scores(num_keys: int) -> bool:
  """Whether the gradient of scores is an array, of which that of queries is computed."""
  return num_keys <= MOST_STORED_KEYS


def flops(kernel: str, first: Sequence[int], second: Sequence[int]) -> int:
  """FLOPs of the products of one kernel, by its name; all keys counted, heads as padded.

  first, second: shapes of its first two arrays, queries [B, T, K, G, H] or scores [B, K, G, T, S],
  and keys [B, S, K, H].
  """
  if kernel == "attention_means":
    return 0
  pairs = math.prod(first[:4]) * second[1]  # Of queries and keys.
  products = dict(attention_forward=2, attention_from_scores=1, attention_backward_queries=3,
                  attention_backward_keys=4)  # fmt: skip
  return 2 * products[kernel] * pairs * padded(second[-1])


def forward(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  visible: VisibleKeys | None,
  *,
  softcap: float,
  score_dtype: str,
  capability: float | None = None,
) -> tuple[Float[Array, "B T K G H"], Float[Array, "B K G T"]]:
  """(output, log of the softmax's denominator); scores are float32 whatever score_dtype is.

  capability: of the GPU that is compiled for; None: interpreted, for tests.
  """
  from pgjax.kernels import triton_attention

  how = _how(q_BTKGH, softcap, capability)
  return triton_attention.forward(q_BTKGH, k_BSKH, v_BSKH, visible, **how)


def backward(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  visible: VisibleKeys | None,
  out_BTKGH: Float[Array, "B T K G H"],
  lse_BKGT: Float[Array, "B K G T"],
  dout_BTKGH: Float[Array, "B T K G H"],
  *,
  softcap: float,
  score_dtype: str,
  capability: float | None = None,
) -> tuple[Float[Array, "B T K G H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
  """Gradients of q, k and v."""
  from pgjax.kernels import triton_attention

  arrays = (q_BTKGH, k_BSKH, v_BSKH, visible, out_BTKGH, lse_BKGT, dout_BTKGH)
  return triton_attention.backward(*arrays, **_how(q_BTKGH, softcap, capability))


def _how(q_BTKGH, softcap, capability):
  tiles = blocks(q_BTKGH.shape[-1], capability)
  return dict(softcap=softcap, blocks=tiles, interpret=capability is None)
