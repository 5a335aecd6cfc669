"""Which ids does a text become, and which text do ids become?

A SentencePiece model with Gemma's conventions: pad 0, eos 1, bos 2, unk 3; no dummy leading space;
a newline is one piece. PaliGemma adds 1,024 location pieces and 128 segmentation pieces, which are
matched inside any text: "<loc0512>" is one id. They are appended to a plain Gemma model (ids
256,000 to 257,151), and unchanged in a PaliGemma model, which has them.

Words that a user added to the vocabulary are pieces too (added_tokens.py, tokenizer_folder.py).

"tiny" is a model of 640 base pieces in this package, for small models without a download, made by
benchmarks/make_tiny_tokenizer.py; its bytes are fixed.
"""

import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable

from pgjax.data import added_tokens, sentencepiece_model, tokenizer_folder
from pgjax.data.sentencepiece_model import (
  BOS,
  EOS,
  IMAGE,
  LOC_TOKENS,
  PAD,
  SEG_TOKENS,
  TINY,
  UNK,
  WHERE_FROM,
  Piece,
  refused,
)
from pgjax.errors import UserError

__all__ = [
  "BOS", "EOS", "IMAGE", "LOC_TOKENS", "PAD", "SEG_TOKENS", "TINY", "UNK", "WHERE_FROM", "Piece",
  "Tokenizer", "load",
]  # fmt: skip


class Tokenizer:
  """Encodes without bos or eos, which prefix_lm.py adds.

  `source` is the bytes of a SentencePiece model, which are saved with a checkpoint; `path` is for
  messages and records. `vocab_size` includes the location and segmentation pieces and added words.
  `image` is the id of Hugging Face's <image>, if added words follow it.
  """

  pad, eos, bos = PAD, EOS, BOS

  def __init__(self, source: bytes, path: str):
    self.path = path
    self.source = source
    self.sha256 = hashlib.sha256(source).hexdigest()
    model = sentencepiece_model.parse(source, path)
    sentencepiece_model.add_tokensets(model)
    self._extended = model.SerializeToString()  # A tenth of the parsed model's memory.
    self._model = sentencepiece_model.processor(self._extended, path)
    self.vocab_size = self._model.vocab_size()
    self.added = sentencepiece_model.added_to(model)
    self._split = None
    if self.added:
      raw = {token.id for token in self.added.values() if not token.normalized}
      pieces = enumerate(sentencepiece_model.pieces_of(model))
      plain = {p.text: i for i, p in pieces if p.kind == "user_defined" and i not in raw}
      self._split = added_tokens.splitter(self.added, plain)
    if len(newline := self.encode("\n")) != 1:
      reason = f"a newline, which ends PaliGemma's prompts, becomes {len(newline)} tokens, not one"
      raise refused(path, f"is not a Gemma tokenizer: {reason}")
    self.newline = newline[0]
    image = self._model.piece_to_id(IMAGE)
    self.image = image if self._model.is_control(image) else None

  def __reduce__(self):
    """Pickles the bytes of the file, for worker processes."""
    return Tokenizer, (self.source, self.path)

  def encode(self, text: str) -> list[int]:
    """Ids of the text, without bos and eos; raises UserError for half of a surrogate pair."""
    try:
      parts = self._split(text) if self._split else [text]
      return [i for p in parts for i in ([p] if isinstance(p, int) else self._model.encode(p))]
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
    model = sentencepiece_model.parse(self._extended, self.path)
    if odd := sentencepiece_model.beyond_gemma(model):
      reason = f"differs from Gemma's in {', '.join(odd)}, which other formats do not have"
      raise refused(self.path, reason)
    return sentencepiece_model.pieces_of(model)

  def words(self) -> list[Piece]:
    """All pieces of any model."""
    return sentencepiece_model.pieces_of(sentencepiece_model.parse(self._extended, self.path))

  def model_file(self) -> bytes:
    """A tokenizer.model with every piece, for other programs: `source`, if that has them."""
    model = sentencepiece_model.parse(self._extended, self.path)
    if sentencepiece_model.parse(self.source, self.path).pieces == model.pieces:
      return self.source
    sentencepiece_model.list_user_defined(model)
    return model.SerializeToString()


@functools.lru_cache(maxsize=4)
def load(name_or_path: str) -> Tokenizer:
  """Loads "tiny", a tokenizer.model or tokenizer.json, or a folder with one.

  Files are looked for here, then in $PGJAX_WEIGHTS_DIR.
  """
  if name_or_path == "tiny":
    return Tokenizer(TINY.read_bytes(), "tiny")
  path = pathlib.Path(os.path.expanduser(name_or_path))
  if not path.exists() and not path.is_absolute():
    beside = pathlib.Path(os.environ.get("PGJAX_WEIGHTS_DIR", "")).expanduser() / path
    path = beside if beside.exists() else path
  if path.is_dir():
    source = tokenizer_folder.source_of(path)
    if source is None:
      files = f"{tokenizer_folder.MODEL} and no {tokenizer_folder.JSON}"
      raise refused(name_or_path, f"is a folder with no {files}")
  elif path.suffix == ".json":
    source = tokenizer_folder.source_of_json(path)
  else:
    source = sentencepiece_model.read_file(path, name_or_path)
  return Tokenizer(source, str(name_or_path))


def _check_characters(text: str | bytes) -> None:
  try:
    text.encode() if isinstance(text, str) else text.decode()
  except UnicodeError as error:
    raise UserError(
      f"character {error.start + 1} of the text {text[:60]!a} is not Unicode text, such as half"
      " of a surrogate pair of an emoji that another program cut in two; remove it"
    ) from None
