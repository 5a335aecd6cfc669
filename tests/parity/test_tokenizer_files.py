"""Tokenizer folders that transformers saves: our ids are transformers', and ours are read there.

Run by `make test-parity`. PGJAX_GEMMA_TOKENIZER names a Gemma tokenizer.model, which is compared as
well if it is given (one is in the PyPI wheel maxtext 0.2.5, in maxtext/assets).
"""

import json
import os
import pathlib
import random

import pytest

pytest.importorskip("transformers", reason="transformers is not installed: make test-parity")
os.environ["HF_HUB_OFFLINE"] = "1"

import transformers
from sentencepiece import sentencepiece_model_pb2
from transformers import AddedToken

from pgjax.data import tokenizer, tokenizer_folder
from pgjax.huggingface import processor as processor_lib

pytestmark = pytest.mark.parity

GEMMA = os.environ.get("PGJAX_GEMMA_TOKENIZER")
PLAIN = ["<card_a>", "<card_b>", "red box", "Zürich", "x1"]
RULES = [
  AddedToken("<left>", lstrip=True),
  AddedToken("<right>", rstrip=True),
  AddedToken("<raw_left>", lstrip=True, normalized=False),
  AddedToken("<raw_right>", rstrip=True, normalized=False),
  AddedToken("<both>", lstrip=True, rstrip=True, normalized=False, special=True),
  AddedToken("cat", single_word=True, normalized=False),
  AddedToken("the dog", single_word=True),
  AddedToken("2>x", normalized=False),
]


def tiny(source):
  return source


def like_gemma(source):
  """With runs of spaces and newlines as user-defined pieces."""
  model = sentencepiece_model_pb2.ModelProto.FromString(source)
  kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
  runs = ["▁" * n for n in range(2, 6)] + ["\n" * n for n in range(2, 4)] + ["\t"]
  for text in [*runs, "<mask>", "<unused0>", "[@BOS@]", "<table>", "<html>"]:
    model.pieces.add(piece=text, score=0.0, type=kind)
  return model.SerializeToString()


def real(source):
  return pathlib.Path(GEMMA).read_bytes() if GEMMA else pytest.skip("PGJAX_GEMMA_TOKENIZER")


def texts(words):
  """Over 1,000, many of them with the words and all kinds of neighbours."""
  rng = random.Random(0)
  parts = [
    "the ",
    "dog",
    " cat",
    "cats",
    "_",
    "what is",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "é",
    "漢字",
    "🙂",
    "▁",
  ]
  parts += [
    "<loc0007>",
    "<seg101>",
    "<loc0002>x",
    "1",
    ".",
    "e\u0301",
    "\u00a0",
    "\u3000",
    "a",
    "",
    " ",
  ]
  parts += [
    "\u200d",
    "\x1c",
    "ﬁ",
    "हि",
    "\u0661",
    "<",
    ">",
    "red  box",
    "the▁dog",
    "-----",
    "hahaha",
  ]
  found = ["".join(rng.choices([*parts, *words], k=rng.randint(1, 12))) for _ in range(1000)]
  around = ["", " ", "  ", "\t ", "\n", "a", "▁", ".", "漢", "_", "\u00a0"]
  return found + [f"{a}{word}{b}x" for word in words for a in around for b in around]


def check_ids(folder, ours, words):
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  wanted = theirs(asked := texts(words), add_special_tokens=False)["input_ids"]
  wrong = [
    (text, list(ids), ours.encode(text))
    for text, ids in zip(asked, wanted, strict=True)
    if list(ids) != ours.encode(text)
  ]
  assert not wrong, f"{len(wrong)} of {len(asked)}: {wrong[:3]}"


@pytest.mark.parametrize("words", [[], PLAIN, PLAIN + RULES], ids=["none", "plain", "rules"])
@pytest.mark.parametrize("vocabulary", [tiny, like_gemma, real])
def test_ids_of_what_transformers_saves_are_theirs(tmp_path, vocabulary, words):
  source = vocabulary(tokenizer.TINY.read_bytes())
  for name, content in processor_lib.processor_files(source, res=28).items():
    (tmp_path / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  if words:
    theirs.add_tokens(words)
  theirs.save_pretrained(saved := tmp_path / "saved")
  written = [str(word) for word in words]
  ours = tokenizer.Tokenizer(tokenizer_folder.source_of(saved), "ours")
  for word in words:
    [token] = theirs.convert_tokens_to_ids([str(word)])
    assert token >= ours.vocab_size - len(words) or str(word) in ("cat", "x1")
  check_ids(saved, ours, written)
  assert (saved / "tokenizer.json").is_file()
  (saved / "tokenizer.model").unlink(missing_ok=True)
  rebuilt = tokenizer.Tokenizer(tokenizer_folder.source_of(saved), "rebuilt")
  check_ids(saved, rebuilt, written)
  again = tmp_path / "again"
  again.mkdir()
  for name, content in processor_lib.processor_files(rebuilt.source, res=28).items():
    (again / name).write_bytes(content)
  (again / "config.json").write_text(json.dumps(dict(model_type="paligemma")))
  check_ids(again, ours, written)
  assert tokenizer_folder.source_of(again) == rebuilt.model_file()


def test_the_real_vocabulary_is_the_same_without_its_tokenizer_model(tmp_path):
  """As transformers converts it, without pgjax: pieces, kinds and ids."""
  if not GEMMA:
    pytest.skip("PGJAX_GEMMA_TOKENIZER is not set")
  ours = tokenizer.load(GEMMA)
  (tmp_path / "tokenizer.model").write_bytes(pathlib.Path(GEMMA).read_bytes())
  config = dict(tokenizer_class="GemmaTokenizer", add_bos_token=True, mask_token=None)
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  theirs.add_tokens([AddedToken(t) for t in tokenizer.LOC_TOKENS + tokenizer.SEG_TOKENS])
  theirs.save_pretrained(saved := tmp_path / "saved")
  (saved / "tokenizer.model").unlink(missing_ok=True)
  rebuilt = tokenizer.Tokenizer(tokenizer_folder.source_of(saved), "rebuilt")
  check_ids(saved, rebuilt, [])
  assert [p.text for p in rebuilt.words()] == [p.text for p in ours.words()]
  # transformers looks for a run of "▁" before it replaces spaces by "▁", SentencePiece afterwards.
  asked = [text for text in texts([]) if "▁" not in text]
  assert [rebuilt.encode(text) for text in asked] == [ours.encode(text) for text in asked]
