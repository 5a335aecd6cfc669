"""Which tokens does a grammar allow next? This part of grammar.py runs inside the jit.

Axes: B batch, N branches of a row, V vocabulary; G grammars, P places (states) of one grammar,
K kinds of tokens: tokens that no grammar distinguishes share a kind, so that tables stay small.
The second corner of a box depends on the first: there a token is also compared with the one two
before (y1 with y0, x1 with x0), which no table of reasonable size could do.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

FORBIDDEN = -1


class Tables(NamedTuple):
  """Grammars as automata over tokens; each starts at place 0."""

  kind_V: Int[Array, " V"]
  next_GPK: Int[Array, "G P K"]  # FORBIDDEN where a place does not allow a kind.
  distance_GP: Int[Array, "G P"]  # Fewest tokens to the end, including the eos.
  number_V: Int[Array, " V"] | None = None  # Of <loc>, -1 for other tokens; None: no boxes.
  second_GP: Bool[Array, "G P"] | None = None  # Whether a place expects y1 or x1.


def allowed(
  tables: Tables,
  grammar_B: Int[Array, " B"],
  place_BN: Int[Array, "B N"],
  left,
  before_BN: Int[Array, "B N"] | None = None,
) -> Bool[Array, "B N V"]:
  """The tokens after which the grammar can still be completed within `left` more tokens.

  before_BN: the token two before, which a grammar of boxes needs.
  """
  next_BNK = tables.next_GPK[grammar_B[:, None], place_BN]
  distance_BNK = tables.distance_GP[grammar_B[:, None, None], jnp.maximum(next_BNK, 0)]
  allowed_BNV = ((next_BNK != FORBIDDEN) & (distance_BNK <= left))[..., tables.kind_V]
  if tables.second_GP is None:
    return allowed_BNV
  second_BN = tables.second_GP[grammar_B[:, None], place_BN]
  larger_BNV = tables.number_V > tables.number_V[before_BN][..., None]
  return allowed_BNV & (~second_BN[..., None] | larger_BNV)


def advance(
  tables: Tables,
  grammar_B: Int[Array, " B"],
  place_BN: Int[Array, "B N"],
  token_BN: Int[Array, "B N"],
) -> Int[Array, "B N"]:
  """The place after a token; unchanged if the token is forbidden (the 0 of an ended branch)."""
  next_BN = tables.next_GPK[grammar_B[:, None], place_BN, tables.kind_V[token_BN]]
  return jnp.where(next_BN == FORBIDDEN, place_BN, next_BN)
