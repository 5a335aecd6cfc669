"""transformers' processor, from the files that pgjax writes: our token ids and our pixels.

Run by `make test-parity`, under transformers 5 and 4.57. The images are looked for as in
tests/commands/test_prepare.py.
"""

import json
import os
import pathlib
import random

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed: make test-parity")
os.environ["HF_HUB_OFFLINE"] = "1"

import transformers
from PIL import Image
from sentencepiece import sentencepiece_model_pb2

from pgjax.data import prefix_lm, tokenizer
from pgjax.data.pp import parse
from pgjax.huggingface import config_json as hf_config, processor as processor_lib

pytestmark = pytest.mark.parity

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("PGJAX_SHARED_DATA", ROOT.parent / "shared/data"))
FOLDERS = {"chartqa/val/png/*.png": 20, "bccd/test/*.jpg": 15, "sroie/train/*.jpg": 15}
RES, PATCHES = 56, 16
PROMPTS = [
  "",
  " ",
  "caption en",
  "caption en ",
  " caption",
  "answer en what is the blue shape?",
  "two  spaces   three    four",
  "     ",
  "tab\there\t\t",
  "one\ntwo",
  "one\n\ntwo\n\n\nfour",
  "\nfirst",
  "ocr\r\nwindows",
  "detect cat ; dog",
  "<loc0000><loc0512><loc1023>",
  "<loc0100><loc0200><loc0300><loc0400> cat ; <loc0001> dog",
  "<seg000> <seg127>x<seg064>",
  "segment <loc9999> <seg128> <loc12>",
  "0123456789 1,234.50% 3.14e-10",
  "é à ü ñ ç œ ß",
  "Straße naïve Ångström",
  "漢字とかな 한국어 汉语",
  "עברית العربية हिन्दी ไทย",
  "🙂 👩‍👩‍👧 🇨🇭 ❤️",
  "\u00a0nbsp\u2003em\u200bzero\ufeff",
  "a ▁ b▁▁c ▁▁ d",
  "<0x41> <0x0A> <unused0>",
  "<mask> <table> [@BOS@] <html>",
  "<loc0001",
  "<bos", "<<image", "image>",
  "UPPER lower MiXeD",
  "x" * 300,
  "answer " * 60,
  "e\u0301 combining ﬁ ligature",
  "question: {a: [1, 2]} \\n \"quoted\" 'single'",
]  # fmt: skip
assert len(PROMPTS) >= 30


def _tiny(source):
  return source


def _like_gemma(source):
  """With runs of spaces and newlines, HTML and <mask> as user-defined pieces, as Gemma has them."""
  model = sentencepiece_model_pb2.ModelProto.FromString(source)
  kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
  runs = ["▁" * n for n in range(2, 6)] + ["\n" * n for n in range(2, 4)] + ["\t"]
  for text in [*runs, "<mask>", "<unused0>", "[@BOS@]", "<table>", "<html>"]:
    model.pieces.add(piece=text, score=0.0, type=kind)
  return model.SerializeToString()


def _like_paligemma(source):
  """Gemma's, which has the locations and segments already, as normal pieces in the middle."""
  model = sentencepiece_model_pb2.ModelProto.FromString(source)
  for text in tokenizer.LOC_TOKENS + tokenizer.SEG_TOKENS:
    model.pieces.add(piece=text, score=-1e4)
  return _like_gemma(model.SerializeToString())


def _of_full_size(source):
  """256,000 pieces: joins of two known pieces, each with a lower score than those before it."""
  model = sentencepiece_model_pb2.ModelProto.FromString(_like_gemma(source))
  texts = [p.piece for p in model.pieces if p.type == 1 and len(p.piece) < 4]
  known, rng = {p.piece for p in model.pieces}, random.Random(0)
  while len(known) < 256_000:
    text = rng.choice(texts) + rng.choice(texts)
    if text not in known:
      known.add(text)
      texts += [text] if len(text) < 5 else []
      model.pieces.add(piece=text, score=-float(len(known)))
  return model.SerializeToString()


@pytest.fixture(scope="module", params=[_tiny, _like_gemma, _like_paligemma, _of_full_size])
def both(request, tmp_path_factory):
  """(our tokenizer, transformers' processor of the folder that we write)."""
  ours = tokenizer.Tokenizer(request.param(tokenizer.load("tiny").source), "changed")
  folder = tmp_path_factory.mktemp("hf")
  write(folder, ours)
  return ours, transformers.AutoProcessor.from_pretrained(folder)


def write(folder, ours, res=RES, **arguments):
  llm = dict(variant="gemma_2b", vocab_size=ours.vocab_size)
  config = hf_config.config_json(dict(img=dict(variant="So400m/14"), llm=llm), res=res)
  (folder / "config.json").write_text(json.dumps(config))
  for name, content in processor_lib.processor_files(ours.source, res=res, **arguments).items():
    (folder / name).write_bytes(content)


