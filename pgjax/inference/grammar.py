"""What may an answer look like? Boxes, masks, JSON or one of a list, as automata over tokens.

A grammar is named in evals.*.grammar or --grammar:

  boxes                       <loc> four times and a label, "; " between objects, or nothing at all;
                              the labels are those of the prompt, "detect cat ; dog"
  boxes(labels=["cat"])       the labels as given
  masks                       likewise with sixteen <seg> after the <loc>: "segment cat"
  masks(labels=[])            without labels
  one_of("yes", "no")         one of the answers
  one_of(column="choices")    one of the answers in a column of the data
  json                        an object or a list
  json(fields=["total"])      an object with these fields, all of them text
  json(schema="receipt.json") what a JSON schema allows; see inference/json_grammar.py

Each answer is allowed in the tokens that the tokenizer makes of it (JSON in any tokens), and ends
with eos. The tables that decoding reads are in inference/grammar_mask.py.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from pgjax import call_syntax
from pgjax.call_syntax import Between
from pgjax.data import locations
from pgjax.errors import UserError, naming
from pgjax.formats import typed_json
from pgjax.inference import json_grammar
from pgjax.inference.grammar_mask import FORBIDDEN, Tables

_NUM_LOC = 4


class Arc(NamedTuple):
  """From one place to another by any of the tokens."""

  source: int
  tokens: np.ndarray  # int32.
  target: int


class Grammar(NamedTuple):
  """One that has been read. `labels_of` gives what an example's automaton depends on."""

  text: str
  labels_of: Callable[[Mapping[str, Any]], tuple[str, ...] | None]
  arcs_of: Callable[[Any, tuple[str, ...] | None], list[Arc]]  # From a tokenizer and those labels.


def parse(text: str, where: str = "grammar") -> Grammar:
  """Reads the name of a grammar; what it depends on (a schema's file) is read too."""
  labels_of, arcs_of = call_syntax.parse_one(text, GRAMMARS, where)()
  return Grammar(text, labels_of, arcs_of)


class Masks:
  """Tables of one grammar for the batches of a split; made once for each set of labels."""

  def __init__(self, grammar: Grammar, tokenizer: Any, vocab_size: int, max_decode_len: int):
    """vocab_size: rows of the model's token table; those beyond the tokenizer's are forbidden."""
    self._grammar, self._tokenizer = grammar, tokenizer
    self._vocab_size, self._max_decode_len = vocab_size, max_decode_len
    self._arcs: dict[Any, list[Arc]] = {}
    self._tables: dict[Any, Tables] = {}

  def of(
    self,
    examples: Sequence[Mapping[str, Any]],
    gather: Callable[[Any], list[Any]] = lambda labels: [labels],
  ) -> tuple[Tables, np.ndarray]:
    """(tables, int32 [B] which grammar each example follows).

    gather: collects the labels of all processes, whose tables must be the same.
    """
    labels = [self._grammar.labels_of(example) for example in examples]
    gathered = [label for some in gather(labels) for label in some]  # JSON has no tuples.
    distinct = tuple(dict.fromkeys(tuple(x) if isinstance(x, list) else x for x in gathered))
    if distinct not in self._tables:
      self._tables = {distinct: self._made(distinct)}  # The next batch mostly has the same.
    numbers = {label: i for i, label in enumerate(distinct)}
    return self._tables[distinct], np.array([numbers[label] for label in labels], np.int32)

  def _made(self, distinct):
    for label in distinct:
      if label not in self._arcs:
        self._arcs[label] = self._grammar.arcs_of(self._tokenizer, label)
    made = tables([self._arcs[label] for label in distinct], self._vocab_size)
    shortest = int(made.distance_GP[: len(distinct), 0].max())
    if shortest > self._max_decode_len:
      raise UserError(
        f"The shortest answer that grammar={self._grammar.text!r} allows has {shortest} tokens,"
        f" and max_decode_len is {self._max_decode_len}."
      )
    return made


