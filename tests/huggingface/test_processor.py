"""The files of a Hugging Face processor; what transformers makes of them is in tests/parity."""

import itertools
import json
import random
import re
import time

import pytest
from sentencepiece import sentencepiece_model_pb2

from pgjax.data import tokenizer
from pgjax.errors import UserError
from pgjax.huggingface import processor

TEXTS = [
  "what is the blue shape?",
  "  two  spaces ",
  "line\n\nline\n",
  "é 漢字 🙂 ▁",
  "a<loc0512><seg003> ; <loc1023>x",
  "1234.5% there were <shapes> here",
  "<0x41><pad",
  "",
]


@pytest.fixture
def tiny():
  return tokenizer.load("tiny")


def with_runs(source):
  """The tiny model with some of Gemma's user-defined pieces."""
  model = sentencepiece_model_pb2.ModelProto.FromString(source)
  user_defined = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
  for text in ("▁▁", "▁▁▁", "\n\n", "<mask>", "<table>"):
    model.pieces.add(piece=text, score=0.0, type=user_defined)
  return model.SerializeToString()


def encoded(text, config):
  """What the `tokenizers` library does with a tokenizer.json and a text without special tokens."""
  replace = config["normalizer"]
  text = text.replace(replace["pattern"]["String"], replace["content"])
  vocab, ranks = config["model"]["vocab"], {}
  for rank, pair in enumerate(config["model"]["merges"]):
    ranks[tuple(pair)] = rank
  added = {t["content"]: t["id"] for t in config["added_tokens"] if not t["special"]}
  longest_first = sorted(added, key=len, reverse=True)
  ids = []
  for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text):
    if part in added:
      ids.append(added[part])
      continue
    parts = list(part)
    while pairs := [p for p in itertools.pairwise(parts) if p in ranks]:
      best = min(pairs, key=ranks.__getitem__)
      at = next(i for i in range(len(parts)) if (*parts[i : i + 2],) == best)
      parts[at : at + 2] = ["".join(best)]
    for p in parts:
      ids += [vocab[p]] if p in vocab else [vocab[f"<0x{byte:02X}>"] for byte in p.encode()]
  return ids


@pytest.mark.parametrize("change", [lambda source: source, with_runs])
@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_json_gives_sentencepiece_s_ids(tiny, change, text):
  ours = tokenizer.Tokenizer(change(tiny.source), "changed")
  files = processor.processor_files(ours.source, res=28)
  assert encoded(text, json.loads(files["tokenizer.json"])) == ours.encode(text)


def test_image_is_a_special_token_with_its_id(tiny):
  files = processor.processor_files(tiny.source, res=28, image_token_id=1800)
  config = json.loads(files["tokenizer.json"])
  (image,) = [token for token in config["added_tokens"] if token["content"] == "<image>"]
  assert (image["id"], image["special"], config["model"]["vocab"]["<image>"]) == (1800, True, 1800)
  assert json.loads(files["special_tokens_map.json"])["additional_special_tokens"] == ["<image>"]


def test_the_image_processor_makes_pixels_and_tokens_of_this_size(tiny):
  files = processor.processor_files(tiny.source, res=448, patch_size=14, method="bilinear")
  config = json.loads(files["preprocessor_config.json"])
  assert (config["size"], config["image_seq_length"]) == ({"height": 448, "width": 448}, 1024)
  assert config["resample"] == 2


def test_a_model_with_all_pieces_is_copied_byte_for_byte(tiny):
  """Plain Gemma's gets the boxes, without which other programs cut them into characters."""
  written = processor.processor_files(tiny.source, res=28)["tokenizer.model"]
  pieces = sentencepiece_model_pb2.ModelProto.FromString(written).pieces
  assert [piece.piece for piece in pieces] == [piece.text for piece in tiny.words()]
  assert processor.processor_files(written, res=28)["tokenizer.model"] == written


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (dict(res=30), "res=30 is no multiple of the patch size 14"),
    (dict(res=28, method="area"), "method='area' must be one of bilinear, bicubic"),
    (dict(res=28, image_token_id=640), "image_token_id=640 is the piece '<loc0000>'"),
    (dict(res=28, values=(1.0, 1.0)), "values=\\(1.0, 1.0\\) must increase"),
  ],
)
def test_wrong_arguments_are_named(tiny, arguments, message):
  with pytest.raises(UserError, match=message):
    processor.processor_files(tiny.source, **arguments)


def test_a_model_that_changes_texts_is_refused(tiny):
  model = sentencepiece_model_pb2.ModelProto.FromString(tiny.source)
  model.normalizer_spec.remove_extra_whitespaces = True
  with pytest.raises(UserError, match="differs from Gemma's in remove_extra_whitespaces"):
    processor.processor_files(model.SerializeToString(), res=28)


@pytest.mark.slow
def test_a_quarter_of_a_million_pieces_take_seconds():
  rng = random.Random(0)
  letters = "abcdefghijklmnopqrstuvwxyz▁"
  texts = list(letters)
  while len(texts) < 256_000:  # Each is a join of two others, as BPE makes them.
    texts = list(dict.fromkeys(texts + [t + rng.choice(letters) for t in texts[-64_000:]]))
  texts = texts[:256_000]
  pieces = [tokenizer.Piece(text, -float(i), "normal") for i, text in enumerate(texts)]
  start = time.process_time()
  pairs = processor.merges(pieces)
  assert time.process_time() - start < 20  # It takes 1; comparing all pairs would take a day.
  assert {left + right for left, right in pairs} == {p.text for p in pieces if len(p.text) > 1}
