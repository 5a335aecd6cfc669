"""The tokenizer files of a Hugging Face folder; those of transformers are in tests/parity."""

import copy
import json
import os
import random

import pytest
from sentencepiece import sentencepiece_model_pb2

from pgjax.data import added_tokens, tokenizer, tokenizer_folder
from pgjax.data.added_tokens import AddedToken
from pgjax.errors import UserError
from pgjax.huggingface import processor

WORDS = ["<card_a>", "<card_b>", "<table>"]
FIRST = 1793  # After <image>, as `add_tokens` counts.
TEXTS = [
  "what is the blue shape?",
  "  two  spaces ",
  "line\n\nline\n",
  "é 漢字 🙂 ▁ \t\ttabs",
  "a<loc0512><seg003> ; <loc1023>x",
  "1234.5% there were <shapes> here",
  "<0x41><pad <unk> <image>",
  "",
]


def like_gemma(source):
  """The tiny model with some of Gemma's user-defined pieces."""
  model = sentencepiece_model_pb2.ModelProto.FromString(source)
  user_defined = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
  for text in ("▁▁", "▁▁▁", "\n\n", "<mask>", "<b>"):
    model.pieces.add(piece=text, score=0.0, type=user_defined)
  return model.SerializeToString()


@pytest.fixture(params=[lambda source: source, like_gemma], ids=["tiny", "like_gemma"])
def plain(request):
  return tokenizer.Tokenizer(request.param(tokenizer.TINY.read_bytes()), "plain")


@pytest.fixture
def folder(tmp_path):
  """(writes the files of a folder, in transformers 5's way with words: no tokenizer.model)."""

  def write(ours, words=(), model=True, **fields):
    for name, content in processor.processor_files(ours.source, res=28).items():
      (tmp_path / name).write_bytes(content)
    tokens = [dict(id=FIRST + i, content=word) for i, word in enumerate(words)]
    edit(tmp_path / "tokenizer.json", lambda t: t["added_tokens"].extend(tokens))
    if not model:
      (tmp_path / "tokenizer.model").unlink()
    return tmp_path

  return write


def edit(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def texts():
  rng, tiny = random.Random(0), tokenizer.load("tiny")
  parts = [tiny.piece(i).replace("▁", " ") for i in range(260, 640)]
  parts += ["  ", "\n", "\n\n", "<loc0007>", "<seg101>", "é", "漢", "🙂", "1", "\t", "a", "e", "▁"]
  return TEXTS + ["".join(rng.choices(parts, k=rng.randint(1, 30))) for _ in range(200)]


def test_a_folder_without_further_words_gives_the_bytes_of_its_model(plain, folder):
  written = folder(plain)
  source = tokenizer_folder.source_of(written)
  assert source == (written / "tokenizer.model").read_bytes()
  again = tokenizer.Tokenizer(source, "again")
  assert again.words() == plain.words()
  assert again.model_file() == source


def test_the_written_model_has_the_boxes_for_programs_that_append_none(plain, folder):
  content = (folder(plain) / "tokenizer.model").read_bytes()
  model = sentencepiece_model_pb2.ModelProto.FromString(content)
  names = {piece.piece for piece in model.pieces}
  assert {*tokenizer.LOC_TOKENS, *tokenizer.SEG_TOKENS} <= names
  assert {*tokenizer.LOC_TOKENS, *tokenizer.SEG_TOKENS} <= set(
    model.trainer_spec.user_defined_symbols
  )


def test_tokenizer_json_alone_gives_the_model_back(plain, folder):
  rebuilt = tokenizer.load(str(folder(plain, model=False)))
  assert [(p.text, p.kind) for p in rebuilt.words()] == [(p.text, p.kind) for p in plain.words()]
  assert [rebuilt.encode(text) for text in texts()] == [plain.encode(text) for text in texts()]
  assert rebuilt.vocab_size == plain.vocab_size
  assert tokenizer.load(str(folder(plain) / "tokenizer.json")).words() == rebuilt.words()


@pytest.mark.parametrize("model", [True, False])
def test_words_of_tokenizer_json_are_tokens(folder, model):
  ours = tokenizer.load(str(folder(tokenizer.load("tiny"), WORDS, model=model)))
  plain = tokenizer.load("tiny")
  assert ours.vocab_size == FIRST + len(WORDS)
  assert ours.encode("a<card_b> b<table>") == [
    *plain.encode("a"), FIRST + 1, *plain.encode(" b"), FIRST + 2
  ]  # fmt: skip
  assert ours.decode(ours.encode("a<card_b> b<table>")) == "a<card_b> b<table>"
  assert ours.encode("<image>") == plain.encode("<image>")  # Not a word of texts.
  assert ours.image == 1792
  assert [ours.encode(text) for text in texts()] == [plain.encode(text) for text in texts()]
  assert copy.deepcopy(ours).encode("<table>") == [FIRST + 2]  # In worker processes.


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("added_tokens.json", {"<image>": 1792, "<card_a>": 1793}),
    (
      "tokenizer_config.json",
      dict(
        added_tokens_decoder={"1792": dict(content="<image>"), "1793": dict(content="<card_a>")}
      ),
    ),
  ],
)
def test_words_of_the_other_files_are_tokens(folder, name, content):
  written = folder(tokenizer.load("tiny"))
  (written / name).write_text(json.dumps(content))
  assert tokenizer.load(str(written)).encode("<card_a>") == [FIRST]
  (written / "tokenizer.json").unlink()  # As with the first versions of transformers.
  ours = tokenizer.Tokenizer(tokenizer_folder.source_of(written), "ours")
  assert ours.encode("<card_a>") == [FIRST]