def tables(automata: Sequence[Sequence[Arc]], vocab_size: int) -> Tables:
  """The automata with what they share: kinds of tokens, and sizes that are powers of two.

  Place 0 of each is its start. Place 1 is its end, reached by eos alone.
  """
  rng = np.random.default_rng(0)
  signature_V = np.zeros(vocab_size, np.uint64)  # Tokens with the same arcs have the same sum.
  for arcs in automata:
    for arc in arcs:
      signature_V[arc.tokens] += rng.integers(1, 2**63, dtype=np.uint64)
  _, kind_V = np.unique(signature_V, return_inverse=True)
  num_places = [1 + max(max(arc.source, arc.target) for arc in arcs) for arcs in automata]
  shape = [_power_of_two(n) for n in (len(automata), max(num_places), int(kind_V.max()) + 1)]
  next_GPK = np.full(shape, FORBIDDEN, np.int32)
  for next_PK, arcs in zip(next_GPK, automata, strict=False):
    for arc in arcs:
      next_PK[arc.source, kind_V[arc.tokens]] = arc.target
  return Tables(kind_V.astype(np.int32), next_GPK, _distances(next_GPK))


def _power_of_two(n: int) -> int:
  return 1 << (int(n) - 1).bit_length()


def _distances(next_GPK):
  """Tokens from each place to the end, at least; a large number where it cannot be reached."""
  far = np.iinfo(np.int32).max // 2
  distance_GP = np.full(next_GPK.shape[:2], far, np.int32)
  distance_GP[:, 1] = 0
  reached = np.where(next_GPK == FORBIDDEN, 0, next_GPK)
  while True:
    after_GPK = np.take_along_axis(distance_GP[:, :, None], reached, axis=1)
    nearest_GP = np.where(next_GPK == FORBIDDEN, far, after_GPK + 1).min(axis=2)
    new_GP = np.minimum(distance_GP, nearest_GP)
    if (new_GP == distance_GP).all():
      return distance_GP
    distance_GP = new_GP


class _Automaton:
  """Collects arcs; place 0 is the start and 1 the end."""

  def __init__(self, tokenizer):
    self.arcs: list[Arc] = []
    self.eos = tokenizer.eos
    self._num_places = 2

  def place(self) -> int:
    self._num_places += 1
    return self._num_places - 1

  def arc(self, source: int, tokens, target: int) -> None:
    self.arcs.append(Arc(source, np.atleast_1d(np.asarray(tokens, np.int32)), target))

  def chain(self, source: int, tokens, count: int) -> int:
    """`count` times any of the tokens; returns the place after them."""
    for _ in range(count):
      target = self.place()
      self.arc(source, tokens, target)
      source = target
    return source

  def tree(self, root: int, texts: Mapping[tuple[int, ...], Callable[[int], None]]) -> None:
    """Token sequences that share their beginnings; each calls what it leads to with its place."""
    places = {(): root}
    for tokens in sorted(texts):
      for i, token in enumerate(tokens):
        if tokens[: i + 1] not in places:
          places[tokens[: i + 1]] = self.place()
          self.arc(places[tokens[:i]], token, places[tokens[: i + 1]])
    for tokens, lead in texts.items():
      lead(places[tokens])

  def end(self, source: int) -> None:
    self.arc(source, self.eos, 1)


_Text = Annotated[str, Between(1, 200)]
_Labels = Annotated[list[_Text], Between(0, 1000)]


def _objects(num_seg, prompt_word, labels: _Labels | None = None):
  """boxes and masks; `labels` None takes those of the prompt."""
  given = None if labels is None else tuple(labels)
  labels_of = (lambda example: _of_prompt(example, prompt_word)) if given is None else None
  return labels_of or (lambda example: given), functools.partial(_object_arcs, num_seg)


def _of_prompt(example: Mapping[str, Any], word: str) -> tuple[str, ...]:
  """("cat", "dog") of the prefix "detect cat ; dog"."""
  found = locations.classes_of_prompt(str(example.get("prefix", "")), word)
  if not found:
    raise UserError(
      f"this grammar takes its labels from a prompt such as '{word} cat ; dog', and this one is"
      f" {example.get('prefix')!r}; give labels=[...] otherwise."
    )
  return found


