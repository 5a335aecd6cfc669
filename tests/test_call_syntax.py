"""The parser of name(args) texts, and every language that is declared for it.

The cases for the languages are made from the signatures: a new op is covered as soon as it is in
its dict.
"""

import itertools
import types
import typing
from typing import Annotated, Literal

import pytest

from pgjax import call_syntax
from pgjax.call_syntax import Between
from pgjax.config import decode_method
from pgjax.data import tokenizer
from pgjax.data.pp import parse as parse_lib
from pgjax.distributed import sharding
from pgjax.errors import UserError
from pgjax.inference import grammar
from pgjax.params import rules as param_rules

TINY = tokenizer.load("tiny")
LANGUAGES = {
  "pp": (parse_lib.OPS, lambda text: parse_lib.parse(text, tokenizer=TINY)),
  "config.params": (param_rules.SPECS, param_rules.parse_spec),
  "config.decode": (decode_method.METHODS, lambda text: decode_method.parse(text, "config.decode")),
  "grammar": (grammar.GRAMMARS, grammar.parse),
  "config.sharding_strategy": (
    sharding.TACTICS,
    lambda text: sharding.parse_tactic(text, {"data": 8}),
  ),
}
POOL = {
  bool: ["True"],
  str: ["'zzz'", "'\\ud800'", "'a' + 'b'", "f'x'"],
  int: ["7", "-7", "9" * 400, "0x" + "f" * 9000],
  float: ["0.5", "1e400", "-1e400"],
  list: ["[]", "[[1]]", "(1, 2, 3, 4, 5, 6, 7, 8, 9)"],
  types.NoneType: ["None"],
  None: [
    "{}",
    "{1}",
    "b'x'",
    "1j",
    "...",
    "open",
    "lambda: 1",
    "1 + 1",
    "[].append",
    "-'a'",
    "(x:=1)",
  ],
}


def alternatives(kind):
  """The members of a union."""
  if typing.get_origin(kind) in (typing.Union, types.UnionType):
    return [a for arg in typing.get_args(kind) for a in alternatives(arg)]
  return [kind]


def types_of(kind):
  """Python types that a declared type may take; a Literal only its own values."""
  inner = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
  if typing.get_origin(inner) is Literal:
    return set()
  return {
    int: {int}, float: {int, float}, str: {str}, bool: {bool}, types.NoneType: {types.NoneType},
  }.get(inner, {list})  # fmt: skip


def right(kind):
  """A text that is right."""
  kind = alternatives(kind)[0]
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin is Annotated:
    inner, (low, high, but_not) = args
    if inner is str:
      return repr("x" * max(low, 1))
    if typing.get_origin(inner) is list:
      return f"[{', '.join([right(typing.get_args(inner)[0])] * low)}]"
    return repr(high if low in but_not else low)
  if origin is Literal:
    return repr(args[0])
  if origin is tuple:
    return f"({', '.join(map(right, args))})"
  if kind is call_syntax.Nested:
    return "nucleus(0.9)"
  return {int: "1", float: "0.5", str: "'x'", bool: "True"}.get(kind, "[]")


def wrong(kind):
  """Texts of a wrong type, a wrong length, and out of range."""
  if kind is call_syntax.Nested:
    yield from [text for texts in POOL.values() for text in texts]
    return
  members = alternatives(kind)
  taken = set().union(*map(types_of, members))
  for of, texts in POOL.items():
    if of not in taken:
      yield from texts
  yield "1e400"
  for member in members:
    origin, args = typing.get_origin(member), typing.get_args(member)
    if origin is tuple:
      yield f"({', '.join([right(args[0])] * (len(args) + 1))})"
      yield f"[{right(args[0])}]"
      yield f"({', '.join([next(wrong(args[0])), *map(right, args[1:])])})"
    elif origin is list or typing.get_origin(args and args[0]) is list:
      item = typing.get_args(member if origin is list else args[0])[0]
      yield from ("[{}]", "[1e400]")
      if origin is Annotated:
        yield f"[{', '.join([right(item)] * (args[1].high + 1))}]"
    elif origin is Annotated:
      low, high, but_not = args[1]
      if args[0] is str:
        yield repr("x" * (high + 1))
      else:
        yield from map(repr, (low - 1, high + 1, *but_not))
    elif origin is Literal:
      yield "'zzz'"


def call(name, positional, named=()):
  return f"{name}({', '.join([*positional, *(f'{key}={text}' for key, text in named)])})"


def calls_with_one_wrong(name, function):
  declared = call_syntax.parameters(function)
  required = {
    n: right(p.annotation)
    for n, p in declared.items()
    if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
  }
  for n, p in declared.items():
    for text in wrong(p.annotation):
      if p.kind is p.VAR_POSITIONAL:
        yield call(name, [text])
      else:
        yield call(name, (), (required | {n: text}).items())
  for left_out in required:
    yield call(name, (), [item for item in required.items() if item[0] != left_out])
  kinds = {p.kind for p in declared.values()}
  good = [*required.items()]
  if p.VAR_POSITIONAL not in kinds if declared else True:
    yield call(name, ["1"] * (len(declared) + 1))
  if not declared or p.VAR_KEYWORD not in kinds:
    yield call(name, (), [*good, ("unheard_of", "1")])
  for splat in ("*[1]", "**{}", "*x"):
    yield call(name, [splat], ())
  if good:
    yield call(name, (), [*good, good[0]])


