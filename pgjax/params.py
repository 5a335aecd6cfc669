"""What is each parameter called, and which ones train?

Names are the paths of the tree joined with slashes ("llm/layers/attn/q_einsum/w"). One ordered list
of (regex, spec) decides what trains; the first pattern that matches a whole name wins. Where the
arrays live is sharding.py's business, what happens to their gradients optim.py's.
"""

import ast
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pgjax.errors import UserError

STORAGE_DTYPES = ("float32", "bfloat16", "float16")
_LATER = ("lora", "nf4", "int8")  # Known words whose meaning is not there yet.
_PARTS = (("img/head", "img/head/.*"), ("img", "img/.*"), ("llm", "llm/.*"), ("other", ".*"))


class Rule(NamedTuple):
  """What happens to one leaf.

  `dtype` is the storage dtype; None means float32 for a trained leaf, and for a frozen one the
  dtype that it has in the file it came from.
  """

  kind: str  # "train" or "freeze"
  dtype: str | None = None


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
  """Reads `train`, `train("bfloat16")`, `freeze` or `freeze("bfloat16")`."""
  allowed = 'allowed are "train", "freeze" and freeze("bfloat16") (or float16, float32)'
  if any(re.search(rf"\b{word}\b", str(spec)) for word in _LATER):
    raise UserError(f"config.params: {spec!r} is not available yet; {allowed}.")
  try:
    node = ast.parse(spec, mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    kind, args = call.func.id, [ast.literal_eval(arg) for arg in call.args]
  except (SyntaxError, ValueError, AttributeError, TypeError):
    raise UserError(f"config.params: cannot read {spec!r}; {allowed}.") from None
  if kind not in ("train", "freeze") or call.keywords or len(args) > 1:
    raise UserError(f"config.params: unknown value {spec!r}; {allowed}.")
  if args and args[0] not in STORAGE_DTYPES:
    raise UserError(f"config.params: {spec!r} names an unknown dtype {args[0]!r}; {allowed}.")
  return Rule(kind, *args)


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
  """The rule of every leaf: first full match wins, nothing uncovered, no pattern unused."""
  specs = [parse_spec(spec) for _, spec in patterns]
  matches = first_match([p for p, _ in patterns], names)
  uncovered = [name for name, i in matches.items() if i is None]
  if uncovered:
    raise UserError(
      f"config.params: no pattern covers {_some(uncovered)}; "
      'every parameter needs one, so end the list with (".*", "freeze") or (".*", "train").'
    )
  check_used([p for p, _ in patterns], matches, "config.params")
  return {name: specs[i] for name, i in matches.items()}


def from_schedule(schedule: Any) -> tuple[list[tuple[str, str]] | None, Any]:
  """big_vision's freezing, `schedule=[(regex, None), ...]`, as (patterns for `rules`, the rest).

  The patterns are None if the schedule freezes nothing; the rest is the schedule of what trains.
  """
  if isinstance(schedule, Mapping) or all(value is not None for _, value in schedule):
    return None, schedule
  patterns = [(p, "freeze" if value is None else "train") for p, value in schedule]
  return patterns, [(p, value) for p, value in schedule if value is not None]


def split(
  tree: Mapping[str, Any], rules: Mapping[str, Rule]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The leaves that train and those that do not, as flat dicts."""
  flat = flatten(tree)
  trained = {name: leaf for name, leaf in flat.items() if rules[name].kind == "train"}
  return trained, {name: leaf for name, leaf in flat.items() if name not in trained}


def merge(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `split`."""
  return unflatten(dict(sorted({**trained, **frozen}.items())))


def table(
  tree: Mapping[str, Any], rules: Mapping[str, Rule], shardings: Mapping[str, Any] | None = None
) -> str:
  """Text with a row for each leaf (arrays or shapes) and a total for each part.

  Without `shardings` a leaf's own sharding is shown, if it has one.
  """
  flat = flatten(tree)
  where = flatten(shardings) if shardings is not None else {}
  rows = [("parameter", "", "shape", "dtype", "size", "sharding")]
  for name, leaf in flat.items():
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    sharding = _sharding_text(where.get(name, getattr(leaf, "sharding", None)), len(leaf.shape))
    size = _size_text(_num_bytes(leaf))
    rows.append((name, rules[name].kind, shape, str(leaf.dtype), size, sharding))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]
  lines.insert(1, "-" * max(map(len, lines)))
  lines.append(lines[1])
  parts = first_match([pattern for _, pattern in _PARTS], flat)
  for i, (part, _) in enumerate(_PARTS):
    if inside := [name for name, match in parts.items() if match == i]:
      lines.append(_total(part, inside, flat, rules))
  lines.append(_total("all", list(flat), flat, rules))
  return "\n".join(line.rstrip() for line in lines)


def _total(part: str, inside: list[str], flat: Mapping[str, Any], rules: Mapping[str, Rule]) -> str:
  count = sum(math.prod(flat[name].shape) for name in inside)
  trained = sum(math.prod(flat[n].shape) for n in inside if rules[n].kind == "train")
  size = _size_text(sum(_num_bytes(flat[name]) for name in inside))
  share = 100 * trained / count if count else 0.0
  return f"{part:<9} {count:>14,} parameters  {trained:>14,} train ({share:5.1f}%)  {size:>10}"


def _sharding_text(sharding: Any, ndim: int) -> str:
  """`[None, data]` for a PartitionSpec over dimension 1, `replicated` where nothing is split."""
  spec = getattr(sharding, "spec", None)
  if sharding is None:
    return ""
  if spec is None or not any(spec):
    return "replicated"
  cells = [*spec, *[None] * (ndim - len(spec))]
  return (
    "[" + ", ".join("+".join(c) if isinstance(c, tuple) else str(c or "-") for c in cells) + "]"
  )


def _num_bytes(leaf: Any) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize


def _size_text(num_bytes: int) -> str:
  """Decimal units, as GPUs and disks are sold: 1,500,000 -> `1.5 MB`."""
  for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if num_bytes >= scale:
      return f"{num_bytes / scale:.1f} {unit}"
  return f"{num_bytes} B"


def _prefixes(names: Iterable[str]) -> list[str]:
  parts = {"/".join(n.split("/")[:i]) for n in names for i in range(1, n.count("/") + 2)}
  return sorted(parts)


def _some(names: list[str], most: int = 4) -> str:
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(map(repr, names[:most])) + rest
