"""How is a string of config.model_init read?

`CKPT`, `CKPT:img` for a part of it, or `ckpt("CKPT", ...)` with the choices that a command has as
flags: the base of an adapter, one of several sets of weights in a folder.
"""

from typing import Annotated, NamedTuple

from pgjax import call_syntax
from pgjax.call_syntax import Between

_TEXT = Annotated[str, Between(1, 4096)]


class Spec(NamedTuple):
  """A checkpoint to start from."""

  name: str
  part: str = ""  # Of the model, such as "img"; empty: the whole.
  base: str | None = None  # The base of an adapter, if not the one that its folder names.
  weights: str | None = None  # Which set of weights of a Hugging Face folder.
  step: int | None = None  # Of a workdir; None: the newest.


def _ckpt(
  name: _TEXT,
  base: _TEXT | None = None,
  weights: _TEXT | None = None,
  step: Annotated[int, Between(0, 2**31 - 1)] | None = None,
  part: str = "",
) -> Spec:
  return Spec(name, part, base, weights, step)


def parse(text: str, where: str = "config.model_init") -> Spec:
  """Reads one string; a path may contain colons."""
  if text.lstrip().startswith("ckpt("):
    return call_syntax.parse_one(text, {"ckpt": _ckpt}, where)()
  name, _, part = text.rpartition(":")
  whole = not name or "/" in part or part.endswith(".npz")
  return Spec(text) if whole else Spec(name, part)
