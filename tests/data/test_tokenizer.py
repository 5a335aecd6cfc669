import copy

import pytest
from sentencepiece import sentencepiece_model_pb2

from pgjax.data import tokenizer
from pgjax.errors import UserError


@pytest.fixture
def tiny():
  return tokenizer.load("tiny")


def model_of(source):
  return sentencepiece_model_pb2.ModelProto.FromString(source)


@pytest.mark.parametrize(
  "text", ["what is the blue shape?", "  two  spaces ", "line\n\nline", "é 漢字 🙂", "1234.5%", ""]
)
def test_any_text_comes_back(tiny, text):
  assert tiny.decode(tiny.encode(text)) == text


def test_location_and_segmentation_pieces_are_appended_in_their_order(tiny):
  assert tiny.vocab_size == 640 + 1024 + 128
  assert tiny.encode("<loc0000><loc1023><seg000><seg127>") == [640, 640 + 1023, 1664, 1664 + 127]
  assert tiny.encode("a<loc0512>b") == [*tiny.encode("a"), 640 + 512, *tiny.encode("b")]


def test_a_newline_is_one_piece_and_no_space_is_added_in_front(tiny):
  assert tiny.encode("\n") == [tiny.newline]
  assert tiny.piece(tiny.encode("yes")[0]) == "yes"


def test_easy_vqa_answers_are_single_pieces(tiny):
  assert all(len(tiny.encode(word)) == 1 for word in ["yes", "no", "rectangle", "teal", "gray"])


def test_decoding_stops_before_the_first_eos_and_drops_padding(tiny):
  yes, no = tiny.encode("yes"), tiny.encode("no")
  assert tiny.decode([tiny.bos, *yes, tiny.eos, *no, tiny.pad]) == "yes"
  assert tiny.decode([tiny.eos, *yes]) == ""
  assert tiny.decode([*yes, tiny.pad, tiny.pad]) == "yes"


def test_an_id_beyond_the_vocabulary_reads_as_unknown(tiny):
  assert "⁇" in tiny.decode([tiny.vocab_size + 63])


def test_a_model_that_has_the_pieces_keeps_their_ids(tiny, tmp_path):
  model = model_of(tiny.source)
  normal = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
  for name in tokenizer.LOC_TOKENS + tokenizer.SEG_TOKENS:
    model.pieces.add(piece=name, score=-5.0, type=normal)
  (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
  again = tokenizer.load(str(tmp_path))  # A folder that holds the file does as well.
  assert again.vocab_size == tiny.vocab_size
  assert again.encode("x<loc0007><seg003>") == tiny.encode("x<loc0007><seg003>")


def test_a_piece_in_the_middle_is_changed_in_place(tiny, tmp_path):
  model = model_of(tiny.source)
  position = next(i for i, piece in enumerate(model.pieces) if piece.piece == "▁shape")
  model.pieces[position].piece = "<loc0003>"
  path = tmp_path / "some.model"
  path.write_bytes(model.SerializeToString())
  again = tokenizer.load(str(path))
  assert again.encode("<loc0003>") == [position]
  assert again.encode("<loc0004>") == [640 + 3]  # One piece fewer was appended before it.
  assert again.vocab_size == tiny.vocab_size - 1


def test_worker_processes_get_the_same_tokenizer(tiny):
  theirs = copy.deepcopy(tiny)  # The way that pickling takes, too.
  assert (theirs.encode("a<seg001>"), theirs.sha256) == (tiny.encode("a<seg001>"), tiny.sha256)


def test_a_missing_file_raises_with_the_origin_of_tokenizers(tmp_path):
  with pytest.raises(UserError, match=r"cannot be read \(No such file.*comes with the checkpoint"):
    tokenizer.load(str(tmp_path / "nothing.model"))


@pytest.mark.parametrize("content", [b"", b'{"version": "1.0"}', b"version https://git-lfs"])
def test_another_kind_of_file_is_refused(tmp_path, content):
  (tmp_path / "tokenizer.model").write_bytes(content)
  with pytest.raises(UserError, match="is not a SentencePiece model"):
    tokenizer.load(str(tmp_path / "tokenizer.model"))


def test_a_tokenizer_of_another_family_is_refused(tiny, tmp_path):
  model = model_of(tiny.source)
  model.trainer_spec.bos_id, model.trainer_spec.bos_piece = 1, "<s>"
  model.pieces[1].piece, model.pieces[2].piece = "<s>", "</s>"
  model.trainer_spec.eos_id, model.trainer_spec.eos_piece = 2, "</s>"
  (tmp_path / "llama.model").write_bytes(model.SerializeToString())
  with pytest.raises(UserError, match="is not a Gemma tokenizer"):
    tokenizer.load(str(tmp_path / "llama.model"))


def test_a_tokenizer_that_adds_a_leading_space_is_refused(tiny, tmp_path):
  model = model_of(tiny.source)
  model.normalizer_spec.add_dummy_prefix = True
  (tmp_path / "odd.model").write_bytes(model.SerializeToString())
  with pytest.raises(UserError, match="a newline, which"):
    tokenizer.load(str(tmp_path / "odd.model"))
