"""Which bytes may follow which in a JSON text? An automaton over bytes decides.

These keywords of JSON Schema are read: type (object, array, string, number, integer, boolean,
null), properties (in the given order; those not in `required` may be missing; without `required`
none may), items, minItems, maxItems, enum, const, anyOf. Values without a schema are limited in
depth. Tokens of JSON may be separated by one space, or a newline and up to eight spaces.
"""

import functools
import itertools
import json
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np

from pgjax.errors import UserError
from pgjax.formats import typed_json

DEAD = -1
DEPTH = 3  # Of values without a schema.
MAX_PLACES = 16_384  # Each takes up to 1.5 ms and 100 kB with a vocabulary of 256,000.
MAX_STATES = 250_000  # Of the automaton before it is made deterministic.
_DIGITS = [(0x30, 0x39)]
# A character of a string that needs no escape, as the byte ranges of its UTF-8 form.
_CHARACTERS = [
  [[(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7F)]],
  [[(0xC2, 0xDF)], [(0x80, 0xBF)]],
  [[(0xE0, 0xE0)], [(0xA0, 0xBF)], [(0x80, 0xBF)]],
  [[(0xE1, 0xEC), (0xEE, 0xEF)], [(0x80, 0xBF)], [(0x80, 0xBF)]],
  [[(0xED, 0xED)], [(0x80, 0x9F)], [(0x80, 0xBF)]],
  [[(0xF0, 0xF0)], [(0x90, 0xBF)], [(0x80, 0xBF)], [(0x80, 0xBF)]],
  [[(0xF1, 0xF3)], [(0x80, 0xBF)], [(0x80, 0xBF)], [(0x80, 0xBF)]],
  [[(0xF4, 0xF4)], [(0x80, 0x8F)], [(0x80, 0xBF)], [(0x80, 0xBF)]],
]
_Few = Annotated[int, msgspec.Meta(ge=0, le=1000)]  # Each adds a copy of the item.


class Schema(TypedDict, total=False):
  """The keywords that are read, and the types of their values."""

  type: str | list[str] | None
  properties: dict[str, "Schema"]
  required: list[str]
  items: "Schema"
  minItems: _Few
  maxItems: _Few
  enum: Annotated[list[Any], msgspec.Meta(min_length=1)]
  anyOf: Annotated[list["Schema"], msgspec.Meta(min_length=1)]


_IGNORED = ("additionalProperties", "title", "description", "$schema", "default", "examples")
_READ = (*Schema.__annotations__, "const", *_IGNORED)


def automaton(schema: Mapping[str, Any] | None) -> tuple[np.ndarray, np.ndarray]:
  """(next place int32 [P, 256], DEAD where a byte is not allowed; bool [P], may the text end here).

  Starts at place 0. `schema` None allows every object and every list. Raises UserError for a
  schema with unsupported keywords, or one that needs more than MAX_PLACES.
  """
  builder = _Builder()
  if schema is None:
    part = builder.either([builder.object(DEPTH), builder.array(DEPTH)])
  else:
    typed_json.check(schema, Schema, "the schema")
    try:
      part = builder.of_schema(schema, "the schema")
    except RecursionError:
      raise UserError("the schema is nested too deep.") from None
  return builder.deterministic(part)


