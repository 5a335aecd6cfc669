"""The tokenizer of a Hugging Face folder, from up to four files, as one SentencePiece model.

tokenizer.model has the vocabulary without added tokens, tokenizer.json has both (transformers 5
writes only this one), added_tokens.json and tokenizer_config.json list added tokens. Two files that
disagree are an error that names both.
"""

import pathlib
import re
from collections.abc import Mapping

import msgspec

from pgjax.data import sentencepiece_model, tokenizer_json
from pgjax.data.added_tokens import AddedToken, escaped
from pgjax.data.sentencepiece_model import IMAGE, LOC_TOKENS, SEG_TOKENS, UNK, refused
from pgjax.formats import typed_json

MODEL, JSON = "tokenizer.model", "tokenizer.json"
LISTED, CONFIG = "added_tokens.json", "tokenizer_config.json"
_RULES = ("single_word", "lstrip", "rstrip")


class _Entry(msgspec.Struct):
  """One entry of added_tokens_decoder; its key is the id."""

  content: str
  single_word: bool = False
  lstrip: bool = False
  rstrip: bool = False
  normalized: bool = True
  special: bool = False


class _Config(msgspec.Struct):
  added_tokens_decoder: dict[str, _Entry] | None = None


def source_of(folder: pathlib.Path) -> bytes | None:
  """The bytes of a SentencePiece model with all added tokens; None if the folder has no tokenizer.

  Those of tokenizer.model, unchanged, if no other file adds something to it.
  """
  described = tokenizer_json.read(folder / JSON)
  has_model = (path := folder / MODEL).exists()
  if not has_model and described is None:
    return None
  tokens, image = _agreed(folder, described)
  if has_model:
    source = sentencepiece_model.read_file(path)
    model = sentencepiece_model.parse(source, path)
    sentencepiece_model.add_tokensets(model)
    pieces = sentencepiece_model.pieces_of(model)
    if described:
      _check_same_words(pieces, described, folder)
    stored = sentencepiece_model.added_to(model)
    new = _new(tokens, pieces, folder)
    new = {i: token for i, token in new.items() if stored.get(i) != token}
    if not new:
      return source
  else:
    pieces = tokenizer_json.pieces(described, folder / JSON)
    model = sentencepiece_model.of_pieces(pieces, folder / JSON)
    with_rules = {i: token for i, token in tokens.items() if _needs_rules(token)}
    new = with_rules | _new(tokens, pieces, folder)
  follows = image is not None and len(pieces) <= image < max(new, default=-1)
  sentencepiece_model.add(model, new.values(), image if follows else None, path)
  return model.SerializeToString()


def source_of_json(path: pathlib.Path) -> bytes:
  """The bytes of a SentencePiece model, from one tokenizer.json."""
  described = tokenizer_json.read(path)
  if described is None:
    raise refused(path, "cannot be read (No such file or directory)")
  model = sentencepiece_model.of_pieces(tokenizer_json.pieces(described, path), path)
  tokens = [token for token in described.added_tokens if _needs_rules(token)]
  sentencepiece_model.add(model, tokens, None, path)
  return model.SerializeToString()


def _agreed(
  folder: pathlib.Path, described: tokenizer_json.Described | None
) -> tuple[dict[int, AddedToken], int | None]:
  """({id: added token} without Gemma's special ones, the id of <image>), from all files."""
  by_id: dict[int, tuple[str, AddedToken]] = {}
  by_content: dict[str, tuple[str, AddedToken]] = {}
  named = {JSON: described.added_tokens if described else [], CONFIG: _configured(folder)}
  for file, tokens in (named | {LISTED: _listed(folder)}).items():  # The last has no rules.
    for token in tokens:
      _check_agree(folder, file, token, by_id.setdefault(token.id, (file, token)))
      _check_agree(folder, file, token, by_content.setdefault(token.content, (file, token)))
  image = by_content[IMAGE][1].id if IMAGE in by_content else None
  ours = {i: token for i, (_, token) in by_id.items() if i > UNK and i != image}
  return ours, image


