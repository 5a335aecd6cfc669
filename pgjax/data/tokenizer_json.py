"""tokenizer.json, as Hugging Face's `tokenizers` writes it -> the pieces of a SentencePiece model.

Both do the same BPE if each piece has one rank: tokenizer.json lists pairs, best first, and
SentencePiece joins the neighbours whose joint piece has the best score. So the order of the pairs
gives the scores, and a file whose pairs have no such order is refused, because its ids would
differ. Matching added tokens comes before; no pair can make one of them or use it.
"""

import collections
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from pgjax.data import sentencepiece_model
from pgjax.data.added_tokens import AddedToken, escaped
from pgjax.data.sentencepiece_model import IMAGE, MAX_PIECES, Piece, refused
from pgjax.formats import typed_json

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
TAB = "<0x09>"  # transformers writes this piece as "\t".
_SPACES = dict(type="Replace", pattern=dict(String=" "), content="▁")
_Id = Annotated[int, msgspec.Meta(ge=0, lt=MAX_PIECES)]


class _Bpe(msgspec.Struct):
  vocab: dict[str, _Id]
  merges: list[str | tuple[str, str]]
  type: str | None = "BPE"
  dropout: float | None = None
  byte_fallback: bool | None = False
  ignore_merges: bool | None = False
  continuing_subword_prefix: str | None = None
  end_of_word_suffix: str | None = None


class Described(msgspec.Struct):
  """The fields of tokenizer.json that decide ids."""

  model: _Bpe
  added_tokens: list[AddedToken] = []
  normalizer: dict[str, Any] | None = None
  pre_tokenizer: dict[str, Any] | None = None


def read(path: pathlib.Path) -> Described | None:
  """A tokenizer.json of Gemma's kind; None if there is none."""
  if not path.exists():
    return None
  described = typed_json.decode(sentencepiece_model.read_file(path), Described, path)
  model, steps = described.model, described.normalizer or {}
  if steps.get("type") == "Sequence" and len(steps.get("normalizers") or ()) == 1:
    [steps] = steps["normalizers"]
  cut = described.pre_tokenizer or {}
  differs = {
    "model.type": (model.type or "BPE") != "BPE",
    "model.byte_fallback": not model.byte_fallback,
    "model.ignore_merges": model.ignore_merges,
    "model.dropout": model.dropout,
    "model.continuing_subword_prefix": model.continuing_subword_prefix,
    "model.end_of_word_suffix": model.end_of_word_suffix,
    "normalizer": steps != _SPACES,
    # No space is left to cut at after the normalizer.
    "pre_tokenizer": cut and (cut.get("type"), cut.get("pattern")) != ("Split", {"String": " "}),
  }
  if odd := [name for name, value in differs.items() if value]:
    raise refused(path, f"is not a Gemma tokenizer: it differs in {', '.join(odd)}")
  _check_ids(described, path)
  return described


def _check_ids(described: Described, path: pathlib.Path) -> None:
  """Each id has one text and each added token one id."""
  vocab, seen = described.model.vocab, {}
  for text, i in [*vocab.items(), *((t.content, t.id) for t in described.added_tokens)]:
    if seen.setdefault(i, text) != text:
      raise refused(path, f"gives the id {i} to {seen[i]!r} and to {text!r}")
  ids = {}
  for token in described.added_tokens:
    known = ids.setdefault(token.content, vocab.get(token.content, token.id))
    if known != token.id:
      reason = f"gives {token.content!r} the ids {known} and {token.id}"
      raise refused(path, reason)


def image_of(described: Described) -> int | None:
  """The id of <image>, if it has one."""
  added = {token.content: token.id for token in described.added_tokens}
  return added.get(IMAGE, described.model.vocab.get(IMAGE))


def pieces(described: Described, path: pathlib.Path) -> list[Piece]:
  """The pieces of the vocabulary and of the added tokens; not <image> and what follows it only."""
  vocab = described.model.vocab
  texts = {i: text for text, i in vocab.items()}
  texts |= {token.id: token.content for token in described.added_tokens}
  added = {t.content for t in described.added_tokens if not t.single_word or t.content not in vocab}
  if image_of(described) == max(texts):
    del texts[image_of(described)]
  if holes := sorted(set(range(len(texts))) - texts.keys()):
    raise refused(path, f"has no word for the id {holes[0]} and words for higher ones")
  normal = {
    text for text in vocab if text not in added and not _BYTE.fullmatch(text) and text != IMAGE
  }
  tab = "\t" if TAB not in vocab else None
  scores = _scores(described.model.merges, normal, path)
  return [_piece(i, texts[i], tab, scores, added) for i in range(len(texts))]


def _piece(
  i: int, text: str, tab: str | None, scores: Mapping[str, float], added: Collection[str]
) -> Piece:
  if i == sentencepiece_model.UNK:
    return Piece(text, 0.0, "unknown")
  if i in (sentencepiece_model.PAD, sentencepiece_model.EOS, sentencepiece_model.BOS):
    return Piece(text, 0.0, "control")
  if text == IMAGE:
    return Piece(text, 0.0, "control")
  if text in added:
    return Piece(escaped(text), 0.0, "user_defined")
  if text == tab:
    return Piece(TAB, 0.0, "byte")
  if _BYTE.fullmatch(text):
    return Piece(text, 0.0, "byte")
  # SentencePiece joins characters that are no pieces; `tokenizers` never makes these words.
  return Piece(text, scores[text], "normal") if text in scores else Piece(text, 0.0, "unused")


def _scores(
  merges: Sequence[str | tuple[str, str]], normal: set[str], path: pathlib.Path
) -> dict[str, float]:
  """{word that BPE can make: its score}: minus the place of its pairs, then characters."""
  listed = collections.Counter()
  order: dict[str, int] = {}
  last = None
  for pair in merges:
    left, _, right = pair.partition(" ") if isinstance(pair, str) else (pair[0], "", pair[1])
    word = left + right
    if word not in normal or left not in normal or right not in normal:
      continue  # An added token, which is matched before.
    listed[word] += 1
    if word != last and word in order:
      raise refused(path, f"lists the pairs of {word!r} at two places of model.merges")
    order.setdefault(word, len(order))
    last = word
  characters = [text for text in normal if len(text) == 1]
  _check_complete(order, listed, characters, path)
  scores = {word: -float(place) for word, place in order.items()}
  return scores | {text: -float(len(order) + i) for i, text in enumerate(sorted(characters))}


def _check_complete(
  order: Mapping[str, int], listed: Mapping[str, int], characters: Sequence[str], path: pathlib.Path
) -> None:
  """Every way to cut a word into two words must be a pair: SentencePiece takes them all."""
  known = {*order, *characters}
  for word in order:
    cuts = sum(word[:i] in known and word[i:] in known for i in range(1, len(word)))
    if cuts > listed[word]:
      raise refused(
        path, f"lacks pairs of {word!r} in model.merges: it has {listed[word]}, not {cuts}"
      )
