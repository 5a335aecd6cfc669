"""What each grammar allows and forbids, by itself and in the decoding of an untrained model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pgjax.data import locations, tokenizer as tokenizer_lib
from pgjax.errors import UserError
from pgjax.inference import grammar, grammar_mask, json_grammar
from pgjax.params import tree as param_tree
from tests.inference import test_search

pytestmark = pytest.mark.xdist_group("grammar")  # Shares compiled programs.

ROWS, LONG = 8, 48


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.load("tiny")


def masks(text, tokenizer, examples=({},), length=LONG, vocab_size=None):
  size = vocab_size or tokenizer.vocab_size
  return grammar.Masks(grammar.parse(text), tokenizer, size, length).of(list(examples))


def accepts(text, answer, tokenizer, example=None, *, tokens=None):
  """Does the automaton walk over the answer's tokens and its eos?"""
  tables, (row,) = masks(text, tokenizer, [example or {}])
  place = 0
  for token in [*(tokenizer.encode(answer) if tokens is None else tokens), tokenizer.eos]:
    place = tables.next_GPK[row, place, tables.kind_V[token]]
    if place < 0:
      return False
  return place == 1


BOX = "<loc0001><loc0002><loc1000><loc1023>"
SEG = "".join(f"<seg{i:03d}>" for i in range(16))
PROMPT = {"prefix": "detect cat ; white blood cell"}


@pytest.mark.parametrize(
  ("text", "answer", "right"),
  [
    ("boxes", f"{BOX} cat", True),
    ("boxes", f"{BOX} white blood cell ; {BOX} cat ; {BOX} cat", True),
    ("boxes", "", True),
    ("boxes", f"{BOX} dog", False),
    ("boxes", f"{BOX} white blood", False),
    ("boxes", f"{BOX}", False),
    ("boxes", f"{BOX} cat ; ", False),
    ("boxes", f"{BOX}<loc0001> cat", False),
    ("boxes", f"{BOX[:-9]} cat", False),
    ("boxes", f" {BOX} cat", False),
    ("boxes", f"{BOX} cat cat", False),
    ('boxes(labels=["dog", "dog house"])', f"{BOX} dog ; {BOX} dog house", True),
    ('boxes(labels=["dog", "dog house"])', f"{BOX} cat", False),
    ("boxes(num_boxes=2)", f"{BOX} cat ; {BOX} white blood cell", True),
    ("boxes(num_boxes=2)", f"{BOX} cat", False),
    ("boxes(num_boxes=2)", f"{BOX} cat ; {BOX} cat ; {BOX} cat", False),
    ("boxes(num_boxes=2)", f"{BOX} cat ; {BOX} <noise>", False),
    ("boxes(num_boxes=2)", "", False),
    ("boxes(num_boxes=1)", f"{BOX} cat", True),
    ("masks(labels=[])", f"{BOX}{SEG}", True),
    ("masks(labels=[])", f"{BOX}{SEG} ; {BOX}{SEG}", True),
    ("masks(labels=[])", f"{BOX}{SEG[:-8]}", False),
    ("masks(labels=[])", f"{BOX}{SEG} cat", False),
    ('masks(labels=["cat"])', f"{BOX}{SEG} cat", True),
    ('masks(labels=["cat"])', f"{BOX} cat", False),
    ('one_of("yes", "no", "not sure")', "not sure", True),
    ('one_of("yes", "no", "not sure")', "no", True),
    ('one_of("yes", "no", "not sure")', "not", False),
    ('one_of("yes", "no", "not sure")', "", False),
  ],
)
def test_what_a_grammar_allows(tokenizer, text, answer, right):
  assert accepts(text, answer, tokenizer, PROMPT) == right


def test_labels_come_from_each_row_s_own_prompt(tokenizer):
  examples = [{"prefix": "detect cat"}, {"prefix": "detect dog ; cat"}, {"prefix": "detect cat"}]
  tables, rows = masks("boxes", tokenizer, examples)
  assert rows.tolist() == [0, 1, 0]
  dog = tokenizer.encode(f"{BOX} dog")
  for row, right in ((0, False), (1, True)):
    place = 0
    for token in dog:
      place = tables.next_GPK[row, place, tables.kind_V[token]] if place >= 0 else -1
    assert (place >= 0) == right
  choices, rows = masks('one_of(column="c")', tokenizer, [{"c": ["a", "b"]}, {"c": ["b", "a"]}])
  assert rows.tolist() == [0, 1]
  assert choices.distance_GP[0, 0] == 2