def test_a_word_that_was_a_piece_is_found_inside_words(folder):
  tiny = tokenizer.load("tiny")
  [yes] = tiny.encode("yes")
  written = folder(tiny)
  edit(written / "tokenizer.json", lambda t: t["added_tokens"].append(dict(id=yes, content="yes")))
  ours = tokenizer.load(str(written))
  assert ours.encode("eyesx") == [*tiny.encode("e"), yes, *tiny.encode("x")]
  assert ours.vocab_size == tiny.vocab_size


def with_word(folder, model=True, **rules):
  token = dict(id=FIRST, content=rules.pop("content", "<m>"), **rules)
  written = folder(tokenizer.load("tiny"), model=model)
  edit(written / "tokenizer.json", lambda t: t["added_tokens"].append(token))
  return tokenizer.load(str(written))


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize(
  ("rules", "text", "parts"),
  [
    # Where a rule is for white space, it is that of the text, in which "▁" is none.
    (dict(normalized=False, lstrip=True), "a \t <m> b", ["a", 0, " b"]),
    (dict(normalized=False, rstrip=True), "a <m>  b", ["a ", 0, "b"]),
    (dict(normalized=True, lstrip=True), "a <m> b", ["a ", 0, " b"]),
    (dict(normalized=True, lstrip=True), "a\t<m> b", ["a", 0, " b"]),
    (dict(normalized=True, rstrip=True), "a <m>\t\t b", ["a ", 0, " b"]),
    (dict(content="cat", single_word=True), "cat scatter cat. _cat", [0, " scatter ", 0, ". _cat"]),
    (dict(content="red box"), "a red box", ["a ", 0]),
    (dict(content="red box", normalized=False), "red boxred  box", [0, "red  box"]),
    (dict(content="c>", normalized=False), "<loc0001>c><loc0002>", ["<loc0001>", 0, "<loc0002>"]),
    (dict(content="1>x", normalized=False), "<loc0001>x", ["<loc000", 0]),  # Before <loc0001>.
    (dict(content="1>x"), "<loc0001>x", ["<loc0001>", "x"]),
  ],
)
def test_rules_of_words_are_kept(folder, model, rules, text, parts):
  plain, ours = tokenizer.load("tiny"), with_word(folder, model, **rules)
  expected = [t for part in parts for t in ([FIRST] if part == 0 else plain.encode(part))]
  assert ours.encode(text) == expected
  assert copy.deepcopy(ours).encode(text) == expected


def test_what_is_written_of_words_is_read_as_the_same(folder, tmp_path):
  rules = dict(content="red box", lstrip=True, normalized=False, special=True)
  ours = with_word(folder, **rules)
  files = processor.processor_files(ours.source, res=28)
  added = json.loads(files["tokenizer.json"])["added_tokens"]
  assert [dict(id=FIRST, single_word=False, rstrip=False, **rules)] == [
    token for token in added if token["id"] == FIRST
  ]
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  assert tokenizer_folder.source_of(tmp_path) == ours.source
  (tmp_path / "tokenizer.model").unlink()
  rebuilt = tokenizer.load(str(tmp_path / "tokenizer.json"))
  assert [rebuilt.encode(t) for t in texts()] == [ours.encode(t) for t in texts()]
  assert rebuilt.encode("a  red box") == ours.encode("a  red box") == [*ours.encode("a"), FIRST]


DISAGREE = {
  "ids": (
    "added_tokens.json",
    {"<card_a>": 1794},
    "added_tokens.json gives '<card_a>' the id 1794",
  ),
  "words": (
    "tokenizer_config.json",
    dict(added_tokens_decoder={"1793": dict(content="<other>")}),
    "tokenizer_config.json gives '<other>' the id 1793",
  ),
  "rules": (
    "tokenizer_config.json",
    dict(added_tokens_decoder={"1793": dict(content="<card_a>", lstrip=True)}),
    "lstrip of the added token '<card_a>' is false in tokenizer.json and true in",
  ),
  "a known word": ("added_tokens.json", {"yes": 1796}, "'yes' has the id 1796, and the id"),
}


