"""The protobuf of a SentencePiece model: its pieces, read and changed.

The only door to the sentencepiece package. Added tokens with rules that SentencePiece lacks are
stored in the file as an extension of its trainer_spec, which other programs ignore.
"""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from pgjax.data import added_tokens
from pgjax.data.added_tokens import AddedToken
from pgjax.errors import UserError
from pgjax.formats import foreign, input_files

PAD, EOS, BOS, UNK = 0, 1, 2, 3
IMAGE = "<image>"  # Hugging Face's; a control piece where added tokens follow it.
LOC_TOKENS = [f"<loc{i:04d}>" for i in range(1024)]
SEG_TOKENS = [f"<seg{i:03d}>" for i in range(128)]
MAX_BYTES = 1 << 28  # Of a tokenizer's file; Gemma's have 4 MB (.model) and 34 MB (.json).
MAX_PIECES = 1 << 20
TINY = pathlib.Path(__file__).with_name("tiny_tokenizer.model")
WHERE_FROM = (
  "a Gemma or PaliGemma tokenizer comes with the checkpoint (Kaggle google/paligemma-2, or"
  " tokenizer.model or tokenizer.json of a Hugging Face folder); tokenizer='tiny' is the small one"
  " that needs no download"
)
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
_KIND = sentencepiece_model_pb2.ModelProto.SentencePiece.Type


class Piece(NamedTuple):
  """One piece of a model: `kind` is normal, unknown, control, user_defined, unused or byte."""

  text: str
  score: float
  kind: str


def refused(path: Any, reason: str) -> UserError:
  """The error about a tokenizer that cannot be used."""
  return UserError(f"Tokenizer '{path}' {reason}; {WHERE_FROM}.")


def read_file(path: pathlib.Path, name: Any = None) -> bytes:
  """The content of a regular file of bounded size; `name` is for messages."""
  try:
    source = input_files.read(path, most=MAX_BYTES)
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise refused(name or path, f"cannot be read ({reason})") from None
  foreign.check_pointer(path)
  return source


def parse(source: bytes, path: Any) -> Any:
  """The ModelProto of a file's content."""
  model = sentencepiece_model_pb2.ModelProto()
  try:
    model.ParseFromString(source)  # A piece that is not UTF-8 is read as bytes.
    readable = all(isinstance(piece.piece, str) for piece in model.pieces)
  except Exception:  # protobuf's DecodeError has no stable place to import it from.
    readable = False
  if not readable or not model.pieces:
    reason = f"{len(source)} bytes; a git-lfs pointer is not one"
    raise refused(path, f"is not a SentencePiece model ({reason})")
  return model


def processor(model: bytes, path: Any) -> sentencepiece.SentencePieceProcessor:
  """The tokenizer of a serialized model; raises unless it has Gemma's special pieces."""
  try:
    made = sentencepiece.SentencePieceProcessor(model_proto=model)
  except RuntimeError as error:
    raise refused(path, f"is a damaged SentencePiece model ({error})") from None
  ids = [getattr(made, f"{name}_id")() for name in ("pad", "eos", "bos", "unk")]
  if ids != [PAD, EOS, BOS, UNK]:
    reason = f"its ids of pad, eos, bos, unk are {ids}, Gemma's are {[PAD, EOS, BOS, UNK]}"
    raise refused(path, f"is not a Gemma tokenizer: {reason}")
  return made


def add_tokensets(model: Any) -> None:
  """Adds each location and segmentation piece, appended unless it exists, as big_vision does."""
  present = {piece.piece: piece for piece in model.pieces if piece.piece.startswith("<")}
  for name in LOC_TOKENS + SEG_TOKENS:
    piece = present.get(name) or model.pieces.add()
    piece.piece, piece.score, piece.type = name, 0.0, _KIND.USER_DEFINED


def pieces_of(model: Any) -> list[Piece]:
  """All pieces."""
  return [Piece(p.piece, p.score, _KIND.Name(p.type).lower()) for p in model.pieces]


def beyond_gemma(model: Any) -> list[str]:
  """The settings in which a model does more than BPE with "▁" for a space."""
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  plain = dict(
    model_type=(trainer.model_type, trainer.BPE),
    byte_fallback=(trainer.byte_fallback, True),
    treat_whitespace_as_suffix=(trainer.treat_whitespace_as_suffix, False),
    precompiled_charsmap=(normalizer.precompiled_charsmap, b""),
    add_dummy_prefix=(normalizer.add_dummy_prefix, False),
    remove_extra_whitespaces=(normalizer.remove_extra_whitespaces, False),
    escape_whitespaces=(normalizer.escape_whitespaces, True),
  )
  return [name for name, (value, wanted) in plain.items() if value != wanted]


def of_pieces(pieces: Sequence[Piece], path: Any) -> Any:
  """A ModelProto with these pieces and Gemma's rules."""
  if (first := tuple(piece.text for piece in pieces[:4])) != _SPECIAL:
    reason = f"its first words are {', '.join(first)}, Gemma's are {', '.join(_SPECIAL)}"
    raise refused(path, f"is not a Gemma tokenizer: {reason}")
  model = parse(TINY.read_bytes(), "tiny")
  del model.pieces[:]
  for piece in pieces:
    kind = _KIND.Value(piece.kind.upper())
    model.pieces.add(piece=piece.text, score=piece.score, type=kind)
  model.trainer_spec.vocab_size = len(pieces)
  del model.trainer_spec.user_defined_symbols[:]
  return model


def list_user_defined(model: Any) -> None:
  """Fills trainer_spec.user_defined_symbols, from which transformers converts a model."""
  listed = set(model.trainer_spec.user_defined_symbols)
  names = [p.piece for p in model.pieces if p.type == _KIND.USER_DEFINED and p.piece not in listed]
  model.trainer_spec.user_defined_symbols.extend(names)


def added_to(model: Any) -> dict[int, AddedToken]:
  """{id: its rules} of the tokens that are more than user-defined pieces."""
  return {t.id: t for t in added_tokens.unpacked(model.trainer_spec.SerializeToString())}


def add(model: Any, tokens: Iterable[AddedToken], image: int | None, path: Any) -> None:
  """Puts added tokens at their ids: new pieces, or those of the model with the same text.

  image: the id of <image>, if tokens follow it. Ids between that no token has become unused pieces.
  """
  stored = added_to(model)
  by_id = {token.id: token for token in tokens}
  if image is not None:
    by_id[image] = AddedToken(image, IMAGE)
  if by_id and max(by_id) >= MAX_PIECES:
    raise refused(path, f"has the id {max(by_id):,}; the highest allowed is {MAX_PIECES - 1:,}")
  for i in range(len(model.pieces), max(by_id, default=-1) + 1):
    model.pieces.add(piece=f"<no token {i}>", score=0.0, type=_KIND.UNUSED)
  for i, token in by_id.items():
    piece = model.pieces[i]
    text = added_tokens.escaped(token.content)
    if token != AddedToken(i, text):
      stored[i] = token
    if token.single_word and piece.type == _KIND.NORMAL:
      continue  # Inside words it is made from its pairs, as before.
    piece.piece, piece.score = text, 0.0
    if i == image:
      piece.type = _KIND.CONTROL
    else:  # SentencePiece would match a user-defined piece inside words.
      piece.type = _KIND.UNUSED if token.single_word else _KIND.USER_DEFINED
  model.trainer_spec.DiscardUnknownFields()  # The tokens that were stored.
  model.trainer_spec.MergeFromString(added_tokens.packed(stored.values()))
