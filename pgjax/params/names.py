"""What is each parameter called ("llm/layers/attn/q_einsum/w"), and what are its axes?"""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pgjax.errors import UserError, did_you_mean

MAX_PATTERN = 2_000  # Characters of a regular expression over names.
LORA = "lora/"  # The factors of llm/x are lora/llm/x/a and lora/llm/x/b.
STACKED = ("llm/layers/", "img/Transformer/encoderblock/")  # Axis 0 of these leaves is the layer.


class Matrix(NamedTuple):
  """The axes of a leaf that is a matrix in a product: each is shared, summed over, or new."""

  axes: str
  shared: str
  summed: str

  @property
  def new(self) -> str:
    """The axes that are in the product, but not in x."""
    return "".join(a for a in self.axes if a not in self.shared + self.summed)


# Every product with a weight; L layers, C the parts of a fused leaf. The patch embedding (a
# convolution) and the token table (a lookup) are neither adapted nor quantized.
_VISION = "img/Transformer/encoderblock/"
_MATRICES = {
  "llm/layers/attn/q_einsum/w": Matrix("LNDH", "L", "D"),
  "llm/layers/attn/q?kv_einsum/w": Matrix("LCKDH", "LC", "D"),
  "llm/layers/attn/attn_vec_einsum/w": Matrix("LNHD", "L", "NH"),
  "llm/layers/mlp/gating_einsum": Matrix("LCDF", "LC", "D"),
  "llm/layers/mlp/linear": Matrix("LFD", "L", "F"),
  f"{_VISION}MultiHeadDotProductAttention_0/(query|key|value)/kernel": Matrix("LDNH", "L", "D"),
  f"{_VISION}MultiHeadDotProductAttention_0/out/kernel": Matrix("LNHD", "L", "NH"),
  f"{_VISION}MlpBlock_0/Dense_[01]/kernel": Matrix("LDF", "L", "D"),
  "img/head/kernel": Matrix("DF", "", "D"),
}


def matrix(name: str) -> Matrix | None:
  """The axes of the leaf of that name; None if it is not a matrix, such as a norm's scale."""
  return next((m for pattern, m in _MATRICES.items() if re.fullmatch(pattern, name)), None)


def compile_pattern(pattern: str, where: str = "config.params") -> re.Pattern[str]:
  """Compiles a pattern over names and reports a mistake with its field; match time is unlimited."""
  if not isinstance(pattern, str):
    raise UserError(f"{where}: a pattern must be a string, not {pattern!r}.")
  if len(pattern) > MAX_PATTERN:
    raise UserError(f"{where}: a pattern has up to {MAX_PATTERN} characters, not {len(pattern)}.")
  if pattern.startswith("/"):
    raise UserError(f"{where}: names never start with '/', so {pattern!r} matches nothing.")
  try:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # Of "[[" and the like.
      return re.compile(pattern)
  except (re.error, ValueError, OverflowError, RecursionError, MemoryError) as e:
    raise UserError(f"{where}: {pattern!r} is not a regular expression: {e}.") from None


def first_match(
  patterns: Sequence[str], names: Iterable[str], where: str = "config.params"
) -> dict[str, int | None]:
  """{name: index of the first pattern that matches all of it, or None}."""
  compiled = [compile_pattern(p, where) for p in patterns]
  return {
    name: next((i for i, p in enumerate(compiled) if p.fullmatch(name)), None) for name in names
  }


def check_used(patterns: Sequence[str], matches: Mapping[str, int | None], where: str) -> None:
  """Raises if a pattern is unused: earlier patterns match all of its names, or it has none."""
  for i in sorted(set(range(len(patterns))) - set(matches.values())):
    taken, hint = [name for name in matches if re.fullmatch(patterns[i], name)], ""
    if taken:
      why = f"the patterns before it already match all of its names, such as {taken[0]!r}"
    else:
      why = "no name matches it"
      prefixes = {"/".join(n.split("/")[:i]) for n in matches for i in range(1, n.count("/") + 2)}
      hint = did_you_mean(patterns[i], [f"{prefix}/.*" for prefix in sorted(prefixes)])
    raise UserError(
      f"{where}: pattern {patterns[i]!r} is never used: {why}. Fix or remove it.{hint}"
    )