def _listed(folder: pathlib.Path) -> list[AddedToken]:
  """added_tokens.json: {text: id}."""
  if not (path := folder / LISTED).exists():
    return []
  ids = typed_json.decode(sentencepiece_model.read_file(path), dict[str, int], path)
  return typed_json.check([dict(id=i, content=t) for t, i in ids.items()], list[AddedToken], path)


def _configured(folder: pathlib.Path) -> list[AddedToken]:
  """tokenizer_config.json: added_tokens_decoder, if it has one."""
  if not (path := folder / CONFIG).exists():
    return []
  config = typed_json.decode(sentencepiece_model.read_file(path), _Config, path)
  entries = [
    msgspec.to_builtins(entry) | dict(id=int(i) if re.fullmatch("[0-9]{1,9}", i) else i)
    for i, entry in (config.added_tokens_decoder or {}).items()
  ]
  return typed_json.check(entries, list[AddedToken], path)


def _check_agree(
  folder: pathlib.Path, file: str, token: AddedToken, known: tuple[str, AddedToken]
) -> None:
  other, before = known
  if (token.id, token.content) != (before.id, before.content):
    raise _disagreement(
      folder,
      f"{other} gives {before.content!r} the id {before.id}, {file} gives {token.content!r} the id"
      f" {token.id}",
    )
  rules = [name for name in _RULES if getattr(token, name) != getattr(before, name)]
  if rules and file != LISTED:
    values = [str(getattr(t, rules[0])).lower() for t in (before, token)]
    raise _disagreement(
      folder,
      f"{rules[0]} of the added token {token.content!r} is {values[0]} in {other} and {values[1]}"
      f" in {file}",
    )


def _check_same_words(
  pieces: list[sentencepiece_model.Piece], described: tokenizer_json.Described, folder: pathlib.Path
) -> None:
  """tokenizer.model and tokenizer.json have the same words, except that both may lack boxes'."""
  vocab = described.model.vocab
  tab = {} if tokenizer_json.TAB in vocab else {"\t": tokenizer_json.TAB}
  ids = {tab.get(text, escaped(text)): i for text, i in vocab.items()}
  ids |= {escaped(token.content): token.id for token in described.added_tokens}
  boxes = {*LOC_TOKENS, *SEG_TOKENS}
  for i, (text, _, _) in enumerate(pieces):
    if ids.pop(text, None if text in boxes else -1) not in (i, None):
      raise _disagreement(folder, f"{MODEL} has {text!r} at id {i}, {JSON} does not")
  added = {escaped(token.content) for token in described.added_tokens}
  if more := sorted(ids.keys() - added - {IMAGE}):
    raise _disagreement(folder, f"{JSON} has {more[0]!r}, {MODEL} does not")


def _disagreement(folder: pathlib.Path, what: str) -> Exception:
  return refused(folder, f"has two files that disagree: {what}")


def _new(
  tokens: Mapping[int, AddedToken], pieces: list[sentencepiece_model.Piece], folder: pathlib.Path
) -> dict[int, AddedToken]:
  """The tokens that are no pieces, or are matched in another way than as pieces."""
  ids = {piece.text: i for i, piece in enumerate(pieces)}
  new = {}
  for i, token in tokens.items():
    text = escaped(token.content)
    what = f"the added token {token.content!r} has the id {i}, "
    if i < len(pieces) and pieces[i].text != text:
      raise _disagreement(folder, f"{what}which is {pieces[i].text!r} in the vocabulary")
    if ids.get(text, i) != i:
      raise _disagreement(folder, f"{what}and the id {ids[text]} in the vocabulary")
    if i >= len(pieces) or token.has_rules or pieces[i].kind in ("normal", "unused"):
      new[i] = token
  return new


def _needs_rules(token: AddedToken) -> bool:
  """Whether a user-defined piece is not enough; boxes' tokens overlap with no other."""
  if token.id <= UNK or token.content == IMAGE:
    return False
  odd = not token.normalized or token.special or " " in token.content
  return token.has_rules or (odd and token.content not in {*LOC_TOKENS, *SEG_TOKENS})
