"""How is the next token chosen? Reads config.decode and evals.*.decode, such as "beam(3)"."""

import ast
from typing import NamedTuple

from pgjax.errors import UserError

_SYNTAX = {
  "greedy": "greedy",
  "temperature": "temperature(t)",
  "top_k": "top_k(k, t=1.0)",
  "nucleus": "nucleus(p, t=1.0)",
  "best_of": "best_of(n, nucleus(0.9)) or another way to sample",
  "beam": "beam(n, length_penalty=0.0)",
}


class Method(NamedTuple):
  """One way to decode.

  `branches` continuations of a prompt are made side by side, and the best is the answer: by the
  sum of its log-probabilities, in a beam search divided by length ** length_penalty.
  """

  kind: str = "greedy"  # "greedy", "sample" or "beam".
  temperature: float = 1.0
  top_k: int = 0  # Only so many tokens may be drawn; 0: all.
  top_p: float = 1.0  # Only the likeliest that hold this probability may be drawn.
  branches: int = 1
  length_penalty: float = 0.0


GREEDY = Method()


def parse(text: str, where: str = "decode") -> Method:
  """The method that `text` names; raises UserError about `where`."""
  try:
    return _method(ast.parse(text.strip(), mode="eval").body)
  except (SyntaxError, ValueError, TypeError, AttributeError) as error:
    reason = f" ({error})" if type(error) is ValueError else ""
    ways = ", ".join(_SYNTAX.values())
    raise UserError(f"{where}={text!r} is no way to decode{reason}; there are: {ways}.") from None


def _method(node: ast.expr) -> Method:
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  name = call.func.id
  if name not in _MAKE:
    raise ValueError(f"{name!r} is none of them")
  inner = name == "best_of"
  args = [
    _method(arg) if inner and i == 1 else ast.literal_eval(arg) for i, arg in enumerate(call.args)
  ]
  fields = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
  try:
    return _MAKE[name](*args, **fields)
  except TypeError:
    raise ValueError(f"write {_SYNTAX[name]}") from None


def _sample(t=1.0, **fields) -> Method:
  return Method("sample", temperature=_number("t", t, above=0), **fields)


def _top_k(k, t=1.0) -> Method:
  return _sample(t, top_k=_count("k", k, 1))


def _nucleus(p, t=1.0) -> Method:
  if _number("p", p, above=0) > 1:
    raise ValueError(f"p={p!r} must be at most 1")
  return _sample(t, top_p=float(p))


def _best_of(n, sampler) -> Method:
  if not isinstance(sampler, Method) or sampler.kind != "sample" or sampler.branches > 1:
    raise ValueError("best_of chooses among samples: temperature(t), top_k(k) or nucleus(p)")
  return sampler._replace(branches=_count("n", n, 1))


def _beam(n, length_penalty=0.0) -> Method:
  if _number("length_penalty", length_penalty) < 0:
    raise ValueError(f"length_penalty={length_penalty!r} must be at least 0")
  return Method("beam", branches=_count("n", n, 1), length_penalty=float(length_penalty))


def _number(name, value, above=None) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"{name}={value!r} must be a number")
  if above is not None and not above < value < float("inf"):
    raise ValueError(f"{name}={value!r} must be a number above {above}")
  return float(value)


def _count(name, value, least) -> int:
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise ValueError(f"{name}={value!r} must be a whole number from {least} on")
  return value


_MAKE = {
  "greedy": lambda: GREEDY,
  "temperature": _sample,
  "top_k": _top_k,
  "nucleus": _nucleus,
  "best_of": _best_of,
  "beam": _beam,
}
