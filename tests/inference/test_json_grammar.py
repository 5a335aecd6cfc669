"""How large JSON grammars become, and that tokens are walked right: by counting, not by time."""

import json

import numpy as np
import pytest

from pgjax.data import tokenizer as tokenizer_lib
from pgjax.errors import UserError
from pgjax.inference import grammar, json_grammar, token_walk
from tests.inference.test_grammar import masks, reads


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.load("tiny")


def test_the_states_of_a_list_grow_with_its_length_not_with_its_square():
  def states(count):
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 0, "maxItems": count}
    return len(json_grammar.automaton(schema)[1])

  ten, twenty, forty = map(states, (10, 20, 40))
  assert twenty - ten == (forty - twenty) / 2
  assert forty < 40 * 45


@pytest.mark.parametrize(("least", "most"), [(0, 0), (0, 2), (1, 1), (2, 4)])
def test_a_list_has_as_many_items_as_its_schema_says(least, most):
  schema = {"type": "array", "items": {"enum": [0, 1]}, "minItems": least, "maxItems": most}
  automaton = json_grammar.automaton(schema)
  for count in range(6):
    for text in (json.dumps([1] * count), json.dumps([0] * count, separators=(",", ":"))):
      assert reads(automaton, text.encode()) == (least <= count <= most), text
  assert not reads(automaton, b"[1 0]")
  assert not reads(automaton, b"[,1]")
  assert not reads(automaton, b"[1,]")


@pytest.mark.parametrize(
  "schema",
  [
    pytest.param(
      {
        "type": "array",
        "items": {"properties": {n: {"type": "string"} for n in "abcdefghijklmn"}},
        "maxItems": 1000,
      },
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {
        "type": "array",
        "items": {"type": "array", "items": {}, "maxItems": 1000},
        "maxItems": 1000,
      },
      marks=pytest.mark.slow,
    ),
    {"enum": [" " * 20_000]},
    pytest.param({"const": ["x" * 300_000]}, marks=pytest.mark.slow),
    {"properties": {"a" * 20_000: {"type": "null"}}},
  ],
)
def test_a_schema_that_needs_too_many_states_is_a_sentence(schema):
  with pytest.raises(
    UserError, match="the schema is too large: its answers need over 16,384 states"
  ):
    json_grammar.automaton(schema)


def test_a_long_label_needs_a_state_a_character():
  _, ends = json_grammar.automaton({"enum": [" " * 5000]})
  assert len(ends) == 5003  # Two quotes, and the end.


def test_a_batch_with_too_large_tables_is_a_sentence(tokenizer, monkeypatch):
  monkeypatch.setattr(grammar, "MAX_BYTES", 100)
  with pytest.raises(UserError, match=r"grammar='one_of.*' its tables would take|grammar=.*tables"):
    masks('one_of("yes", "no", "not sure")', tokenizer)


def test_tokens_with_the_same_steps_are_walked_once(tokenizer):
  """Against walking every token by itself."""
  schema = {"properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}
  next_P256, _ = json_grammar.automaton(schema)
  groups, next_PC = token_walk.grouped(tokenizer, next_P256)
  found = {}
  for step in token_walk.steps(groups, next_PC):
    found |= {(step.source, token): step.target for token in step.tokens.tolist()}
  assert len(groups.tokens_N) < tokenizer.vocab_size / 2
  for token, piece in enumerate(tokenizer.pieces()):
    stands = int(groups.stands_V[token])
    if piece.kind not in ("normal", "user_defined", "byte"):
      assert stands == -1
      continue
    data = piece.text.replace("▁", " ").encode()
    data = bytes([int(piece.text[3:5], 16)]) if piece.kind == "byte" else data
    for place in range(len(next_P256)):
      at = place
      for byte in data:
        at = next_P256[at, byte] if at >= 0 else -1
      assert found.get((place, stands), -1) == at


def test_distances_are_those_of_a_search_from_each_place():
  rng = np.random.default_rng(0)
  for _ in range(20):
    next_PK = rng.integers(-6, 12, (12, 3)).clip(-1).astype(np.int32)
    next_PK[1] = -1
    got = grammar._distances(next_PK)  # noqa: SLF001
    for place in range(12):
      reached, steps = {place}, 0
      while 1 not in reached and steps < 20:
        reached, steps = {int(t) for p in reached for t in next_PK[p] if t >= 0}, steps + 1
      assert got[place] == (steps if 1 in reached else np.iinfo(np.int32).max // 2)
