"""How is a text such as `resize(224, antialias=True)` read? By one parser, for all such options.

A language is a dict of Python functions, and their signatures declare what a text may pass: int,
float, str, bool, None, Literal, tuple[int, int], list[str], a union of these, Annotated[int,
Between(1, 9)] for the range of a number or a length, Annotated[str, "regex"] for its name in
messages, and **names: Unpack[a TypedDict] for optional keywords that several functions share. Only
literals are evaluated: an int is also a float, a bool is neither, a tuple may be a list.
"""

import ast
import functools
import inspect
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pgjax.errors import UserError, cut, did_you_mean

MAX_LENGTH = 100_000  # Characters of a text.
MAX_DEPTH = 20  # Brackets inside each other.
_FAILURES = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)  # Of `ast`.
_WORDS = {int: "a whole number", float: "a number", str: "text in quotes", bool: "True or False"}
# A string up to its end (or the text's), or one character that opens, closes or separates.
_TOKEN = re.compile(r"""('''|\"""|'|")(?:\\.|(?!\1)[^\\])*(?:\1|\\?\Z)|[()\[\]{}|]""", re.DOTALL)


class Between(NamedTuple):
  """The inclusive range of a number or of a length, without the values in `but_not`."""

  low: float
  high: float
  but_not: tuple[float, ...] = ()

  def __str__(self) -> str:
    if not self.but_not:
      return f"from {self.low} to {self.high}"
    low = f"{'>' if self.low in self.but_not else '>='} {self.low}"
    return f"{low} and {'<' if self.high in self.but_not else '<='} {self.high}"


class Given:
  """The type of a parameter that the program passes, never the text."""


class Nested:
  """The type of a parameter that is written as a call of the same language."""


class Call(NamedTuple):
  """A parsed call. Calling it calls the function, with the `Given` arguments added."""

  name: str
  written: str
  function: Callable
  bound: inspect.BoundArguments
  where: str  # The field and the signature; errors begin with it.

  def __call__(self, **given) -> Any:
    """Passes only those of `given` that the function takes."""
    declared = inspect.signature(self.function).parameters
    given = {n: v for n, v in given.items() if n in declared and declared[n].annotation is Given}
    try:
      return self.function(*self.bound.args, **self.bound.kwargs, **given)
    except UserError as error:
      raise UserError(f"{self.where}: {error}") from None


def parse(text: str, language: Mapping[str, Callable], where: str) -> list[Call]:
  """Reads calls joined by "|", such as `decode|resize(224)`; empty parts are skipped."""
  return [parse_one(part, language, where) for part in split(text, where) if part]


def parse_one(text: str, language: Mapping[str, Callable], where: str) -> Call:
  """Reads a single call. `where` names the field in the UserError about a wrong one."""
  split(text, where)
  try:
    node = ast.parse(text.strip(), mode="eval").body
  except _FAILURES:
    node = None
  return _read(node, text.strip(), language, where)


def literal(text: str) -> Any:
  """The value of a Python literal; raises ValueError for any other text."""
  try:
    split(text, "value")
    return ast.literal_eval(text.strip())
  except _FAILURES:
    raise ValueError(f"not a literal: {cut(text)}") from None


@functools.lru_cache(maxsize=512)  # A millisecond; a config of 70 evaluators names 1,500 ops.
def signature(name: str, function: Callable) -> str:
  """Such as `resize(size: int or (int, int), method: 'bilinear' or 'bicubic' = 'bilinear')`."""
  declared = parameters(function)
  plain = [p.replace(annotation=_Plain(describe(p.annotation))) for p in declared.values()]
  return f"{name}{inspect.Signature(plain)}"


class _Plain(str):
  __slots__ = ()
  __repr__ = str.__str__


@functools.lru_cache(maxsize=512)
def parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
  """The parameters that a text may pass to the function."""
  declared = {}
  for p in inspect.signature(function).parameters.values():
    if typing.get_origin(p.annotation) is typing.Unpack:
      for name, kind in typing.get_args(p.annotation)[0].__annotations__.items():
        declared[name] = p.replace(
          name=name, kind=p.KEYWORD_ONLY, default=None, annotation=kind | None
        )
    elif p.annotation is not Given:
      declared[p.name] = p
  return declared


def split(text: str, where: str) -> list[str]:
  """Splits the text at each "|" outside of strings and brackets; refuses oversized texts."""
  if not isinstance(text, str) or len(text) > MAX_LENGTH:
    raise UserError(f"{where}: {cut(repr(text))} must be text of up to {MAX_LENGTH} characters.")
  parts, start, depth = [], 0, 0
  for token in _TOKEN.finditer(text):
    depth += (token[0] in "([{") - (token[0] in ")]}")
    if depth > MAX_DEPTH:
      raise UserError(f"{where}: {cut(repr(text))} has over {MAX_DEPTH} brackets in each other.")
    if token[0] == "|" and depth <= 0:
      parts.append(text[start : token.start()])
      start = token.end()
  return [part.strip() for part in (*parts, text[start:])]


