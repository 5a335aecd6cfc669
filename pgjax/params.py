"""What is each parameter called, and which ones train?

Names are the paths of the tree joined with slashes ("llm/layers/attn/q_einsum/w"). One ordered list
of (regex, spec) decides what trains; the first pattern that matches a whole name wins. How a leaf
is kept is leaves.py's business, where it lives sharding.py's, what its gradient becomes optim.py's.
"""

import ast
import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pgjax.errors import UserError

STORAGE_DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED = ("nf4", "int8")  # For matrices; what else such a pattern covers is kept in bfloat16.
LORA = "lora/"  # The factors of llm/x are lora/llm/x/a and lora/llm/x/b.
STACKED = ("llm/layers/", "img/Transformer/encoderblock/")  # Axis 0 of these leaves is the layer.
_SPECS = (
  'allowed are "train", "freeze", freeze("bfloat16") (or float16, float32, nf4, int8) and'
  ' lora(rank=8, alpha=16, dropout=0.0, rslora=False, base="nf4")'
)


class Rule(NamedTuple):
  """What happens to one leaf.

  `dtype` is the storage dtype; None means float32 for a trained leaf, and the compute dtype for a
  frozen one (leaves.of). A lora leaf is frozen, and two factors of it train.
  """

  kind: str  # "train", "freeze" or "lora"
  dtype: str | None = None
  rank: int = 0
  alpha: float = 0.0
  dropout: float = 0.0
  rslora: bool = False
  block: int = 64  # Numbers that share a scale, where the dtype is quantized.
  double: bool = False  # The scales are quantized too.

  @property
  def scale(self) -> float:
    """What the product of the factors is multiplied by (rslora: arXiv:2312.03732)."""
    return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class Matrix(NamedTuple):
  """The axes of a leaf that is a matrix in a product: each is shared, summed over, or new."""

  axes: str
  shared: str
  summed: str

  @property
  def new(self) -> str:
    """The axes of the product that x did not have."""
    return "".join(a for a in self.axes if a not in self.shared + self.summed)


# Every product with a weight; L layers, C the parts of a fused leaf. The patch embedding is a
# convolution, the token table a lookup: neither is adapted or quantized.
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
  """The axes of the leaf of that name; None if it is no matrix, such as a norm's scale."""
  return next((m for pattern, m in _MATRICES.items() if re.fullmatch(pattern, name)), None)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dict to {"a/b/c": leaf}, sorted by name."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= {f"{key}/{name}": leaf for name, leaf in flatten(value).items()}
    else:
      flat[key] = value
  return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *path, last = name.split("/")
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def parse_spec(spec: str) -> Rule:
  """Reads a value of config.params, such as `freeze("nf4")` or `lora(rank=8, base="bfloat16")`."""
  try:
    node = ast.parse(spec, mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    kind, args = call.func.id, [ast.literal_eval(arg) for arg in call.args]
    fields = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
  except (SyntaxError, ValueError, AttributeError, TypeError):
    raise UserError(f"config.params: cannot read {spec!r}; {_SPECS}.") from None
  if kind not in _FIELDS:
    raise UserError(f"config.params: unknown value {spec!r}; {_SPECS}.")
  names = _FIELDS[kind]
  if unknown := sorted(fields.keys() - set(names)) or args[len(names) :]:
    raise UserError(
      f"config.params: {spec!r}: {kind} takes no {unknown[0]!r}, only {', '.join(names)}."
    )
  fields = dict(zip(names, args, strict=False)) | fields
  rule = Rule(kind, **{"dtype" if name == "base" else name: v for name, v in fields.items()})
  if kind == "lora":
    rank = fields.get("rank", 8)
    rule = rule._replace(rank=rank, alpha=fields.get("alpha", 2 * rank))
  _check_rule(spec, rule)
  return rule


_FIELDS = {
  "train": ("dtype",),
  "freeze": ("dtype", "block", "double"),
  "lora": ("rank", "alpha", "dropout", "rslora", "base", "block", "double"),
}


def _check_rule(spec: str, rule: Rule) -> None:
  dtypes = STORAGE_DTYPES + (() if rule.kind == "train" else QUANTIZED)
  number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)  # noqa: E731
  wrong = None
  if rule.dtype not in (None, *dtypes):
    wrong = f"stores in an unknown dtype {rule.dtype!r}; a leaf that is to {rule.kind} may have "
    wrong += ", ".join(dtypes)
  elif rule.kind == "lora" and not (type(rule.rank) is int and rule.rank >= 1):
    wrong = f"has rank={rule.rank!r}, which must be a whole number >= 1"
  elif rule.kind == "lora" and not (number(rule.alpha) and rule.alpha > 0):
    wrong = f"has alpha={rule.alpha!r}, which must be a number > 0"
  elif not (number(rule.dropout) and 0 <= rule.dropout < 1):
    wrong = f"has dropout={rule.dropout!r}, which must be a number >= 0 and < 1"
  elif rule.block not in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
    wrong = f"has block={rule.block!r}, which must be a power of two from 8 to 4096, such as 64"
  elif not isinstance(rule.rslora, bool) or not isinstance(rule.double, bool):
    wrong = "has a flag (rslora, double) that is neither True nor False"
  if wrong:
    raise UserError(f"config.params: {spec!r} {wrong}.")