CASES = [(where, name) for where, (language, _) in LANGUAGES.items() for name in language]


@pytest.mark.parametrize(("where", "name"), CASES)
def test_a_wrong_argument_is_reported_with_the_signature(where, name):
  language, parse = LANGUAGES[where]
  texts = list(calls_with_one_wrong(name, language[name]))
  assert len(texts) >= 4
  begins = f"{where}: {call_syntax.signature(name, language[name])}: "
  for text in texts:
    with pytest.raises(UserError) as caught:
      parse(text)
    message = str(caught.value)
    assert message.startswith(begins), (text, message)
    assert "\n" not in message
    assert len(message) < len(begins) + 600


@pytest.mark.parametrize(("where", "name"), CASES)
def test_every_parameter_declares_what_it_takes(where, name):
  def bounded(kind, *, inside=False):
    if typing.get_origin(kind) is Literal:
      return True
    inside = inside or typing.get_origin(kind) is Annotated
    args = [a for a in typing.get_args(kind) if not isinstance(a, Between)]
    return all(bounded(a, inside=inside) for a in args) if args else inside or kind is not int

  for p in call_syntax.parameters(LANGUAGES[where][0][name]).values():
    assert p.annotation is not p.empty, p
    assert bounded(p.annotation), p


def resize(size: Annotated[int, Between(1, 9)] | tuple[int, int], *, fast: bool = False):
  if size == 8:
    raise UserError("8 is unlucky.")
  return size, fast


def joined(*names: str, **weights: list[float]):
  return names, weights


LANGUAGE = dict(resize=resize, joined=joined)


def read(text):
  return [call() for call in call_syntax.parse(text, LANGUAGE, "field")]


@pytest.mark.parametrize(
  ("text", "values"),
  [
    ("", []),
    (" | resize(3) || ", [(3, False)]),
    ("resize(size=(1, 2), fast=True)|resize([3, 4])", [((1, 2), True), ([3, 4], False)]),
    ("joined('a|b', \"'|(\", w=[1, 0.5])", [(("a|b", "'|("), {"w": [1, 0.5]})]),
    (r"joined('\'|', '''a'|b''', r'\|')|joined", [(("'|", "a'|b", r"\|"), {}), ((), {})]),
    ("joined\n|\nresize(\n2)", [((), {}), (2, False)]),
  ],
)
def test_what_a_chain_reads_as(text, values):
  assert read(text) == values


DEEP = "[" * 30 + "]" * 30


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      "resize('a')",
      "resize(size: int or (int, int), *, fast: bool = False): size must be"
      " a whole number from 1 to 9 or (a whole number, a whole number), not 'a'.",
    ),
    ("resize(8)", "resize(size: int or (int, int), *, fast: bool = False): 8 is unlucky."),
    ("resise(3)", "there is no 'resise'. Did you mean 'resize'?"),
    ("zzz", "there is no 'zzz'. There are: resize, joined."),
    (f"joined(w={DEEP})", "has over 20 brackets in each other"),
    ("joined(" + "-" * 90_000 + "1)", "cannot be read"),
    ("joined(" + "1+" * 40_000 + "1)", "cannot be read"),
    ("x" * 100_001, "must be text of up to 100000 characters"),
    ("resize(" + "9" * 5000 + ")", "cannot be read"),
    ("resize(0x" + "f" * 90_000 + ")", "size must be"),
    ("resize(3\0)", "cannot be read"),
    ("resize('\ud800')", "cannot be read"),
    (3, "3 must be text"),
    ("resize(3).real", "cannot be read"),
    ("resize[3]", "cannot be read"),
    ("resize(3) for x in y", "cannot be read"),
    ("joined('unclosed|resize(3)", "cannot be read"),
    ("joined('\\ud800')", "names must be text in quotes, not '\\ud800'"),
    ("resize(1 | 2)", "size must be"),
    ("resize(**{}, **{})", "is given 2 times"),
    ("joined(**{'a': [1]})", "keywords must be strings"),
    ("joined(*['a'])", "names must be text in quotes, not *['a']"),
  ],
  ids=itertools.count(),
)
def test_what_cannot_be_read_is_one_sentence(text, message):
  with pytest.raises(UserError) as caught:
    read(text)
  assert str(caught.value).startswith("field: ")
  assert message in str(caught.value)
  assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
  "text", ["-" * 99_000, "9" * 5000, DEEP, "\0", "a", "f(1)", "[" * 9], ids=itertools.count()
)
def test_a_literal_that_cannot_be_read_is_a_value_error(text):
  with pytest.raises(ValueError, match=r"literal|brackets"):
    call_syntax.literal(text)