@pytest.mark.parametrize("what", DISAGREE)
def test_files_that_disagree_are_named(folder, what):
  name, content, message = DISAGREE[what]
  written = folder(tokenizer.load("tiny"), WORDS)
  (written / name).write_text(json.dumps(content))
  with pytest.raises(UserError, match="two files that disagree") as error:
    tokenizer_folder.source_of(written)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_another_vocabulary_than_the_model_s_is_an_error(folder):
  written = folder(tokenizer.load("tiny"))

  def swap(content):
    vocab = content["model"]["vocab"]
    vocab["yes"], vocab["no"] = vocab["no"], vocab["yes"]

  edit(written / "tokenizer.json", swap)
  with pytest.raises(UserError, match=r"tokenizer.model has '(yes|no)' at id \d+, tokenizer.json"):
    tokenizer_folder.source_of(written)


def moved_merges(content):
  merges = content["model"]["merges"]
  words = [left + right for left, right in merges]
  merges.append(merges.pop(next(i for i, word in enumerate(words) if words.count(word) > 1)))


JSON_DAMAGE = {
  "no JSON": (lambda t: None, "not JSON"),
  "another kind": (lambda t: t["model"].update(type="WordPiece"), "differs in model.type"),
  "a vocabulary of Unigram": (lambda t: t["model"].update(vocab=[["a", 0.1]]), "$.model.vocab"),
  "no bytes": (lambda t: t["model"].update(byte_fallback=False), "differs in model.byte_fallback"),
  "lower case": (lambda t: t.update(normalizer=dict(type="Lowercase")), "differs in normalizer"),
  "words": (lambda t: t.update(pre_tokenizer=dict(type="Metaspace")), "differs in pre_tokenizer"),
  "a pair in two places": (moved_merges, "pairs of"),
  "no pairs": (lambda t: t["model"].update(merges=[]), ""),
  "an id twice": (lambda t: t["model"]["vocab"].update(yes=300), "gives the id 300 to"),
  "a huge id": (lambda t: t["model"]["vocab"].update(x=2**40), "$.model.vocab"),
  "a hole": (lambda t: t["model"]["vocab"].update(holehole=5000), "has no word for the id 1793"),
  "other special words": (
    lambda t: t["model"]["vocab"].update({"<eos>": 2, "<bos>": 1}) or t.update(added_tokens=[]),
    "is not a Gemma tokenizer",
  ),
  "an added token without text": (
    lambda t: t["added_tokens"].append(dict(id=1793, content="")),
    "$.added_tokens[1158].content",
  ),
}


@pytest.mark.parametrize("what", JSON_DAMAGE)
def test_a_damaged_tokenizer_json_is_one_sentence(folder, what):
  damage, message = JSON_DAMAGE[what]
  written = folder(tokenizer.load("tiny"), model=False)
  path = written / "tokenizer.json"
  edit(path, damage)
  if what == "no JSON":
    path.write_text(path.read_text()[:-9])
  if what == "no pairs":  # Characters only, which is a tokenizer.
    assert len(tokenizer.load(str(written)).encode("yes")) == 3
    return
  with pytest.raises(UserError) as error:
    tokenizer.load(str(written))
  assert message in str(error.value)
  assert "tokenizer.json" in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "added_tokens.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_only_regular_files_of_bounded_size_are_read(folder, name, kind):
  written = folder(tokenizer.load("tiny"))
  path = written / name
  path.unlink(missing_ok=True)
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "device":
    path.symlink_to("/dev/zero")
  elif kind == "folder":
    path.mkdir()
  else:
    with path.open("wb") as file:
      file.truncate(1 << 40)  # Takes no space.
  expected = dict(pipe="a FIFO", device="a device", folder="a folder", large="up to 268,435,456")[
    kind
  ]
  with pytest.raises(UserError, match=expected):
    tokenizer_folder.source_of(written)
  if name == "tokenizer.model":
    with pytest.raises(UserError, match=expected):
      tokenizer.load(str(path)) if kind != "folder" else tokenizer.load(str(written))


def test_the_stored_words_survive_other_fields_of_a_message():
  tokens = [AddedToken(7, "a b", lstrip=True), AddedToken(3, "x" * 300)]
  spec = sentencepiece_model_pb2.TrainerSpec(vocab_size=7, pad_piece="p", character_coverage=0.5)
  message = spec.SerializeToString() + added_tokens.packed(tokens)
  assert added_tokens.unpacked(message) == sorted(tokens, key=lambda token: token.id)
  again = sentencepiece_model_pb2.TrainerSpec.FromString(message)
  assert (again.vocab_size, again.pad_piece) == (7, "p")
  assert added_tokens.unpacked(spec.SerializeToString()) == []
