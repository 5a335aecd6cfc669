"""Which parameters train, and how is each stored?

`config.params`, an ordered list of (regex, spec), decides: the first full match wins.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pgjax import call_syntax
from pgjax.call_syntax import Between
from pgjax.errors import UserError
from pgjax.params import names as param_names

STORAGE_DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED = ("nf4", "int8")  # For matrices; other leaves of such a pattern are stored in bfloat16.


class Rule(NamedTuple):
  """How one leaf is stored and trained; a lora leaf is frozen, and its two factors train."""

  kind: str  # "train", "freeze" or "lora"
  dtype: str | None = None  # Stored; None: float32 if it trains, else the compute dtype.
  rank: int = 0
  alpha: float = 0.0
  dropout: float = 0.0
  rslora: bool = False
  block: int = 64  # Numbers that share a scale, where the dtype is quantized.
  double: bool = False  # The scales are quantized too.

  @property
  def scale(self) -> float:
    """The multiplier of the factors' product (rslora: arXiv:2312.03732)."""
    return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def parse_spec(spec: str) -> Rule:
  """Parses a value of config.params, such as `freeze("nf4")` or `lora(rank=8, base="bfloat16")`."""
  return call_syntax.parse_one(spec, SPECS, "config.params")()


_Stored = Literal[STORAGE_DTYPES] | None
_Frozen = Literal[STORAGE_DTYPES + QUANTIZED] | None
_Block = Literal[8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]


def _train(dtype: _Stored = None) -> Rule:
  return Rule("train", dtype)


def _freeze(dtype: _Frozen = None, block: _Block = 64, double: bool = False) -> Rule:
  return Rule("freeze", dtype, block=block, double=double)


def _lora(
  rank: Annotated[int, Between(1, 65_536)] = 8,
  alpha: Annotated[float, Between(0, 1e9, but_not=(0,))] | None = None,
  dropout: Annotated[float, Between(0, 1, but_not=(1,))] = 0.0,
  rslora: bool = False,
  base: _Frozen = None,
  block: _Block = 64,
  double: bool = False,
) -> Rule:
  alpha = 2 * rank if alpha is None else alpha
  return Rule("lora", base, rank, alpha, dropout, rslora, block, double)


SPECS = {"train": _train, "freeze": _freeze, "lora": _lora}


def rules(patterns: Sequence[tuple[str, str]], names: Iterable[str]) -> dict[str, Rule]:
  """The rule of every leaf: first full match wins, nothing uncovered, no pattern unused.

  A pattern that adapts or quantizes must cover at least one matrix; its other leaves are frozen,
  in bfloat16 if the matrices are quantized.
  """
  specs = [parse_spec(spec) for _, spec in patterns]
  matches = param_names.first_match([p for p, _ in patterns], names)
  uncovered = [name for name, i in matches.items() if i is None]
  if uncovered:
    raise UserError(
      f"config.params: no pattern covers {_some(uncovered)}; "
      'every parameter needs one, so end the list with (".*", "freeze") or (".*", "train").'
    )
  param_names.check_used([p for p, _ in patterns], matches, "config.params")
  for i, (pattern, spec) in enumerate(patterns):
    covered = [name for name, match in matches.items() if match == i]
    if specs[i] != _plain(specs[i]) and not any(map(param_names.matrix, covered)):
      raise UserError(
        f"config.params: {pattern!r} has the value {spec!r}, which is for matrices of products, "
        f"and covers none, only {_some(covered)}. Matrices are, for example, "
        "llm/layers/attn/q_einsum/w and img/head/kernel."
      )
  return {n: specs[i] if param_names.matrix(n) else _plain(specs[i]) for n, i in matches.items()}


def _plain(rule: Rule) -> Rule:
  """The rule of a leaf that is neither adapted nor quantized."""
  dtype = "bfloat16" if rule.dtype in QUANTIZED else rule.dtype
  return Rule("train" if rule.kind == "train" else "freeze", dtype)


def trained_names(rules: Mapping[str, Rule]) -> list[str]:
  """Flat names of the optimizer's parameters: trained leaves, and factors of adapted ones."""
  names = [name for name, rule in rules.items() if rule.kind == "train"]
  adapted = [name for name, rule in rules.items() if rule.kind == "lora"]
  return sorted(names + [f"{param_names.LORA}{name}/{f}" for name in adapted for f in "ab"])


def from_schedule(schedule: Any) -> tuple[list[tuple[str, str]] | None, Any]:
  """(patterns, or None without freezing; rest) of big_vision's `schedule=[(regex, None), ...]`."""
  if isinstance(schedule, Mapping) or all(value is not None for _, value in schedule):
    return None, schedule
  patterns = [(p, "freeze" if value is None else "train") for p, value in schedule]
  return patterns, [(p, value) for p, value in schedule if value is not None]


def _some(names: list[str], most: int = 4) -> str:
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(map(repr, names[:most])) + rest
