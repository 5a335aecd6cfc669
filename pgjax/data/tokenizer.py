"""Which ids does a text become, and which text do ids become?

A SentencePiece model with Gemma's conventions: pad 0, eos 1, bos 2, unk 3; no dummy leading space;
a newline is one piece. PaliGemma adds 1,024 location pieces and 128 segmentation pieces, which are
matched inside any text: "<loc0512>" is one id. They are appended to a plain Gemma model (ids
256,000 to 257,151 there) and left where they are in a PaliGemma model that has them already.

"tiny" is a model of 640 base pieces that comes with the package, for small models without a
download. It was made by benchmarks/make_tiny_tokenizer.py; its bytes are fixed.

Packing tokens and masks into the arrays of a batch is in data/prefix_lm.py, not here.
"""

import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

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
  """Encodes without bos or eos; adding those is the packing's business.

  Attributes:
    path: the name or file it was loaded from.
    source: bytes of that file as it was found, to be kept with a checkpoint.
    sha256: of `source`.
    vocab_size: with the location and segmentation pieces.
    newline: the id of "\\n".
  """

  pad, eos, bos = PAD, EOS, BOS

  def __init__(self, source: bytes, path: str):
    """Takes the bytes of a SentencePiece model; `path` is only for messages and records."""
    self.path = path
    self.source = source
    self.sha256 = hashlib.sha256(source).hexdigest()
    self._proto = _with_tokensets(source, path)
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=self._proto)
    except RuntimeError as error:
      raise UserError(
        f"Tokenizer '{path}' is a damaged SentencePiece model ({error}); {WHERE_FROM}."
      ) from None
    self.vocab_size = self._model.vocab_size()
    ids = [getattr(self._model, f"{name}_id")() for name in ("pad", "eos", "bos", "unk")]
    if ids != [PAD, EOS, BOS, UNK]:
      raise UserError(
        f"Tokenizer '{path}' is not a Gemma tokenizer: its ids of pad, eos, bos, unk are {ids}, "
        f"Gemma's are {[PAD, EOS, BOS, UNK]}; {WHERE_FROM}."
      )
    newline = self.encode("\n")
    if len(newline) != 1:
      raise UserError(
        f"Tokenizer '{path}' is not a Gemma tokenizer: a newline alone, which PaliGemma puts "
        f"between prompt and answer, becomes {len(newline)} tokens, not one; {WHERE_FROM}."
      )
    self.newline = newline[0]

  def __reduce__(self):
    """Worker processes get the bytes of the file, not the loaded model."""
    return Tokenizer, (self.source, self.path)

  def encode(self, text: str) -> list[int]:
    """Ids of the text alone: no bos, no eos."""
    return self._model.encode(text)

  def decode(self, ids: Iterable[int]) -> str:
    """Text before the first eos; pad and bos vanish, ids beyond the vocabulary read as unknown."""
    kept = []
    for token in ids:
      if int(token) == EOS:
        break
      kept.append(int(token) if 0 <= int(token) < self.vocab_size else UNK)
    return self._model.decode(kept)

  def piece(self, token: int) -> str:
    """The piece as it stands in the model, for tables that show tokens one by one."""
    return self._model.id_to_piece(int(token)) if 0 <= token < self.vocab_size else "<beyond>"

  def pieces(self) -> list[Piece]:
    """All pieces in the order of their ids, for those who write them in another format.

    A model that does more to a text than BPE over it with "▁" for a space is refused.
    """
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
      raise UserError(
        f"Tokenizer '{self.path}' differs from Gemma's in {', '.join(odd)}, which is not written in"
        f" other formats; {WHERE_FROM}."
      )
    kinds = model.SentencePiece.Type
    return [Piece(p.piece, p.score, kinds.Name(p.type).lower()) for p in model.pieces]


@functools.lru_cache(maxsize=4)
def load(name_or_path: str) -> Tokenizer:
  """Loads "tiny", a tokenizer.model file (here or in $PGJAX_WEIGHTS_DIR), or a folder with one."""
  if name_or_path == "tiny":
    return Tokenizer(TINY.read_bytes(), "tiny")
  path = pathlib.Path(os.path.expanduser(name_or_path))
  if not path.exists() and not path.is_absolute():  # It may lie beside the weights.
    beside = pathlib.Path(os.environ.get("PGJAX_WEIGHTS_DIR", "")).expanduser() / path
    path = beside if beside.exists() else path
  if path.is_dir():
    path = path / "tokenizer.model"
  try:
    source = path.read_bytes()
  except OSError as error:
    reason = error.strerror or error
    raise UserError(
      f"Tokenizer '{name_or_path}' cannot be read ({reason}); {WHERE_FROM}."
    ) from None
  return Tokenizer(source, str(name_or_path))


def _with_tokensets(source: bytes, path: str) -> bytes:
  """The model with every location and segmentation piece as a user-defined piece.

  Same result as big_vision's tokensets: a piece that exists keeps its id, the others are appended,
  locations first.
  """
  model = sentencepiece_model_pb2.ModelProto()
  try:
    model.ParseFromString(source)  # A piece that is not UTF-8 is read as bytes.
    present = {piece.piece: piece for piece in model.pieces if piece.piece.startswith("<")}
  except Exception:  # protobuf's DecodeError has no stable place to import it from.
    present = None
  if present is None or not model.pieces:
    raise UserError(
      f"Tokenizer '{path}' is not a SentencePiece model ({len(source)} bytes; a tokenizer.json or "
      f"a git-lfs pointer is not one); {WHERE_FROM}."
    )
  user_defined = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
  for name in LOC_TOKENS + SEG_TOKENS:
    piece = present.get(name) or model.pieces.add()
    piece.piece, piece.score, piece.type = name, 0.0, user_defined
  return model.SerializeToString()
