"""Which tokens does a grammar allow next? This part of grammar.py runs inside the jit.

Axes: B batch, N branches of a row, V vocabulary; G grammars, P places (states) of one grammar,
K kinds of tokens: tokens that no grammar distinguishes share a kind, so that tables stay small.
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


def allowed(
  tables: Tables, grammar_B: Int[Array, " B"], place_BN: Int[Array, "B N"], left
) -> Bool[Array, "B N V"]:
  """The tokens after which the grammar can still be completed within `left` more tokens."""
  next_BNK = tables.next_GPK[grammar_B[:, None], place_BN]
  distance_BNK = tables.distance_GP[grammar_B[:, None, None], jnp.maximum(next_BNK, 0)]
  return ((next_BNK != FORBIDDEN) & (distance_BNK <= left))[..., tables.kind_V]


def advance(
  tables: Tables,
  grammar_B: Int[Array, " B"],
  place_BN: Int[Array, "B N"],
  token_BN: Int[Array, "B N"],
) -> Int[Array, "B N"]:
  """The place after a token; unchanged if the token is forbidden (the 0 of an ended branch)."""
  next_BN = tables.next_GPK[grammar_B[:, None], place_BN, tables.kind_V[token_BN]]
  return jnp.where(next_BN == FORBIDDEN, place_BN, next_BN)