def test_a_second_corner_is_below_and_to_the_right_of_the_first(tokenizer):
  """The allowed tokens after every prefix of a box are those with which `parse` reads it."""
  locs = np.array(tokenizer.encode("".join(f"<loc{i:04d}>" for i in range(1024))))
  for text, rest in ('boxes(labels=["cat"])', " cat"), ("masks(labels=[])", SEG):
    tables, _ = masks(text, tokenizer)
    rng = np.random.default_rng(0)
    for y0, x0, far in [(0, 0, 1), (1022, 1022, 1023), *rng.integers(0, 1022, (4, 3)).tolist()]:
      box = [y0, x0, max(y0 + 1, far)]
      place = np.zeros((1, 1), np.int32)
      for count in range(4):
        before = locs[box[count - 2]] if count >= 2 else 0
        mask = grammar_mask.allowed(
          jax.tree.map(jnp.asarray, tables),
          jnp.zeros(1, jnp.int32),
          jnp.asarray(place),
          LONG,
          jnp.full((1, 1), before, jnp.int32),
        )
        tokens = set(np.flatnonzero(np.asarray(mask)[0, 0])) - {tokenizer.eos}
        low = box[count - 2] + 1 if count >= 2 else 0
        assert tokens == set(locs[low : 1023 if count < 2 else 1024])
        if count == 3:
          for n in range(1024):
            written = "".join(f"<loc{i:04d}>" for i in [*box, n]) + rest
            assert (locs[n] in tokens) == (locations.parse(written).malformed == 0)
          break
        place = tables.next_GPK[0, place, tables.kind_V[locs[box[count]]]]


def test_distances_are_counted_in_tokens(tokenizer):
  tables, _ = masks('masks(labels=["cat"])', tokenizer)
  one = len(tokenizer.encode(f"{BOX}{SEG} cat"))
  assert tables.distance_GP[0, 0] == 1  # Only the eos: an empty answer.
  place = tables.next_GPK[0, 0, tables.kind_V[tokenizer.encode("<loc0000>")[0]]]
  assert tables.distance_GP[0, place] == one


VALID = [
  '{}', "[]", '{"a": 1}', '{"a":1,"b":[true,false,null]}', '[1, -2.5e-3, 0, "x\\n\\u00e9é猫🎉"]',
  '{"a": {"b": {"c": 1}}}', '{\n  "a": 1,\n  "b": "c"\n}', '[{"a": ""}, []]', '[0.5, 1E+9]',
]  # fmt: skip
INVALID = [
  "", "1", '"a"', "{", '{"a"}', '{"a": 1,}', "[1,]", "[01]", "[1.]", "[+1]", "{'a': 1}", '["\\x"]',
  '{"a": 1} {"b": 2}', '[nul]', '["a\nb"]', '["\\u12g4"]', "[1 2]", '{"a": 1 "b": 2}', '{1: 2}',
]  # fmt: skip


def reads(automaton, data):
  """Does the automaton over bytes accept all of it?"""
  next_P256, ends_P = automaton
  place = 0
  for byte in data:
    place = next_P256[place, byte]
    if place < 0:
      return False
  return bool(ends_P[place])


@pytest.fixture(scope="module")
def any_json():
  return json_grammar.automaton(None)


@pytest.mark.parametrize("text", VALID)
def test_valid_json_is_accepted(any_json, text):
  json.loads(text)
  assert reads(any_json, text.encode())


@pytest.mark.parametrize("text", INVALID)
def test_invalid_json_is_rejected(any_json, text):
  assert not reads(any_json, text.encode())


