"""What may an answer look like? A grammar restricts it to boxes, masks, JSON or one of a list.

Its name is evals.*.grammar or --grammar; docs/decoding.md lists them. "boxes" is four <loc> with
y1 > y0 and x1 > x0, and a label, for each object, with "; " between objects; "boxes(num_boxes=20)"
has exactly twenty of them; "masks" has sixteen <seg> after the <loc>.

Each is an automaton over tokens. An answer is allowed in the tokenizer's own tokens (JSON in any
tokens) and ends with eos. grammar_mask.py applies the tables during decoding.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from pgjax import call_syntax
from pgjax.call_syntax import Between
from pgjax.data import locations
from pgjax.errors import UserError, cut, naming
from pgjax.formats import typed_json
from pgjax.inference import json_grammar, token_walk
from pgjax.inference.grammar_mask import FORBIDDEN, Tables

MAX_BYTES = 256 << 20  # Of the table of one batch, on every device.


class Arc(NamedTuple):
  """From one place (state) to another by any of the tokens."""

  source: int
  tokens: np.ndarray  # int32.
  target: int
  is_second: bool = False  # Only tokens with a larger number than the token two before.


class Grammar(NamedTuple):
  """A parsed grammar; `labels_of` returns what the automaton of an example depends on."""

  text: str
  labels_of: Callable[[Mapping[str, Any]], tuple[str, ...] | None]
  arcs_of: Callable[[Any, tuple[str, ...] | None], list[Arc]]  # From a tokenizer and those labels.
  # int32 [V]: the token whose arcs each token shares, -1 for none; None: each has its own.
  stands_of: Callable[[Any], np.ndarray | None] = lambda tokenizer: None


def parse(text: str, where: str = "grammar", *, files: bool = True) -> Grammar:
  """Parses the name of a grammar, and reads its schema file if it has one and may (`files`)."""
  call = call_syntax.parse_one(text, GRAMMARS, where)
  if not files and call.bound.arguments.get("schema") is not None:
    raise UserError(f"{where}: a file cannot be named here; write json(fields=[...]) or json.")
  return Grammar(text, *call())


class Masks:
  """Tables of one grammar for the batches of a split, computed once for each set of labels."""

  def __init__(
    self,
    grammar: Grammar,
    tokenizer: Any,
    vocab_size: int,
    max_decode_len: int,
    *,
    gather: Callable[[Any], list[Any]] = lambda labels: [labels],
    place: Callable[[Tables], Tables] = lambda tables: tables,
  ):
    """vocab_size: rows of the model's token table; those beyond the tokenizer's are forbidden.

    gather: collects the labels of all processes, whose tables must be the same.
    place: moves tables to the devices.
    """
    self._grammar, self._tokenizer, self._gather, self._place = grammar, tokenizer, gather, place
    self._vocab_size, self._max_decode_len = vocab_size, max_decode_len
    self._arcs: dict[Any, list[Arc]] = {}
    self._tables: dict[Any, Tables] = {}

  def of(self, examples: Sequence[Mapping[str, Any]]) -> tuple[Tables, np.ndarray]:
    """(tables, int32 [B] which grammar each example follows)."""
    labels = [self._grammar.labels_of(example) for example in examples]
    gathered = [label for some in self._gather(labels) for label in some]  # JSON has no tuples.
    distinct = tuple(dict.fromkeys(tuple(x) if isinstance(x, list) else x for x in gathered))
    if distinct not in self._tables:  # Mostly the next batch has the same labels.
      self._tables = {distinct: self._place(self._tables_of(distinct))}
    numbers = {label: i for i, label in enumerate(distinct)}
    return self._tables[distinct], np.array([numbers[label] for label in labels], np.int32)

  def _tables_of(self, distinct):
    for label in distinct:
      if label not in self._arcs:
        self._arcs[label] = self._grammar.arcs_of(self._tokenizer, label)
    stands_V = self._grammar.stands_of(self._tokenizer)
    with naming(f"grammar={self._grammar.text!r}"):
      result = tables([self._arcs[label] for label in distinct], self._vocab_size, stands_V)
    shortest = int(result.distance_GP[: len(distinct), 0].max())
    if shortest > self._max_decode_len:
      raise UserError(
        f"The shortest answer that grammar={self._grammar.text!r} allows has {shortest} tokens,"
        f" and max_decode_len is {self._max_decode_len}."
      )
    return result


def tables(
  automata: Sequence[Sequence[Arc]], vocab_size: int, stands_V: np.ndarray | None = None
) -> Tables:
  """The automata with shared kinds of tokens; sizes are powers of two, so that few are compiled.

  Place 0 of each is its start; place 1 is its end, which only eos reaches. With `stands_V` (see
  Grammar.stands_of) arcs have only the tokens that stand for others. Raises UserError if the tables
  would take over MAX_BYTES.
  """
  rng = np.random.default_rng(0)
  signature_V = np.zeros(vocab_size, np.uint64)  # Tokens with the same arcs have the same sum.
  for arcs in automata:
    for arc in arcs:
      signature_V[arc.tokens] += rng.integers(1, 2**63, dtype=np.uint64)
  if stands_V is not None:
    same = np.flatnonzero(stands_V >= 0)
    signature_V[same] = signature_V[stands_V[same]]
  _, kind_V = np.unique(signature_V, return_inverse=True)
  num_places = max(1 + max(arc.source, arc.target) for arcs in automata for arc in arcs)
  sizes = (len(automata), num_places, int(kind_V.max()) + 1)
  rounded = [1 << (n - 1).bit_length() for n in sizes]
  if (size := 4 * math.prod(rounded)) > MAX_BYTES:
    raise UserError(
      f"its tables would take {size >> 20:,} MiB, more than {MAX_BYTES >> 20}: {sizes[0]:,} lists"
      f" of labels, {sizes[1]:,} states, {sizes[2]:,} kinds of tokens. Use fewer or shorter texts,"
      " or smaller batches"
    )
  next_GPK = np.full(rounded, FORBIDDEN, np.int32)
  for next_PK, arcs in zip(next_GPK, automata, strict=False):
    for arc in arcs:
      next_PK[arc.source, kind_V[arc.tokens]] = arc.target
  second = _second_corners(automata, next_GPK.shape[:2], vocab_size)
  return Tables(kind_V.astype(np.int32), next_GPK, np.stack([*map(_distances, next_GPK)]), *second)


def _second_corners(automata, shape, vocab_size):
  """(number_V, second_GP) of grammar_mask.Tables; (None, None) without boxes."""
  number_V, second_GP = np.full(vocab_size, -1, np.int32), np.zeros(shape, bool)
  for second_P, arcs in zip(second_GP, automata, strict=False):
    for arc in arcs:
      if arc.is_second:
        second_P[arc.source] = True
        number_V[arc.tokens] = np.arange(1, len(arc.tokens) + 1)
  return (number_V, second_GP) if second_GP.any() else (None, None)


def _distances(next_PK):
  """int32 [P]: fewest tokens from each place to the end; a large number where it is unreachable."""
  distance_P = np.full(len(next_PK), np.iinfo(np.int32).max // 2, np.int32)
  sources, kinds = np.nonzero(next_PK != FORBIDDEN)
  pairs = np.unique(next_PK[sources, kinds].astype(np.int64) * len(next_PK) + sources)
  targets, sources = np.divmod(pairs, len(next_PK))  # In the order of the targets.
  starts = np.searchsorted(targets, np.arange(len(next_PK) + 1))
  nearest, distance = np.array([1]), 0  # Backwards from the end, place 1, a token at a time.
  while len(nearest):
    distance_P[nearest], distance = distance, distance + 1
    before = [sources[starts[place] : starts[place + 1]] for place in nearest]
    candidates = np.unique(np.concatenate(before))
    nearest = candidates[distance_P[candidates] > distance]
  return distance_P


class _Automaton:
  """Collects arcs; place 0 is the start and 1 the end."""

  def __init__(self, tokenizer):
    self.arcs: list[Arc] = []
    self._eos = tokenizer.eos
    self._num_places = 2

  def place(self) -> int:
    self._num_places += 1
    return self._num_places - 1

  def arc(self, source: int, tokens, target: int, *, is_second: bool = False) -> None:
    self.arcs.append(Arc(source, np.atleast_1d(np.asarray(tokens, np.int32)), target, is_second))

  def chain(self, source: int, tokens, count: int) -> int:
    """Any `count` of the tokens; returns the place after them."""
    for _ in range(count):
      target = self.place()
      self.arc(source, tokens, target)
      source = target
    return source

  def tree(self, root: int, texts: Mapping[tuple[int, ...], Callable[[int], None]]) -> None:
    """Token sequences as a prefix tree; calls the function of each with the place at its end."""
    places = {(): root}
    for tokens in sorted(texts):
      for i, token in enumerate(tokens):
        if tokens[: i + 1] not in places:
          places[tokens[: i + 1]] = self.place()
          self.arc(places[tokens[:i]], token, places[tokens[: i + 1]])
    for tokens, finish in texts.items():
      finish(places[tokens])

  def end(self, source: int) -> None:
    self.arc(source, self._eos, 1)


_Text = Annotated[str, Between(1, 200)]
_Labels = Annotated[list[_Text], Between(0, 1000)]


def _boxes(
  labels: _Labels | None = None, num_boxes: Annotated[int, Between(1, 1000)] | None = None
):
  return _objects(0, "detect", labels, num_boxes)


def _masks(labels: _Labels | None = None):
  return _objects(locations.NUM_CODES, "segment", labels)


def _objects(num_seg, prompt_word, labels, num_boxes=None):
  """boxes and masks; `labels` None takes those of the prompt; `num_boxes` None: any number."""

  def labels_of(example):
    if labels is not None:
      return tuple(labels)
    prompt = example.get("prefix", "")
    if classes := locations.classes_of_prompt(str(prompt), prompt_word):
      return classes
    raise UserError(
      f"this grammar takes its labels from a prompt such as '{prompt_word} cat ; dog', and this one"
      f" is {example.get('prefix')!r}; give labels=[...] otherwise."
    )

  return labels_of, functools.partial(_object_arcs, num_seg, num_boxes)


def _object_arcs(num_seg, num_boxes, tokenizer, labels):
  """Places of one object, which is repeated, or of each of `num_boxes` objects."""
  automaton = _Automaton(tokenizer)
  locs = tokenizer.encode("".join(f"<loc{i:04d}>" for i in range(locations.BINS)))
  segs = tokenizer.encode("".join(f"<seg{i:03d}>" for i in range(locations.CODEBOOK)))

  # y1 > y0 and x1 > x0, so the first of a pair is not the last bin, and the second not bin 0.
  first, second = locs[:-1], locs[1:]
  written = [f" {label}" if label else "" for label in labels or ("",)]
  ends = [tuple(tokenizer.encode(text)) for text in written]
  separators = [tuple(tokenizer.encode(f"{text} ; ")) for text in written]

  def an_object(opened: int) -> int:
    """The place after the second to last of its locations and codes."""
    corner = automaton.chain(opened, first, 1)
    for _ in range(2):
      after = automaton.place()
      automaton.arc(corner, second, after, is_second=True)
      corner = after
    return automaton.chain(corner, segs, num_seg)

  opened = automaton.place()
  automaton.arc(0, first, opened)
  if num_boxes is None:
    automaton.end(0)  # No object at all; but a separator is followed by one.
    texts = dict.fromkeys(ends, automaton.end)
    texts |= dict.fromkeys(separators, lambda place: automaton.arc(place, first, opened))
    automaton.tree(an_object(opened), texts)
    return automaton.arcs
  for _ in range(num_boxes - 1):
    after, opened = an_object(opened), automaton.place()
    another = functools.partial(automaton.arc, tokens=first, target=opened)
    automaton.tree(after, dict.fromkeys(separators, another))
  automaton.tree(an_object(opened), dict.fromkeys(ends, automaton.end))
  return automaton.arcs


def _one_of(*answers: str, column: _Text | None = None):
  if (column is None) == (not answers):
    raise UserError("give the answers, or the column that holds them.")

  def labels_of(example):
    if column is None:
      return answers
    values = example.get(column)
    if not isinstance(values, list | tuple | np.ndarray) or not len(values):
      raise UserError(f"one_of(column={column!r}) needs a list there, not {cut(repr(values))}.")
    return tuple(str(answer) for answer in values)

  return labels_of, _answer_arcs


def _answer_arcs(tokenizer, answers):
  automaton = _Automaton(tokenizer)
  automaton.tree(0, {tuple(tokenizer.encode(answer)): automaton.end for answer in answers})
  return automaton.arcs


def _json(
  schema: _Text | None = None, fields: Annotated[list[_Text], Between(1, 64)] | None = None
):
  file = schema or "json"
  if schema is not None and fields is not None:
    raise UserError("give the schema or the fields.")
  if fields is not None:
    schema = {"properties": {field: {"type": "string"} for field in fields}}
  elif schema is not None:
    schema = typed_json.read(pathlib.Path(schema), dict[str, Any])
  with naming(file):
    automaton = json_grammar.automaton(schema)
  next_P256, ends_P = automaton
  grouped = functools.cache(lambda tokenizer: token_walk.grouped(tokenizer, next_P256))
  return (
    lambda example: None,
    lambda tokenizer, labels: _byte_arcs(tokenizer, grouped(tokenizer), ends_P),
    lambda tokenizer: grouped(tokenizer)[0].stands_V,
  )


def _byte_arcs(tokenizer, grouped, ends_P):
  """An automaton over bytes, walked by whole tokens; byte place p > 0 is place p + 1."""
  automaton = _Automaton(tokenizer)
  places = [0] + [automaton.place() for _ in ends_P[1:]]
  for step in token_walk.steps(*grouped):
    automaton.arc(places[step.source], step.tokens, places[step.target])
  for place in np.flatnonzero(ends_P):
    automaton.end(places[place])
  return automaton.arcs


GRAMMARS = {"boxes": _boxes, "masks": _masks, "one_of": _one_of, "json": _json}
