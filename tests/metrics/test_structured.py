"""Scores of JSON answers, by hand."""

import json

import pytest

from pgjax.errors import UserError
from pgjax.metrics import structured, text

RECEIPT = (
  '{"shop": "Ah Seng", "total": "5.10", "items": [{"name": "tea", "n": 2}, {"name": "milk"}]}'
)


def score(prediction, target=RECEIPT):
  return structured.scores(prediction, target)


def test_the_same_record_in_other_words():
  other = '{"total":"5.10","items":[{"n":2.0,"name":"tea"},{"name":"milk"}],\n"shop":"Ah Seng"}'
  assert score(other) == {
    "valid": (1, 1),
    "exact": (1, 1),
    "field_precision": (5, 5),
    "field_recall": (5, 5),
    "field_f1": (10, 10),
    "similarity": (1, 1),
  }


def test_fields_are_compared_one_by_one():
  record = json.loads(RECEIPT)
  record["total"] = "9.99"
  del record["items"][1]
  measured = score(json.dumps(record | {"date": "now", "tax": None}))
  # Right: shop, the name and the number of tea. Six fields predicted, five true.
  assert measured["field_precision"] == (3, 6)
  assert measured["field_recall"] == (3, 5)
  assert measured["field_f1"] == (6, 11)
  assert measured["exact"] == (0, 1)
  assert measured["valid"] == (1, 1)


def test_list_items_are_identified_by_position():
  assert score('["a", "b"]', '["b", "a"]')["field_precision"] == (0, 2)
  assert score('["b"]', '["a", "b"]')["field_recall"] == (0, 2)


@pytest.mark.parametrize(
  ("prediction", "target", "right"),
  [
    ('{"a": 1}', '{"a": 1.0}', 1),
    ('{"a": 1}', '{"a": true}', 0),
    ('{"a": 1}', '{"a": "1"}', 0),
    ('{"a": " x "}', '{"a": "x"}', 1),  # Outer spaces do not count in a field,
    ('{"a": "X"}', '{"a": "x"}', 0),  # case does.
    ('{"a": {}}', '{"a": {}}', 1),
    ('{"a": {}}', '{"a": []}', 0),
    ('{"a": null}', "{}", 0),
    ('{"a.b": 1}', '{"a": {"b": 1}}', 0),
    ("null", "null", 1),
    ("3", "3", 1),
  ],
)
def test_what_makes_two_fields_the_same(prediction, target, right):
  assert score(prediction, target)["field_precision"] == (right, 1)


def test_exact_compares_spaces():
  assert score('{"a": " x "}', '{"a": "x"}')["exact"] == (0, 1)


@pytest.mark.parametrize(
  "prediction",
  [
    "",
    "shop: Ah Seng",
    RECEIPT[:-1],
    RECEIPT + RECEIPT,
    "{'a': 1}",
    '{"a": NaN}',
    '{"a": 1, "a": 1}',
    "[" * 100 + "]" * 100,
    "[" * 100_000,
    "1" * 5000,
  ],
)
def test_invalid_json_scores_nothing(prediction):
  assert score(prediction) == {
    "valid": (0, 1),
    "exact": (0, 1),
    "field_precision": (0, 0),
    "field_recall": (0, 5),
    "field_f1": (0, 5),
    "similarity": (0, 1),
  }


def test_nested_as_deep_as_allowed():
  deep = "[" * structured.MAX_DEPTH + "1" + "]" * structured.MAX_DEPTH
  assert score(deep, deep)["exact"] == (1, 1)
  assert score(f"[{deep}]", deep)["valid"] == (0, 1)


def test_null_is_json_and_not_nothing():
  assert score("null", "null")["exact"] == (1, 1)
  assert score("no json", "null")["exact"] == (0, 1)


def test_similarity_is_one_minus_edits_over_the_longer():
  # {"a":"xy"} against {"a":"xyz!"}: two characters put in, twelve in the longer.
  assert score('{ "a": "xy" }', '{"a":"xyz!"}')["similarity"] == (pytest.approx(1 - 2 / 12), 1)


def test_over_a_split_fields_are_counted_together():
  rows = [score('{"a": 1}', '{"a": 1}'), score("no", '{"a": 1, "b": 2, "c": 3}')]
  assert text.mean(rows) == {
    "valid": 0.5,
    "exact": 0.5,
    "field_precision": 1.0,
    "field_recall": 0.25,
    "field_f1": pytest.approx(2 / 5),
    "similarity": 0.5,
  }


def test_a_target_that_is_not_json_raises():
  with pytest.raises(UserError, match="'nothing'"):
    score("{}", "nothing")