def test_invalid_utf8_is_rejected(any_json):
  rng = np.random.default_rng(0)
  wrong = [b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\x80"]
  for data in wrong + [rng.bytes(3) for _ in range(300)]:
    text = b'["' + data + b'"]'
    try:
      valid = isinstance(json.loads(text.decode()), list)
    except ValueError:
      valid = False
    assert reads(any_json, text) == valid


SCHEMA = {
  "type": "object",
  "properties": {
    "company": {"type": "string"},
    "kind": {"enum": ["sale", "refund"]},
    "items": {
      "type": "array",
      "items": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
    "pair": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    "note": {"type": ["string", "null"]},
  },
  "required": ["company", "kind"],
}


@pytest.mark.parametrize(
  ("value", "right"),
  [
    ({"company": "A", "kind": "sale"}, True),
    ({"company": "A", "kind": "refund", "items": [{"n": 1}, {"n": -2}], "note": None}, True),
    ({"company": "A", "kind": "sale", "pair": [1.5, 2]}, True),
    ({"company": "A", "kind": "loss"}, False),
    ({"company": "A"}, False),
    ({"kind": "sale", "company": "A"}, False),
    ({"company": 1, "kind": "sale"}, False),
    ({"company": "A", "kind": "sale", "items": [{"n": 1.5}]}, False),
    ({"company": "A", "kind": "sale", "pair": [1]}, False),
    ({"company": "A", "kind": "sale", "more": 1}, False),
  ],
)
def test_an_automaton_follows_its_schema(value, right):
  assert reads(json_grammar.automaton(SCHEMA), json.dumps(value).encode()) == right


def test_optional_properties_leave_no_stray_comma():
  loose = json_grammar.automaton(
    {"properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": []}
  )
  for text, right in (
    ("{}", True), ('{"a": null}', True), ('{"b": null}', True), ('{"a": null, "b": null}', True),
    ('{, "b": null}', False), ('{"a": null,}', False), ('{"a": null "b": null}', False),
  ):  # fmt: skip
    assert reads(loose, text.encode()) == right, text


@pytest.mark.parametrize(
  ("schema", "wrong"),
  [
    ({"type": "object", "pattern": "x"}, "uses 'pattern', which is not read"),
    ({"type": "tuple"}, "has type 'tuple'; allowed: object"),
    ({"properties": {"a": []}}, r"properties\['a'\] is \[\]; expected `object`"),
    ({"properties": {}, "required": ["a"]}, "requires 'a', which is no property"),
    ({"type": "array", "items": {}, "minItems": 1}, "minItems=1 without maxItems"),
  ],
)
def test_an_unsupported_schema_raises(schema, wrong):
  with pytest.raises(UserError, match=wrong):
    json_grammar.automaton(schema)


@pytest.mark.parametrize(
  ("text", "wrong"),
  [
    ("bokses", "no 'bokses'. Did you mean 'boxes'"),
    ("boxes(labels=[1])", "labels must be a list of text in quotes.* or None, not"),
    ("one_of()", "give the answers, or the column"),
    ('json(schema="/nowhere/x.json")', "cannot be read"),
    ('json(schema="/dev/zero")', "cannot be read"),
    ("json(fields=[])", "fields must be"),
    ("__import__('os')", "no '__import__'. There are: boxes, masks"),
  ],
)
def test_an_invalid_grammar_raises(text, wrong):
  with pytest.raises(UserError, match=wrong):
    grammar.parse(text)


def test_a_prompt_without_labels_and_too_short_a_length_raise(tokenizer):
  with pytest.raises(UserError, match="takes its labels from a prompt such as 'detect cat"):
    masks("boxes", tokenizer, [{"prefix": "caption en"}])
  with pytest.raises(UserError, match=r"shortest answer .* tokens, and max_decode_len is 3"):
    masks('json(fields=["company"])', tokenizer, length=3)


@pytest.fixture(scope="module")
def wide():
  """(vocabulary, parameters, batch) of an untrained model with 8 tokens more than the tokenizer."""
  size = tokenizer_lib.load("tiny").vocab_size + 8
  flat = param_tree.flatten(tiny.parameters(tiny.model(llm=dict(vocab_size=size))))
  flat["llm/final_norm/scale"] = flat["llm/final_norm/scale"] + 2
  rng = np.random.default_rng(3)
  batch = dict(
    image=rng.uniform(-1, 1, size=(ROWS, tiny.RES, tiny.RES, 3)).astype(np.float32),
    text=rng.integers(12, 300, size=(ROWS, 4)).astype(np.int32),
    mask_ar=np.zeros((ROWS, 4), np.int32),
    mask_input=np.ones((ROWS, 4), bool),
    _index=np.arange(ROWS, dtype=np.int32),
  )
  return size, param_tree.unflatten(flat), batch


QUICK = {('json(fields=["total", "date"])', "temperature(1.0)"), ("boxes", "beam(2)")}


@pytest.mark.parametrize(
  ("text", "method"),
  [
    pytest.param(text, method, marks=() if (text, method) in QUICK else pytest.mark.long)
    for text in ("json", 'json(fields=["total", "date"])', "boxes")
    for method in ("greedy", "temperature(1.0)", "beam(2)")
  ],
)
def test_an_untrained_model_follows_the_grammar(wide, tokenizer, text, method, monkeypatch):
  """Constrained output always completes within max_decode_len."""
  size, values, batch = wide
  examples = [{"prefix": f"detect {'cat' if i % 2 else 'white blood cell'}"} for i in range(ROWS)]
  tables, rows = masks(text, tokenizer, examples, vocab_size=size)
  model = tiny.model(llm=dict(vocab_size=size))
  monkeypatch.setattr(tiny, "model", lambda: model)
  tokens, logp = test_search.generate(
    values, dict(batch, _grammar=rows), method, key=1, eos=1, length=LONG, masks=tables
  )
  for example, row in zip(examples, tokens, strict=True):
    assert 1 in row
    answer = tokenizer.decode(row)
    if text == "boxes":
      assert accepts(text, answer, tokenizer, example, tokens=row[: list(row).index(1)])
      assert locations.parse(answer).malformed == 0
    else:
      read = json.loads(answer)
      assert text == "json" or list(read) == ["total", "date"]
  assert (logp <= 0).all()
  assert np.isfinite(logp).all()
