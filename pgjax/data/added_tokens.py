"""Tokens that a user added to a vocabulary: where does a text contain them?

Hugging Face's `tokenizers` finds them before it tokenizes the rest: those that are not `normalized`
in the text as it is, then all others in the text with "▁" for spaces; the leftmost first, of those
the longest. `lstrip` and `rstrip` take the white space beside them, `single_word` skips matches
inside words. SentencePiece's user-defined pieces do the same without these rules, so that this
module is needed only for tokens with one of them.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

import msgspec

from pgjax.formats import typed_json

_FIELD = 20_251  # Of the extension, in the range that sentencepiece_model.proto leaves free.
# What \s is in the regular expressions of `tokenizers`; Python's has four more.
_SPACES = (
  "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
)
_SPACES += "\u2028\u2029\u202f\u205f\u3000"


class AddedToken(msgspec.Struct, frozen=True):
  """A token that is matched in text, with the fields of `tokenizers`."""

  id: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
  content: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
  single_word: bool = False
  lstrip: bool = False
  rstrip: bool = False
  normalized: bool = True
  special: bool = False

  @property
  def has_rules(self) -> bool:
    """Whether its match depends on its neighbours."""
    return self.single_word or self.lstrip or self.rstrip


def escaped(text: str) -> str:
  """The text as in pieces, "▁" for a space."""
  return text.replace(" ", "▁")


def packed(tokens: Iterable[AddedToken]) -> bytes:
  """One field of a protobuf message; empty without tokens."""
  tokens = sorted(tokens, key=lambda token: token.id)
  if not tokens:
    return b""
  data = json.dumps([msgspec.to_builtins(token) for token in tokens]).encode()
  return _varint(_FIELD << 3 | 2) + _varint(len(data)) + data


def unpacked(message: bytes) -> list[AddedToken]:
  """The tokens of the last such field in a message; [] if there is none."""
  found = [data for number, data in _fields(message) if number == _FIELD]
  return typed_json.decode(found[-1], list[AddedToken], "tokenizer.model") if found else []


def _varint(value: int) -> bytes:
  low, value = value & 0x7F, value >> 7
  return bytes([low | 0x80]) + _varint(value) if value else bytes([low])


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
  """(number, content) of the fields of a valid message that have a length."""
  at = 0

  def varint():
    nonlocal at
    value = shift = 0
    while True:
      byte, at = message[at], at + 1
      value |= (byte & 0x7F) << shift
      shift += 7
      if byte < 0x80:
        return value

  while at < len(message):
    number, kind = divmod(varint(), 8)
    if kind == 0:
      varint()
    elif kind == 2:
      size = varint()
      yield number, message[at : at + size]
      at += size
    else:
      at += {1: 8, 5: 4}.get(kind, len(message))


def splitter(
  tokens: Mapping[int, AddedToken], plain: Mapping[str, int]
) -> Callable[[str], Iterator[int | str]] | None:
  """Cuts a text into ids of added tokens and the texts between them; None if nothing is to do.

  plain: {text: id} of the model's user-defined pieces, which compete with normalized tokens.
  """
  raw = {token.content: token for token in tokens.values() if not token.normalized}
  normal = {escaped(token.content): token for token in tokens.values() if token.normalized}
  first = second = None
  if raw:
    first = _Matcher(raw)
  if any(token.has_rules for token in normal.values()):
    others = {text: AddedToken(i, text) for text, i in plain.items() if text not in normal}
    second = _Matcher(others | normal)
  if not first and not second:
    return None

  def split(text: str) -> Iterator[int | str]:
    for part in first(text) if first else [text]:
      if isinstance(part, int) or not second:
        yield part
      else:
        yield from second(escaped(part))

  return split


class _Matcher:
  """Finds tokens in one pass over a text, the leftmost first and of those the longest."""

  def __init__(self, tokens: Mapping[str, AddedToken]):
    self._tokens = tokens
    longest_first = sorted(tokens, key=len, reverse=True)
    self._pattern: Any = re.compile("|".join(map(re.escape, longest_first)))

  def __call__(self, text: str) -> Iterator[int | str]:
    done = 0
    for match in self._pattern.finditer(text):
      token, (start, stop) = self._tokens[match[0]], match.span()
      if token.single_word and _inside_a_word(text, start, stop):
        continue
      if token.lstrip:
        while start > done and text[start - 1] in _SPACES:
          start -= 1
      while token.rstrip and stop < len(text) and text[stop] in _SPACES:
        stop += 1
      if done < start:
        yield text[done:start]
      yield token.id
      done = stop
    if done < len(text):
      yield text[done:]


def _inside_a_word(text: str, start: int, stop: int) -> bool:
  return any(_of_a_word(c) for c in text[max(start - 1, 0) : start] + text[stop : stop + 1])


def _of_a_word(character: str) -> bool:
  r"""Whether it is a \w of `tokenizers`, which counts marks and joiners too."""
  kind = unicodedata.category(character)
  return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in "\u200c\u200d"
