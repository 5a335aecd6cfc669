"""How is the next token chosen? Reads config.decode and evals.*.decode, such as "beam(3)"."""

from typing import Annotated, NamedTuple

from pgjax import call_syntax
from pgjax.call_syntax import Between
from pgjax.errors import UserError


class Method(NamedTuple):
  """A way to decode. The answer is the best of `branches` continuations of a prompt.

  Ranked by the sum of log-probabilities, in a beam search divided by length ** length_penalty.
  """

  kind: str = "greedy"  # "greedy", "sample" or "beam".
  temperature: float = 1.0
  top_k: int = 0  # Sample from the k likeliest tokens; 0: from all.
  top_p: float = 1.0  # Sample from the likeliest tokens with this total probability.
  branches: int = 1
  length_penalty: float = 0.0


GREEDY = Method()


def parse(text: str, where: str = "decode") -> Method:
  """The method that `text` names; `where` names the field in errors."""
  return call_syntax.parse_one(text, METHODS, where)()


_Temperature = Annotated[float, Between(1e-6, 1e6)]
_Branches = Annotated[int, Between(1, 1024)]


def _temperature(t: _Temperature = 1.0) -> Method:
  return Method("sample", float(t))


def _top_k(k: Annotated[int, Between(1, 1_000_000)], t: _Temperature = 1.0) -> Method:
  return Method("sample", float(t), top_k=k)


def _nucleus(p: Annotated[float, Between(0, 1, but_not=(0,))], t: _Temperature = 1.0) -> Method:
  return Method("sample", float(t), top_p=float(p))


def _best_of(n: _Branches, sampler: call_syntax.Nested) -> Method:
  if sampler.kind != "sample" or sampler.branches > 1:
    raise UserError("best_of chooses among samples: temperature(t), top_k(k) or nucleus(p).")
  return sampler._replace(branches=n)


def _beam(n: _Branches, length_penalty: Annotated[float, Between(0, 100)] = 0.0) -> Method:
  return Method("beam", branches=n, length_penalty=float(length_penalty))


METHODS = {
  "greedy": lambda: GREEDY,
  "temperature": _temperature,
  "top_k": _top_k,
  "nucleus": _nucleus,
  "best_of": _best_of,
  "beam": _beam,
}