class _Builder:
  """A nondeterministic automaton, composed of parts (first state, last state)."""

  def __init__(self):
    self.free: list[set[int]] = []  # States reached without a byte.
    self.on: list[list[tuple[int, int, int]]] = []  # (lowest byte, highest byte, next state).

  def state(self) -> int:
    if len(self.free) == MAX_STATES:
      raise _too_large()
    self.free.append(set())
    self.on.append([])
    return len(self.free) - 1

  def one(self, ranges) -> tuple[int, int]:
    """One byte of the ranges."""
    first, last = self.state(), self.state()
    self.on[first] += [(low, high, last) for low, high in ranges]
    return first, last

  def text(self, text: str) -> tuple[int, int]:
    return self.row([self.one([(byte, byte)]) for byte in text.encode()])

  def row(self, parts) -> tuple[int, int]:
    """The parts in sequence."""
    first = last = self.state()
    for begin, end in parts:
      self.free[last].add(begin)
      last = end
    return first, last

  def either(self, parts) -> tuple[int, int]:
    first, last = self.state(), self.state()
    for begin, end in parts:
      self.free[first].add(begin)
      self.free[end].add(last)
    return first, last

  def maybe(self, part) -> tuple[int, int]:
    return self.either([part, self.row([])])

  def many(self, part) -> tuple[int, int]:
    """Zero or more times."""
    first, last = self.row([part])
    hub = self.state()
    self.free[hub].add(first)
    self.free[last].add(hub)
    return hub, hub

  def space(self) -> tuple[int, int]:
    spaces = self.row([self.maybe(self.text(" ")) for _ in range(8)])
    return self.either([self.maybe(self.text(" ")), self.row([self.text("\n"), spaces])])

  def comma(self) -> tuple[int, int]:
    return self.row([self.space(), self.text(","), self.space()])

  def digits(self) -> tuple[int, int]:
    return self.row([self.one(_DIGITS), self.many(self.one(_DIGITS))])

  def integer(self) -> tuple[int, int]:
    rest = self.row([self.one([(0x31, 0x39)]), self.many(self.one(_DIGITS))])
    return self.row([self.maybe(self.text("-")), self.either([self.text("0"), rest])])

  def number(self) -> tuple[int, int]:
    sign = self.maybe(self.either([self.text("+"), self.text("-")]))
    exponent = self.row([self.either([self.text("e"), self.text("E")]), sign, self.digits()])
    fraction = self.row([self.text("."), self.digits()])
    return self.row([self.integer(), self.maybe(fraction), self.maybe(exponent)])

  def string(self) -> tuple[int, int]:
    characters = [self.row([self.one(r) for r in ranges]) for ranges in _CHARACTERS]
    hexadecimal = [(0x30, 0x39), (0x41, 0x46), (0x61, 0x66)]
    unicode = self.row([self.text("u"), *(self.one(hexadecimal) for _ in range(4))])
    short = self.one([(ord(c), ord(c)) for c in '"\\/bfnrt'])
    escape = self.row([self.text("\\"), self.either([short, unicode])])
    inside = self.many(self.either([*characters, escape]))
    return self.row([self.text('"'), inside, self.text('"')])

  def value(self, depth: int) -> tuple[int, int]:
    """Any value, with at most `depth` levels of objects and lists in it."""
    parts = [self.string(), self.number(), *map(self.text, ("true", "false", "null"))]
    return self.either([*parts, self.object(depth), self.array(depth)] if depth else parts)

  def object(self, depth: int) -> tuple[int, int]:
    colon = [self.space(), self.text(":"), self.space()]
    return self.listed("{", self.row([self.string(), *colon, self.value(depth - 1)]), "}")

  def array(self, depth: int) -> tuple[int, int]:
    return self.listed("[", self.value(depth - 1), "]")

  def listed(self, opening: str, item, closing: str) -> tuple[int, int]:
    """Zero or more, separated by commas."""
    begin, end = self.row([item])
    before, after = self.comma()
    self.free[end].add(before)
    self.free[after].add(begin)
    inside = self.maybe(self.row([self.space(), (begin, end)]))
    return self.row([self.text(opening), inside, self.space(), self.text(closing)])

  def of_schema(self, schema: Mapping[str, Any], where: str) -> tuple[int, int]:
    if unknown := sorted(set(schema).difference(_READ)):
      raise UserError(f"{where} uses {unknown[0]!r}, which is not read; {', '.join(_READ)} are.")
    if "const" in schema or "enum" in schema:
      values = schema["enum"] if "enum" in schema else [schema["const"]]
      return self.either([self.text(json.dumps(v, ensure_ascii=False)) for v in values])
    if "anyOf" in schema:
      return self.either([self.of_schema(s, f"{where}'s anyOf") for s in schema["anyOf"]])
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
      return self.either([self.of_schema({**schema, "type": k}, where) for k in kind])
    return self.of_type(kind, schema, where)

  def of_type(self, kind: Any, schema: Mapping[str, Any], where: str) -> tuple[int, int]:
    if kind == "object" and "properties" in schema:
      return self.record(schema, where)
    if kind == "array" and "items" in schema:
      return self.items(schema, where)
    simple = {
      None: lambda: self.value(DEPTH), "object": lambda: self.object(DEPTH),
      "array": lambda: self.array(DEPTH), "string": self.string, "number": self.number,
      "integer": self.integer, "null": lambda: self.text("null"),
      "boolean": lambda: self.either([self.text("true"), self.text("false")]),
    }  # fmt: skip
    if kind not in simple:
      raise UserError(f"{where} has type {kind!r}; allowed: {', '.join(filter(None, simple))}.")
    return simple[kind]()

  def record(self, schema: Mapping[str, Any], where: str) -> tuple[int, int]:
    """The properties in their order; each that is present except the first follows a comma."""
    properties = schema["properties"]
    required = set(schema.get("required", properties))
    if unknown := required - set(properties):
      raise UserError(f"{where} requires {sorted(unknown)[0]!r}, which is no property of it.")
    first, none = self.text("{")  # `none`: no property so far; `some`: at least one.
    last, some = self.state(), self.state()
    for name, inner in properties.items():
      after = self.state()
      key, value = (
        json.dumps(name, ensure_ascii=False),
        self.of_schema(inner, f"{where}'s {name!r}"),
      )
      begin, end = self.row([self.text(key), self.space(), self.text(":"), self.space(), value])
      for before, separator in ((none, self.space()), (some, self.comma())):
        self.free[before].add(separator[0])
        self.free[separator[1]].add(begin)
      self.free[end].add(after)
      none_after = self.state()
      if name not in required:
        self.free[none].add(none_after)
        self.free[some].add(after)
      none, some = none_after, after
    closing = self.row([self.space(), self.text("}")])
    self.free[none].add(closing[0])
    self.free[some].add(closing[0])
    self.free[closing[1]].add(last)
    return first, last

  def items(self, schema: Mapping[str, Any], where: str) -> tuple[int, int]:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    item = functools.partial(self.of_schema, schema["items"], f"{where}'s items")
    if most is None:
      if least:
        raise UserError(f"{where} has minItems={least} without maxItems, which is not read.")
      return self.listed("[", item(), "]")
    if least > most:
      raise UserError(f"{where} has minItems={least}, more than maxItems={most}.")
    first, at = self.row([self.text("["), self.space()])
    begin, last = self.row([self.space(), self.text("]")])
    for count in range(most + 1):
      if count >= least:
        self.free[at].add(begin)
      if count < most:
        next_item, after = self.row([self.comma(), item()]) if count else item()
        self.free[at].add(next_item)
        at = after
    return first, last

  def deterministic(self, part: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The subset construction."""
    first, last = part
    closures: dict[int, frozenset[int]] = {}

    def closure(state):
      if state not in closures:
        seen, todo = {state}, [state]
        while todo:
          new = self.free[todo.pop()] - seen
          seen |= new
          todo += new
        closures[state] = frozenset(s for s in seen if self.on[s] or s == last)
      return closures[state]

    start = closure(first)
    numbers, order, rows = {start: 0}, [start], []
    for subset in order:  # It grows during the loop.
      row = np.full(256, DEAD, np.int32)
      arcs = [arc for state in subset for arc in self.on[state]]
      edges = sorted({e for low, high, _ in arcs for e in (low, high + 1)})
      for low, high in itertools.pairwise(edges):
        reached = frozenset().union(*(closure(s) for a, b, s in arcs if a <= low and high - 1 <= b))
        if reached:
          if reached not in numbers:
            if len(order) == MAX_PLACES:
              raise _too_large()
            numbers[reached] = len(order)
            order.append(reached)
          row[low:high] = numbers[reached]
      rows.append(row)
    return np.stack(rows), np.array([last in subset for subset in order])


def _too_large() -> UserError:
  return UserError(
    f"the schema is too large: its answers need over {MAX_PLACES:,} states, about one a character"
    " of every name and text, and 40 for each free text; lower maxItems, which repeats"
    " its item, or shorten enum and const."
  )
