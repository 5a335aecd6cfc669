"""Is the predicted JSON right: as a whole, field by field, and in edit distance?

Precision, recall and F1 count fields, so large records weigh more. Invalid JSON has no fields;
repeated keys, NaN and nesting deeper than MAX_DEPTH are invalid.
"""

import collections
import json
from typing import Any

from pgjax.errors import UserError
from pgjax.metrics import text

_LEAF = (str, int, float, type(None))  # Of JSON; bool is an int.
MAX_DEPTH = 64  # Of nested objects and lists; an untrained model may write only "[".
NOTHING = object()  # The value of invalid JSON; it equals no other value, not even null.


def scores(prediction: str, target: str) -> text.Scores:
  """All figures of one record.

  `valid`: the prediction is JSON. `exact`: it is the same value (key order and spaces do not
  matter; 1 and 1.0 are the same, 1, true and "1" are not). `field_precision`, `field_recall`,
  `field_f1`: over `fields`. `similarity`: 1 - edits / length of the longer, between `canonical`
  texts; 0 if the prediction is not JSON. The target must be JSON.
  """
  expected, value = parsed(target), parsed(prediction)
  if expected is NOTHING:
    raise UserError(f"The true answer of a JSON example is no JSON: {target!r}. Fix the data.")
  true_fields, predicted_fields = fields(expected), fields(value)
  num_true, num_predicted = true_fields.total(), predicted_fields.total()
  right = (true_fields & predicted_fields).total()
  valid, exact, similarity = value is not NOTHING, False, 0.0
  if valid:
    a, b = canonical(value), canonical(expected)
    exact, similarity = a == b, 1.0 - text.levenshtein(a, b) / max(len(a), len(b))
  return {
    "valid": (float(valid), 1),
    "exact": (float(exact), 1),
    "field_precision": (float(right), num_predicted),
    "field_recall": (float(right), num_true),
    "field_f1": (2.0 * right, num_predicted + num_true),
    "similarity": (similarity, 1),
  }


def parsed(answer: str) -> Any:
  """The JSON value of the whole text, or NOTHING."""
  try:
    value = json.loads(answer, object_pairs_hook=_without_repeats, parse_constant=_refused)
  except (ValueError, RecursionError):
    return NOTHING
  return NOTHING if _is_too_deep(value) else value


def _is_too_deep(value: Any) -> bool:
  level = [value]
  for _ in range(MAX_DEPTH + 1):
    inside = [each.values() if isinstance(each, dict) else each for each in level]
    level = [each for group in inside if not isinstance(group, _LEAF) for each in group]
  return bool(level)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  if len({key for key, _ in pairs}) < len(pairs):
    raise ValueError("an object has a key twice")
  return dict(pairs)


def _refused(constant: str) -> Any:
  raise ValueError(f"{constant} is no JSON")


def fields(value: Any) -> collections.Counter[tuple[str, str]]:
  """(path, value) of every leaf; a path is JSON such as ["items", 0, "price"].

  List items are identified by position, so a missing first item makes all others wrong. An empty
  object or list is a leaf. Only outer spaces of strings are ignored.
  """
  leaves: collections.Counter[tuple[str, str]] = collections.Counter()
  pending: list[tuple[list, Any]] = [] if value is NOTHING else [([], value)]
  while pending:
    path, here = pending.pop()
    if isinstance(here, dict | list) and here:
      inside = here.items() if isinstance(here, dict) else enumerate(here)
      pending += [([*path, key], each) for key, each in inside]
    else:
      leaf = here.strip() if isinstance(here, str) else here
      leaves[json.dumps(path), canonical(leaf)] += 1
  return leaves


def canonical(value: Any) -> str:
  """One spelling for each value: keys sorted, no spaces, whole numbers without a fraction."""
  return json.dumps(_whole(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _whole(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _whole(each) for key, each in value.items()}
  if isinstance(value, list):
    return [_whole(each) for each in value]
  return int(value) if isinstance(value, float) and value.is_integer() else value
