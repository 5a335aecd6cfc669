"""Is the predicted JSON right: as a whole, field by field, and how far is it from right?

One example at a time, {name: (sum, count)}. Precision, recall and F1 are such pairs too: what is
counted are fields, so big records weigh more than small ones. A text that is no JSON is a record
without fields; repeated keys and NaN, which Python would let pass, and what is nested deeper than
MAX_DEPTH are no JSON here.
"""

import collections
import json
from typing import Any

from pgjax.errors import UserError
from pgjax.metrics import text

_LEAF = (str, int, float, type(None))  # Of JSON; bool is an int.
MAX_DEPTH = 64  # Objects and lists inside each other; an untrained model may write only "[".

NOTHING = object()  # What a text that is no JSON reads as: equal to no value, null included.


def scores(prediction: str, target: str) -> dict[str, text.Score]:
  """All figures of one record.

  `valid`: the prediction is JSON. `exact`: it is the same value (key order and spaces do not
  matter; 1 and 1.0 are the same, 1, true and "1" are not). `field_precision`, `field_recall`,
  `field_f1`: over `fields`. `similarity`: 1 - edits / length of the longer, between the two as
  `canonical` writes them; 0 if the prediction is no JSON. The target must be JSON.
  """
  wanted = parsed(target)
  if wanted is NOTHING:
    raise UserError(f"The true answer of a JSON example is no JSON: {target!r}. Mend the data.")
  found = parsed(prediction)
  valid = found is not NOTHING
  mine, theirs = fields(found), fields(wanted)
  right = (mine & theirs).total()
  return {
    "valid": (float(valid), 1),
    "exact": (float(valid and canonical(found) == canonical(wanted)), 1),
    "field_precision": (float(right), mine.total()),
    "field_recall": (float(right), theirs.total()),
    "field_f1": (2.0 * right, mine.total() + theirs.total()),
    "similarity": (_similarity(canonical(found), canonical(wanted)) if valid else 0.0, 1),
  }


def parsed(answer: str) -> Any:
  """The JSON value that the whole text is (spaces around it aside), else NOTHING."""
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
    raise ValueError("a key stands twice in one object")
  return dict(pairs)


def _refused(constant: str) -> Any:
  raise ValueError(f"{constant} is no JSON")


def fields(value: Any) -> collections.Counter[tuple[str, str]]:
  """(path, value) of every leaf; a path is JSON such as ["items", 0, "price"].

  Things in lists are told apart by their place, so one that is missing at the front makes all
  behind it wrong. An empty object or list is a leaf too. Strings are compared with their outer
  spaces stripped, and otherwise as they are.
  """
  found: collections.Counter[tuple[str, str]] = collections.Counter()
  waiting: list[tuple[list, Any]] = [] if value is NOTHING else [([], value)]
  while waiting:
    path, here = waiting.pop()
    if isinstance(here, dict | list) and here:
      inside = here.items() if isinstance(here, dict) else enumerate(here)
      waiting += [([*path, key], each) for key, each in inside]
    else:
      leaf = here.strip() if isinstance(here, str) else here
      found[json.dumps(path), canonical(leaf)] += 1
  return found


def canonical(value: Any) -> str:
  """One spelling for each value: keys sorted, no spaces, whole numbers without a fraction."""
  return json.dumps(_whole(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _whole(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _whole(each) for key, each in value.items()}
  if isinstance(value, list):
    return [_whole(each) for each in value]
  return int(value) if isinstance(value, float) and value.is_integer() else value


def _similarity(a: str, b: str) -> float:
  return 1.0 - text.levenshtein(a, b) / max(len(a), len(b))
