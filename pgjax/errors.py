"""The exception for mistakes that a user can correct; any other exception is a bug of pgjax."""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class UserError(ValueError):
  """A mistake in a config, a file or a command line, in one sentence.

  It states what is wrong, the value, what is allowed and what to do. The commands print it without
  a stack trace and exit with status 1 (pgjax/cli.py).
  """

  in_all_processes = False  # Whether all processes of a run raise at the same step.


def did_you_mean(word: object, options: Iterable[str]) -> str:
  """` Did you mean 'text_len'?`; if no option is close, lists all of them, up to 30."""
  options = list(options)
  close = difflib.get_close_matches(str(word)[:100], options, 1, 0.5)
  if close:
    return f" Did you mean {close[0]!r}?"
  return f" There are: {', '.join(options)}." if 0 < len(options) <= 30 else ""


def not_finite(what: str, value: float) -> UserError:
  """For an output of a model that is NaN or infinite; `what` names it."""
  return UserError(
    f"{what} is {value}: the outputs of the model are not finite numbers. Its weights may be"
    " damaged, their training may have diverged, or float16 is too narrow for them."
  )


def cut(text: str) -> str:
  """The text, shortened to 80 characters for a message."""
  return text if len(text) <= 80 else text[:77] + "..."


@contextlib.contextmanager
def naming(where: Any) -> Iterator[None]:
  """Prefixes every UserError raised inside with `where`, such as a file, if it has not begun so."""
  try:
    yield
  except UserError as error:
    if str(error).startswith(str(where)):
      raise
    raise type(error)(f"{where}: {error}") from error


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str, escape: Callable[[str], str] = lambda c: ascii(c)[1:-1]) -> str:
  r"""The text with control characters written as \x1b or \u202e; newlines and tabs are kept.

  A terminal would obey them: move the cursor, change the title, reverse the order of letters.
  """
  return _CONTROLS.sub(lambda match: escape(match[0]), text)
