"""Writes the processor files of a Hugging Face folder from the bytes of a SentencePiece model.

`AutoProcessor` then has the ids of data/tokenizer.py and data/prefix_lm.py, without a network:

- Merges. SentencePiece joins the neighbours whose joint piece has the best score; tokenizer.json
  lists pairs, best first. So each way to cut a normal piece into two pieces is a pair.
- User-defined pieces (newlines, runs of spaces, <locNNNN>) match before any merging, the longest
  first, in text whose spaces are "▁" already: added tokens with `normalized`. They do not merge;
  control and byte pieces do not either.
- Words that a user added keep the rules they came with (data/added_tokens.py).
- Control pieces are added tokens that match in text, unlike in SentencePiece, because the processor
  tokenizes "<image><image>...<bos>prompt\n". So a prompt with <pad>, <eos>, <bos>, <unk> or <image>
  gets other ids than here, and so does one that ends in a newline if "\n\n" is a piece.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pgjax.data import tokenizer
from pgjax.data.added_tokens import AddedToken
from pgjax.data.tokenizer import IMAGE
from pgjax.errors import UserError
from pgjax.huggingface.image_config import Images

_METHODS = ("bilinear", "bicubic")
_SPECIAL = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
_FOREVER = 10**30  # transformers' own number for "no limit".


def processor_files(
  tokenizer_source: bytes,
  *,
  res: int,
  patch_size: int = 14,
  image_token_id: int | None = None,
  method: str = "bicubic",
  values: tuple[float, float] = (-1.0, 1.0),
) -> dict[str, bytes]:
  """File name -> content, for `AutoProcessor.from_pretrained` of transformers 4.57 and 5.

  Args:
    tokenizer_source: a Gemma or PaliGemma tokenizer.model; tokenizer.model gets it with all
      pieces, for programs that do not append those of locations and segments.
    res: side length of an image in pixels.
    patch_size: an image has (res / patch_size)^2 <image> tokens.
    image_token_id: of <image>; None: the tokenizer's, or the first id after its vocabulary.
    method: how images are resized, "bicubic" as on the hub, or "bilinear"; antialiased, by Pillow.
    values: what black and white become.
  """
  if method not in _METHODS:
    raise UserError(f"method={method!r} must be one of {', '.join(_METHODS)}.")
  if not values[0] < values[1]:
    raise UserError(f"values={values} must increase, from that of black to that of white.")
  if res % patch_size:
    raise UserError(f"res={res} is no multiple of the patch size {patch_size}.")
  named = tokenizer.Tokenizer(tokenizer_source, "tokenizer.model")
  own = named.vocab_size if named.image is None else named.image
  image_token_id = own if image_token_id is None else image_token_id
  if named.image not in (None, image_token_id):
    raise UserError(
      f"image_token_id={image_token_id} must be {named.image}, where the tokenizer has <image>."
    )
  if image_token_id < named.vocab_size and named.image is None:
    raise UserError(
      f"image_token_id={image_token_id} is the piece {named.piece(image_token_id)!r} of the"
      f" tokenizer; it must be {named.vocab_size} or more."
    )
  pieces = named.pieces()
  files = {
    "preprocessor_config.json": _image_config(res, patch_size, Images(method, *values)),
    "special_tokens_map.json": dict(_SPECIAL, additional_special_tokens=[IMAGE]),
    "tokenizer.json": tokenizer_json(pieces, image_token_id, named.added),
    "tokenizer_config.json": _tokenizer_config(pieces),
  }
  encoded = {name: json.dumps(value, ensure_ascii=False).encode() for name, value in files.items()}
  return encoded | {"tokenizer.model": named.model_file()}


def tokenizer_json(
  pieces: Sequence[tokenizer.Piece], image_token_id: int, added: Mapping[int, AddedToken]
) -> dict[str, Any]:
  """tokenizer.json of the `tokenizers` library: BPE over the text, bytes for unknown characters.

  added: {id: rules} of pieces that are more than user-defined.
  """
  vocab = {added[i].content if i in added else p.text: i for i, p in enumerate(pieces)}
  tokens = {
    i: added.get(i) or _added_token(i, piece.text, special=piece.kind != "user_defined")
    for i, piece in enumerate(pieces)
    if i in added or piece.kind in ("control", "unknown", "user_defined")
  }
  tokens[image_token_id] = _added_token(image_token_id, IMAGE, special=True)
  spaces = dict(type="Replace", pattern=dict(String="▁"), content=" ")
  return dict(
    version="1.0",
    truncation=None,
    padding=None,
    added_tokens=[msgspec.to_builtins(tokens[i]) for i in sorted(tokens)],
    normalizer=dict(type="Replace", pattern=dict(String=" "), content="▁"),
    pre_tokenizer=None,
    post_processor=_begins_with(tokenizer.BOS, "<bos>"),
    decoder=dict(type="Sequence", decoders=[spaces, dict(type="ByteFallback"), dict(type="Fuse")]),
    model=dict(
      type="BPE",
      dropout=None,
      unk_token="<unk>",
      continuing_subword_prefix=None,
      end_of_word_suffix=None,
      fuse_unk=True,
      byte_fallback=True,
      ignore_merges=False,
      vocab=vocab | {IMAGE: image_token_id},  # Here, as added tokens cannot choose their id.
      merges=merges(pieces),
    ),
  )


def merges(pieces: Sequence[tokenizer.Piece]) -> list[tuple[str, str]]:
  """Pairs of pieces to join, best first; linear in the total length of all pieces."""
  scores = {piece.text: piece.score for piece in pieces if piece.kind == "normal"}
  return [
    (text[:cut], text[cut:])
    for text in sorted(scores, key=scores.__getitem__, reverse=True)
    for cut in range(1, len(text))
    if text[:cut] in scores and text[cut:] in scores
  ]


def _added_token(token: int, text: str, *, special: bool) -> AddedToken:
  return AddedToken(token, text, normalized=not special, special=special)


def _begins_with(token: int, text: str) -> dict[str, Any]:
  """A post-processor for a tokenizer without the processor, which writes <bos> itself."""
  first = dict(SpecialToken=dict(id=text, type_id=0))
  text_a, text_b = (dict(Sequence=dict(id=name, type_id=i)) for i, name in enumerate("AB"))
  return dict(
    type="TemplateProcessing",
    single=[first, text_a],
    pair=[first, text_a, dict(SpecialToken=dict(id=text, type_id=1)), text_b],
    special_tokens={text: dict(id=text, ids=[token], tokens=[text])},
  )


def _tokenizer_config(pieces) -> dict[str, Any]:
  has_mask = any(piece.text == "<mask>" for piece in pieces)
  return dict(
    _SPECIAL,
    add_bos_token=True,
    add_eos_token=False,
    additional_special_tokens=[IMAGE],
    clean_up_tokenization_spaces=False,
    # Without the null, transformers 5 adds a new token <mask> if no piece has the name.
    **({} if has_mask else dict(mask_token=None)),
    model_max_length=_FOREVER,
    processor_class="PaliGemmaProcessor",
    tokenizer_class="GemmaTokenizer",
    use_default_system_prompt=False,
  )


def _image_config(res: int, patch_size: int, images: Images) -> dict[str, Any]:
  return dict(
    do_convert_rgb=True,  # Grey images and palettes would fail otherwise.
    image_processor_type="SiglipImageProcessor",
    image_seq_length=(res // patch_size) ** 2,
    processor_class="PaliGemmaProcessor",
    size=dict(height=res, width=res),
    **images.as_json(),
  )
