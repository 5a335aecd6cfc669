"""What trains, and how large is each stored leaf? The table printed at the start of a run."""

from collections.abc import Mapping
from typing import Any

from pgjax.params import names as param_names, tree as param_tree
from pgjax.params.rules import Rule
from pgjax.params.storage import StoredParams

_PARTS = (
  ("vision", "img/(?!head/).*"),
  ("connector", "img/head/.*"),
  ("decoder", "llm/.*"),
  ("other", ".*"),
)


def table(stored: Mapping[str, Any], leaves: StoredParams) -> str:
  """A row for each parameter of the model and a total for each part; `stored` may be abstract."""
  arrays, (model, rules) = param_tree.flatten(stored), leaves
  rows = [("parameter", "", "shape", "stored", "size", "trains", "sharding")]
  for name, leaf in model.items():
    own, factors = _own(name, arrays), _factors(name, arrays)
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    largest = max(own, key=_num_bytes)
    trains = leaf.size if rules[name].kind == "train" else sum(a.size for a in factors)
    size = _size_text(sum(map(_num_bytes, own + factors)))
    place = _sharding_text(getattr(largest, "sharding", None), len(largest.shape))
    dtype = rules[name].dtype or str(largest.dtype)
    rows.append((name, _what(rules[name]), shape, dtype, size, f"{trains:,}", place))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]
  lines.insert(1, "-" * max(map(len, lines)))
  lines.append(lines[1])
  parts = param_names.first_match([pattern for _, pattern in _PARTS], model)
  for i, (part, _) in enumerate(_PARTS):
    if inside := [name for name, match in parts.items() if match == i]:
      lines.append(_total(part, inside, arrays, model, rules))
  lines.append(_total("all", list(model), arrays, model, rules))
  return "\n".join(line.rstrip() for line in lines)


def _what(rule: Rule) -> str:
  if rule.kind != "lora":
    return rule.kind
  text = f"lora rank {rule.rank}, alpha {rule.alpha:g}" + (", rslora" if rule.rslora else "")
  return text + (f", dropout {rule.dropout:g}" if rule.dropout else "")


def _own(name: str, arrays: Mapping[str, Any]) -> list[Any]:
  """The array of a parameter, or the parts of a quantized one."""
  return [leaf for n, leaf in arrays.items() if n == name or n.startswith(f"{name}/")]


def _factors(name: str, arrays: Mapping[str, Any]) -> list[Any]:
  return [leaf for n, leaf in arrays.items() if n.startswith(f"{param_names.LORA}{name}/")]


def _total(part, inside, arrays, model, rules) -> str:
  count = sum(model[name].size for name in inside)
  trained = sum(model[name].size for name in inside if rules[name].kind == "train")
  factors = sum(leaf.size for name in inside for leaf in _factors(name, arrays))
  size = sum(_num_bytes(leaf) for n in inside for leaf in _own(n, arrays) + _factors(n, arrays))
  share = 100 * (trained + factors) / count if count else 0.0
  text = f"{part:<9} {count:>14,} parameters  {trained + factors:>14,} train ({share:5.2f}%)"
  adapted = sum(rules[name].kind == "lora" for name in inside)
  text += f"  {_size_text(size):>10}"
  return text + (f"  {factors:,} of them in adapters of {adapted} matrices" if adapted else "")


def _num_bytes(leaf: Any) -> int:
  return leaf.size * leaf.dtype.itemsize


def _size_text(num_bytes: int) -> str:
  """In decimal units: 1,500,000 -> `1.5 MB`."""
  for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if num_bytes >= scale:
      return f"{num_bytes / scale:.1f} {unit}"
  return f"{num_bytes} B"


def _sharding_text(sharding: Any, ndim: int) -> str:
  """`[-, data]` for a PartitionSpec over dimension 1, `replicated` where nothing is split."""
  spec = getattr(sharding, "spec", None)
  if sharding is None:
    return ""
  if spec is None or not any(spec):
    return "replicated"
  cells = [*spec, *[None] * (ndim - len(spec))]
  texts = ("+".join(c) if isinstance(c, tuple) else str(c or "-") for c in cells)
  return f"[{', '.join(texts)}]"