def compile_pattern(pattern: str, where: str = "config.params") -> re.Pattern[str]:
  """Compiles a pattern over names; a mistake in it is told with the field it stands in."""
  if not isinstance(pattern, str):
    raise UserError(f"{where}: a pattern must be a string, not {pattern!r}.")
  if pattern.startswith("/"):
    raise UserError(f"{where}: names never start with '/', so {pattern!r} matches nothing.")
  try:
    return re.compile(pattern)
  except re.error as e:
    raise UserError(f"{where}: {pattern!r} is not a regular expression: {e}.") from None


def first_match(
  patterns: Sequence[str], names: Iterable[str], where: str = "config.params"
) -> dict[str, int | None]:
  """For each name the index of the first pattern that matches all of it, or None."""
  compiled = [compile_pattern(p, where) for p in patterns]
  return {
    name: next((i for i, p in enumerate(compiled) if p.fullmatch(name)), None) for name in names
  }


def check_used(patterns: Sequence[str], matches: Mapping[str, int | None], where: str) -> None:
  """Raises if a pattern got no name at all; says whether earlier ones took them or none exists."""
  for i in sorted(set(range(len(patterns))) - set(matches.values())):
    taken = [name for name in matches if re.fullmatch(patterns[i], name)]
    if taken:
      why = f"the patterns before it already match all of its names, such as {taken[0]!r}"
    else:
      close = difflib.get_close_matches(patterns[i].rstrip(".*/"), _prefixes(matches), 1, 0.5)
      why = "no name matches it" + (f"; did you mean {close[0] + '/.*'!r}?" if close else "")
    raise UserError(f"{where}: pattern {patterns[i]!r} is never used: {why}. Mend or remove it.")


def rules(patterns: Sequence[tuple[str, str]], names: Iterable[str]) -> dict[str, Rule]:
  """The rule of every leaf: first full match wins, nothing uncovered, no pattern unused.

  Where a pattern that adapts or quantizes covers leaves that are no matrices, these are frozen as
  they are, in bfloat16 if the matrices are quantized; but one matrix it must cover.
  """
  specs = [parse_spec(spec) for _, spec in patterns]
  matches = first_match([p for p, _ in patterns], names)
  uncovered = [name for name, i in matches.items() if i is None]
  if uncovered:
    raise UserError(
      f"config.params: no pattern covers {_some(uncovered)}; "
      'every parameter needs one, so end the list with (".*", "freeze") or (".*", "train").'
    )
  check_used([p for p, _ in patterns], matches, "config.params")
  for i, (pattern, spec) in enumerate(patterns):
    covered = [name for name, match in matches.items() if match == i]
    if specs[i] != _plain(specs[i]) and not any(map(matrix, covered)):
      raise UserError(
        f"config.params: {pattern!r} has the value {spec!r}, which is for matrices of products, "
        f"and covers none, only {_some(covered)}. Matrices are, for example, "
        "llm/layers/attn/q_einsum/w and img/head/kernel."
      )
  return {n: specs[i] if matrix(n) else _plain(specs[i]) for n, i in matches.items()}


def _plain(rule: Rule) -> Rule:
  """The rule for what is neither adapted nor quantized."""
  dtype = "bfloat16" if rule.dtype in QUANTIZED else rule.dtype
  return Rule("train" if rule.kind == "train" else "freeze", dtype)


def trained_names(rules: Mapping[str, Rule]) -> list[str]:
  """Flat names of what the optimizer sees: trained leaves, and the factors of adapted ones."""
  names = [name for name, rule in rules.items() if rule.kind == "train"]
  adapted = [name for name, rule in rules.items() if rule.kind == "lora"]
  return sorted(names + [f"{LORA}{name}/{factor}" for name in adapted for factor in "ab"])


def from_schedule(schedule: Any) -> tuple[list[tuple[str, str]] | None, Any]:
  """big_vision's freezing, `schedule=[(regex, None), ...]`, as (patterns for `rules`, the rest).

  The patterns are None if the schedule freezes nothing; the rest is the schedule of what trains.
  """
  if isinstance(schedule, Mapping) or all(value is not None for _, value in schedule):
    return None, schedule
  patterns = [(p, "freeze" if value is None else "train") for p, value in schedule]
  return patterns, [(p, value) for p, value in schedule if value is not None]


def split(
  tree: Mapping[str, Any], is_trained: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The leaves with those names (see `trained_names`) and the others, as flat dicts."""
  flat = flatten(tree)
  trained = {name: leaf for name, leaf in flat.items() if name in is_trained}
  return trained, {name: leaf for name, leaf in flat.items() if name not in is_trained}


def merge(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `split`."""
  return unflatten(dict(sorted({**trained, **frozen}.items())))


def _prefixes(names: Iterable[str]) -> list[str]:
  parts = {"/".join(n.split("/")[:i]) for n in names for i in range(1, n.count("/") + 2)}
  return sorted(parts)


def _some(names: list[str], most: int = 4) -> str:
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(map(repr, names[:most])) + rest