def _object_arcs(num_seg, tokenizer, labels):
  made = _Automaton(tokenizer)
  locs = tokenizer.encode("".join(f"<loc{i:04d}>" for i in range(locations.BINS)))
  segs = tokenizer.encode("".join(f"<seg{i:03d}>" for i in range(locations.CODEBOOK)))
  opened = made.place()

  def another(place):
    made.arc(place, locs, opened)

  another(0)
  made.end(0)  # There may be no object; but after a separator there is one.
  after = made.chain(made.chain(opened, locs, _NUM_LOC - 1), segs, num_seg)
  texts: dict[tuple[int, ...], Callable[[int], None]] = {}
  for label in labels or ("",):
    written = f" {label}" if label else ""
    texts[tuple(tokenizer.encode(written))] = made.end
    texts[tuple(tokenizer.encode(f"{written} ; "))] = another
  made.tree(after, texts)
  return made.arcs


def _one_of(*answers: str, column: _Text | None = None):
  if (column is None) == (not answers):
    raise UserError("give the answers, or the column that holds them.")
  if column is None:
    return lambda example: answers, _answer_arcs

  def labels_of(example):
    found = example.get(column)
    if found is None or isinstance(found, str) or not len(found):
      raise UserError(f"one_of(column={column!r}) needs a list there, not {found!r}.")
    return tuple(str(answer) for answer in found)

  return labels_of, _answer_arcs


def _answer_arcs(tokenizer, answers):
  made = _Automaton(tokenizer)
  made.tree(0, {tuple(tokenizer.encode(answer)): made.end for answer in answers})
  return made.arcs


def _json(
  schema: _Text | None = None, fields: Annotated[list[_Text], Between(1, 64)] | None = None
):
  file = "json"
  if schema is not None and fields is not None:
    raise UserError("give the schema or the fields.")
  if fields is not None:
    schema = {"properties": {field: {"type": "string"} for field in fields}}
  elif schema is not None:
    file = schema
    schema = typed_json.read(pathlib.Path(schema), dict[str, Any])
  with naming(file):
    automaton = json_grammar.automaton(schema)
  return lambda example: None, lambda tokenizer, labels: _byte_arcs(tokenizer, *automaton)


def _byte_arcs(tokenizer, next_P256, ends_P):
  """An automaton over bytes, walked by whole tokens."""
  made = _Automaton(tokenizer)
  places = [0] + [made.place() for _ in ends_P[1:]]
  tokens, texts = _token_bytes(tokenizer)
  for place, ends in enumerate(ends_P):
    if ends:
      made.end(places[place])
    live, at, depth = np.arange(len(tokens)), np.full(len(tokens), place), 0
    while len(live):
      done = texts.lengths[live] == depth
      for target in np.unique(at[done]) if depth else ():
        made.arc(places[place], tokens[live[done & (at == target)]], places[target])
      live, at = live[~done], at[~done]
      at = next_P256[at, texts.bytes[live, depth]] if len(live) else at
      live, at, depth = live[at >= 0], at[at >= 0], depth + 1
  return made.arcs


class _Texts(NamedTuple):
  bytes: np.ndarray  # uint8 [number, longest], zeros after the end.
  lengths: np.ndarray


def _token_bytes(tokenizer) -> tuple[np.ndarray, _Texts]:
  """The tokens that stand for text, and what each reads as."""
  found = {}
  for token, piece in enumerate(tokenizer.pieces()):
    if piece.kind == "byte":
      found[token] = bytes([int(piece.text[3:5], 16)])  # <0x41>
    elif piece.kind in ("normal", "user_defined"):
      found[token] = piece.text.replace("▁", " ").encode()
  longest = max(len(text) for text in found.values())
  padded = b"".join(text.ljust(longest, b"\0") for text in found.values())
  table = np.frombuffer(padded, np.uint8).reshape(len(found), longest)
  lengths = np.array([len(text) for text in found.values()])
  return np.array(list(found), np.int32), _Texts(table, lengths)


GRAMMARS = {
  "boxes": functools.partial(_objects, 0, "detect"),
  "masks": functools.partial(_objects, locations.NUM_CODES, "segment"),
  "one_of": _one_of,
  "json": _json,
}