def _read(node: ast.expr | None, text: str, language: Mapping[str, Callable], where: str) -> Call:
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  if not isinstance(call.func, ast.Name):
    wanted = "name or name(arguments), with plain numbers and quoted strings"
    hint = did_you_mean("", language)
    raise UserError(f"{where}: {cut(repr(text))} cannot be read; write {wanted}.{hint}")
  name = call.func.id
  if name not in language:
    raise UserError(f"{where}: there is no {cut(repr(name))}.{did_you_mean(name, language)}")
  where = f"{where}: {signature(name, language[name])}"
  bound = _bound(call, parameters(language[name]), where)

  def value(argument, parameter, kind):
    if kind is Nested:
      return _read(argument, text, language, where)()
    try:
      read = ast.literal_eval(argument)
    except _FAILURES:
      read = ...  # Matches no declared type.
    if not accepts(kind, read):
      written = cut(ast.get_source_segment(text, argument) or "")
      raise UserError(f"{where}: {parameter} must be {describe(kind, ranges=True)}, not {written}.")
    return read

  for parameter, given in bound.arguments.items():
    p = bound.signature.parameters[parameter]
    if p.kind is p.VAR_POSITIONAL:
      bound.arguments[parameter] = tuple(value(v, parameter, p.annotation) for v in given)
    elif p.kind is p.VAR_KEYWORD:
      bound.arguments[parameter] = {key: value(v, key, p.annotation) for key, v in given.items()}
    else:
      bound.arguments[parameter] = value(given, parameter, p.annotation)
  return Call(name, text, language[name], bound, where)


def _bound(call: ast.Call, declared: Mapping[str, Any], where: str) -> inspect.BoundArguments:
  """Binds the unread arguments to parameters; `*` and `**` arguments match no type later."""
  keywords = Counter(keyword.arg for keyword in call.keywords)  # None is **.
  any_keyword = any(p.kind is p.VAR_KEYWORD for p in declared.values())
  for name, times in keywords.items():
    if times > 1:
      raise UserError(f"{where}: {cut(str(name))} is given {times} times.")
    if name not in declared and not any_keyword:
      hint = did_you_mean(name, declared)
      raise UserError(f"{where}: there is no argument {cut(repr(name))}.{hint}")
  try:
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    return inspect.Signature(list(declared.values())).bind(*call.args, **named)
  except TypeError as error:
    raise UserError(f"{where}: {error}.") from None


def accepts(kind: Any, value: Any) -> bool:
  """Whether a literal is of a declared type."""
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin is Annotated:
    right_type = accepts(args[0], value)
    if not right_type or isinstance(args[1], str):
      return right_type
    size = len(value) if isinstance(value, str | list | tuple) else value
    return args[1].low <= size <= args[1].high and size not in args[1].but_not
  if origin in (typing.Union, types.UnionType):
    return any(accepts(arg, value) for arg in args)
  if origin is Literal:
    return any(type(value) is type(arg) and value == arg for arg in args)
  if origin in (tuple, list):
    if not isinstance(value, list | tuple) or (origin is tuple and len(value) != len(args)):
      return False
    return all(map(accepts, args if origin is tuple else args * len(value), value))
  if Mapping in (kind, origin):
    if not hasattr(value, "keys"):
      return False
    return not args or all(accepts(args[0], f) and accepts(args[1], value[f]) for f in value)
  if kind in (int, float):
    return type(value) in (int, kind) and -(2**63) < value < 2**63
  # Half of a surrogate pair can neither be printed nor encoded.
  return type(value) is kind and not (kind is str and re.search("[\ud800-\udfff]", value))


def describe(kind: Any, ranges: bool = False) -> str:
  """A declared type in words: `int or str`, with ranges `a whole number from 1 to 9 or ...`."""
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin is Annotated:
    if isinstance(args[1], str):
      return args[1]
    between = f" {args[1]}"
    if args[0] is str:
      between = f" of length {args[1]}" if args[1].high < MAX_LENGTH else ""
    elif typing.get_origin(args[0]) is list:
      between = f", {args[1].low} to {args[1].high} of them"
    return describe(args[0], ranges) + between * ranges
  if origin in (typing.Union, types.UnionType):
    return " or ".join(describe(arg, ranges) for arg in args)
  if origin is Literal:
    values = [*map(repr, args)]
    return " or ".join(values) if len(values) < 4 else f"one of {', '.join(values)}"
  if origin in (tuple, list):
    inside = ", ".join(describe(arg, ranges) for arg in args)
    if origin is tuple:
      return f"({inside})"
    pairs = "pairs " * (len(typing.get_args(args[0])) == 2 and inside.startswith("("))
    return f"a list of {pairs}{inside}" if ranges else f"[{inside}, ...]"
  if Mapping in (kind, origin):
    return "a dict" + (f" of {describe(args[1], ranges)}" if args else "")
  if kind in (None, types.NoneType, Nested):
    return "name(...)" if kind is Nested else "None"
  return _WORDS[kind] if ranges else kind.__name__
