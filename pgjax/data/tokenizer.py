"""Which ids does a text become, and which text do ids become?

A SentencePiece model with Gemma's conventions: pad 0, eos 1, bos 2, unk 3; no dummy leading space;
a newline is one piece. PaliGemma adds 1,024 location pieces and 128 segmentation pieces, which are
matched inside any text: "<loc0512>" is one id. They are appended to a plain Gemma model (ids
256,000 to 257,151), and unchanged in a PaliGemma model, which has them.

"tiny" is a model of 640 base pieces in this package, for small models without a download, made by
benchmarks/make_tiny_tokenizer.py; its bytes are fixed.
"""

import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from pgjax import input_files
from pgjax.errors import UserError

PAD, EOS, BOS, UNK = 0, 1, 2, 3
LOC_TOKENS = [f"<loc{i:04d}>" for i in range(1024)]
SEG_TOKENS = [f"<seg{i:03d}>" for i in range(128)]
TINY = pathlib.Path(__file__).with_name("tiny_tokenizer.model")
WHERE_FROM = (
  "a Gemma or PaliGemma tokenizer.model comes with the checkpoint (Kaggle google/paligemma-2, or "
  "the file tokenizer.model of a Hugging Face folder); tokenizer='tiny' is the small one that "
  "needs no download"
)


class Piece(NamedTuple):
  """One piece of a model: `kind` is normal, unknown, control, user_defined, unused or byte."""

  text: str
  score: float
  kind: str


class Tokenizer:
  """Encodes without bos or eos, which prefix_lm.py adds.

  `source` is the bytes of a SentencePiece model, which are saved with a checkpoint; `path` is for
  messages and records. `vocab_size` includes the location and segmentation pieces.
  """

  pad, eos, bos = PAD, EOS, BOS

  def __init__(self, source: bytes, path: str):
    self.path = path
    self.source = source
    self.sha256 = hashlib.sha256(source).hexdigest()
    self._proto = _with_tokensets(source, path)
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=self._proto)
    except RuntimeError as error:
      raise _refused(path, f"is a damaged SentencePiece model ({error})") from None
    self.vocab_size = self._model.vocab_size()
    ids = [getattr(self._model, f"{name}_id")() for name in ("pad", "eos", "bos", "unk")]
    if ids != [PAD, EOS, BOS, UNK]:
      reason = f"its ids of pad, eos, bos, unk are {ids}, Gemma's are {[PAD, EOS, BOS, UNK]}"
      raise _refused(path, f"is not a Gemma tokenizer: {reason}")
    if len(newline := self.encode("\n")) != 1:
      reason = f"a newline, which ends PaliGemma's prompts, becomes {len(newline)} tokens, not one"
      raise _refused(path, f"is not a Gemma tokenizer: {reason}")
    self.newline = newline[0]

  def __reduce__(self):
    """Pickles the bytes of the file, for worker processes."""
    return Tokenizer, (self.source, self.path)

  def encode(self, text: str) -> list[int]:
    """Ids of the text, without bos and eos; raises UserError for half of a surrogate pair."""
    try:
      return self._model.encode(text)
    except (RuntimeError, UnicodeEncodeError):
      _check_characters(text)
      raise

  def decode(self, ids: Iterable[int]) -> str:
    """Text before the first eos, without pad and bos; ids outside the vocabulary are unknown."""
    text = itertools.takewhile(lambda token: token != EOS, map(int, ids))
    return self._model.decode([t if 0 <= t < self.vocab_size else UNK for t in text])

  def piece(self, token: int) -> str:
    """The text of a token's piece in the model."""
    return self._model.id_to_piece(int(token)) if 0 <= token < self.vocab_size else "<beyond>"

  def pieces(self) -> list[Piece]:
    """All pieces, for export; raises if the model does more than BPE with "▁" for a space."""
    model = sentencepiece_model_pb2.ModelProto.FromString(self._proto)
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
    if odd := [name for name, (value, wanted) in plain.items() if value != wanted]:
      reason = f"differs from Gemma's in {', '.join(odd)}, which other formats do not have"
      raise _refused(self.path, reason)
    kinds = model.SentencePiece.Type
    return [Piece(p.piece, p.score, kinds.Name(p.type).lower()) for p in model.pieces]


@functools.lru_cache(maxsize=4)
def load(name_or_path: str) -> Tokenizer:
  """Loads "tiny", a tokenizer.model file (here or in $PGJAX_WEIGHTS_DIR), or a folder with one."""
  if name_or_path == "tiny":
    return Tokenizer(TINY.read_bytes(), "tiny")
  path = pathlib.Path(os.path.expanduser(name_or_path))
  if not path.exists() and not path.is_absolute():
    beside = pathlib.Path(os.environ.get("PGJAX_WEIGHTS_DIR", "")).expanduser() / path
    path = beside if beside.exists() else path
  if path.is_dir():
    path = path / "tokenizer.model"
  try:
    source = input_files.read(path)
  except OSError as error:
    raise _refused(name_or_path, f"cannot be read ({error.strerror or error})") from None
  return Tokenizer(source, str(name_or_path))


def _check_characters(text: str | bytes) -> None:
  try:
    text.encode() if isinstance(text, str) else text.decode()
  except UnicodeError as error:
    raise UserError(
      f"character {error.start + 1} of the text {text[:60]!a} is not Unicode text, such as half"
      " of a surrogate pair of an emoji that another program cut in two; remove it"
    ) from None


def _refused(path: str, reason: str) -> UserError:
  return UserError(f"Tokenizer '{path}' {reason}; {WHERE_FROM}.")


def _with_tokensets(source: bytes, path: str) -> bytes:
  """Adds each location and segmentation piece, appended unless it exists, as big_vision does."""
  model = sentencepiece_model_pb2.ModelProto()
  try:
    model.ParseFromString(source)  # A piece that is not UTF-8 is read as bytes.
    present = {piece.piece: piece for piece in model.pieces if piece.piece.startswith("<")}
  except Exception:  # protobuf's DecodeError has no stable place to import it from.
    present = None
  if present is None or not model.pieces:
    reason = f"{len(source)} bytes; a tokenizer.json or a git-lfs pointer is not one"
    raise _refused(path, f"is not a SentencePiece model ({reason})")
  user_defined = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
  for name in LOC_TOKENS + SEG_TOKENS:
    piece = present.get(name) or model.pieces.add()
    piece.piece, piece.score, piece.type = name, 0.0, user_defined
  return model.SerializeToString()