@pytest.mark.parametrize("placeholder", ["", "<image>"])
def test_token_ids_of_prompts_are_ours(both, placeholder):
  ours, processor = both
  image = Image.new("RGB", (40, 30), (200, 10, 60))
  wrong = {}
  for prompt in PROMPTS:
    text = prefix_lm.for_decoding(ours, prompt, 1024).arrays
    wanted = [ours.vocab_size] * PATCHES + text["text"][text["mask_input"] == 1].tolist()
    got = processor(images=image, text=placeholder + prompt)["input_ids"][0]
    if list(got) != wanted:
      wrong[prompt] = (got[PATCHES:], wanted[PATCHES:])
  assert not wrong


def test_a_newline_at_the_end_merges_with_the_separator(both):
  """The one ordinary prompt that differs; docs/weights.md documents it."""
  ours, processor = both
  image = Image.new("RGB", (40, 30), (200, 10, 60))
  got = list(processor(images=image, text="<image>cat\n")["input_ids"][0][PATCHES:])
  assert got == [ours.bos, *ours.encode("cat\n\n")]
  as_ours = got == [ours.bos, *ours.encode("cat\n"), ours.newline]
  assert as_ours == (len(ours.encode("\n\n")) == 2)


def test_prompt_and_answer_are_those_of_training(both):
  ours, processor = both
  image = Image.new("RGB", (40, 30), (200, 10, 60))
  answer = "<loc0100><loc0200> cat ; two  spaces é"
  row = prefix_lm.for_training(ours, "detect cat", answer, 200).arrays
  tokens = row["text"] != ours.pad
  got = processor(images=image, text="<image>detect cat", suffix=answer)
  assert list(got["input_ids"][0][PATCHES:]) == row["text"][tokens].tolist()
  assert list(got["token_type_ids"][0][PATCHES:]) == row["mask_loss"][tokens].tolist()


def test_token_ids_of_random_texts_are_ours(both):
  ours, processor = both
  rng = random.Random(1)
  parts = [ours.piece(i).replace("▁", " ") for i in range(260, 640)]
  parts += ["  ", "\n", "\n\n", "<loc0007>", "<seg101>", "é", "漢", "🙂", "1", "\t", "a", "e", "t"]
  texts = ["".join(rng.choices(parts, k=rng.randint(1, 30))) for _ in range(500)]
  got = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
  wrong = [t for t, ids in zip(texts, got, strict=True) if list(ids) != ours.encode(t)]
  assert not wrong


def test_decoding_gives_the_text_back(both):
  ours, processor = both
  for text in ("cat ; <loc0001> dog", "é 漢字 🙂 two  spaces\nline"):
    ids = [ours.bos, *ours.encode(text), ours.eos]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_image_token_and_the_special_ids_are_ours(both):
  ours, processor = both
  tok = processor.tokenizer
  assert processor.image_token_id == ours.vocab_size
  assert (tok.pad_token_id, tok.eos_token_id, tok.bos_token_id) == (ours.pad, ours.eos, ours.bos)
  assert len(tok) == ours.vocab_size + 1


# Pixels


@pytest.fixture(scope="module")
def pictures():
  paths = [p for glob, n in FOLDERS.items() for p in sorted(SHARED.glob(glob))[:n]]
  if len(paths) < 50:
    pytest.skip(f"{SHARED} has {len(paths)} of the 50 images (PGJAX_SHARED_DATA)")
  return paths


def pixels(folder, paths, res, op, **arguments):
  """Our pixels and those of the processor without torchvision, one image after another."""
  write(folder, tokenizer.load("tiny"), res=res, **arguments)
  processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
  prepare = parse.parse(f"decode(precise=True)|{op}|value_range(-1, 1)")
  for path in paths:
    theirs = processor(Image.open(path), return_tensors="np")["pixel_values"][0]
    yield prepare({"image": path.read_bytes()})["image"], theirs.transpose(1, 2, 0)


@pytest.mark.parametrize("res", [224, 448])
def test_bicubic_pixels_are_the_processor_s_to_the_bit(pictures, tmp_path, res):
  for ours, theirs in pixels(tmp_path, pictures, res, f'resize({res}, method="bicubic")'):
    np.testing.assert_array_equal(ours, theirs)


def test_antialiased_pixels_are_the_bilinear_processor_s_to_a_level(pictures, tmp_path):
  op, level = "resize(224, antialias=True)", 2 / 255
  for ours, theirs in pixels(tmp_path, pictures, 224, op, method="bilinear"):
    assert np.abs(ours - theirs).max() <= level + 1e-6  # We truncate, Pillow rounds.


def test_big_vision_s_pixels_are_not_the_hub_s(pictures, tmp_path):
  """Why `method` is there: on real images the difference is hundreds of levels, not one."""
  pairs = pixels(tmp_path, pictures[:5], 224, "resize(224)")
  assert max(np.abs(ours - theirs).max() for ours, theirs in pairs) > 0.5


def test_grey_images_and_palettes_become_rgb(tmp_path):
  write(tmp_path, tokenizer.load("tiny"))
  processor = transformers.AutoProcessor.from_pretrained(tmp_path)
  for mode in ("L", "P", "RGBA"):
    got = processor(images=Image.new(mode, (40, 30)), text="<image>a", return_tensors="np")
    assert got["pixel_values"].shape == (1, 3, RES, RES)
