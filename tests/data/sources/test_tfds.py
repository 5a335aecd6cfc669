"""Every text of a TFDS data set is text, and true answers get each scorer's highest score.

The data set has the features of the builders that big_vision's transfers name: lists of texts, in
dicts and nested, beside images and bytes.
"""

import contextlib
import io
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pgjax.data import loader, locations, tokenizer as tokenizer_lib
from pgjax.data.sources import registry, tfds as tfds_source
from pgjax.data_check import scan
from pgjax.errors import UserError
from pgjax.evaluation import scorers
from pgjax.formats import input_files, seg_vae_npz
from pgjax.metrics import text
from pgjax.models import seg_vae

ANSWERS = (["yes", "Yes it is", "oui"], ["grün", "42", "three"], ["a cat", "NO"])
JSONS = ('{"name": "Ä", "n": 1}', '{"name": "b", "n": 2}', "[1, 2]")
BOXES = np.array([[0.125, 0.25, 0.5, 0.75], [0.25, 0.0, 1.0, 0.5]], np.float32)


def png(i):
  file = io.BytesIO()
  pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


class Vqa(tfds.core.GeneratorBasedBuilder):
  """Three questions on images."""

  name = "vqa_like"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    f = tfds.features
    texts = f.Sequence(f.Text())
    features = dict(
      image=f.Image(encoding_format="png"),
      question=f.Text(),
      answer=f.Text(),
      answers=texts,
      captions=f.Sequence(dict(id=np.int64, text=f.Text())),
      nested=dict(inner=dict(answers=texts, one=f.Text())),
      fixed=f.Sequence(f.Text(), length=2),
      record=f.Text(),
      choices=texts,
      question_type=f.Text(),
      issimple=np.int32,
      labels=texts,
      boxes=f.Sequence(f.BBoxFeature()),
      empty=texts,
      encoded_mask=f.Tensor(shape=(), dtype=np.object_),
      masks=f.Sequence(f.Image(shape=(None, None, 1), encoding_format="png")),
      height=np.int32,
      width=np.int32,
    )
    return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"test": self._generate_examples()}

  def _generate_examples(self):
    for i, answers in enumerate(ANSWERS):
      mask = io.BytesIO()
      Image.fromarray(np.full((8, 8), 255, np.uint8)).save(mask, "PNG")
      yield (
        i,
        dict(
          image=io.BytesIO(png(i)),
          question=f"what is {i}?",
          answer=answers[0],
          answers=answers,
          captions=[dict(id=k, text=f"{a} on picture {i} here") for k, a in enumerate(answers)],
          nested=dict(inner=dict(answers=answers, one=answers[0])),
          fixed=answers[:2],
          record=JSONS[i],
          choices=[*answers, f"choice {i}"],
          question_type="presence",
          issimple=1,
          labels=["cat", "dög"],
          boxes=[tfds.features.BBox(*map(float, box)) for box in BOXES],
          empty=[],
          encoded_mask=png(i),
          masks=[io.BytesIO(mask.getvalue())],
          height=8,
          width=8,
        ),
      )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("prepared")
  with contextlib.redirect_stdout(io.StringIO()):
    builder = Vqa(data_dir=path, file_format="array_record")
    builder.download_and_prepare(download_dir=path / "none")
  return path


@pytest.fixture(scope="module")
def source(folder):
  return registry.open(dict(name="vqa_like", split="test", data_dir=str(folder)))


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.load("tiny")


def row_of(source, answer):
  """The examples are shuffled when they are written."""
  return next(row for row in map(source.__getitem__, range(len(source))) if row["answer"] == answer)


def test_texts_of_every_nesting_are_text(source):
  row, answers = row_of(source, "grün"), ANSWERS[1]
  assert row["answers"] == row["nested"]["inner"]["answers"] == answers
  assert row["nested"]["inner"]["one"] == "grün"
  assert row["captions"]["text"] == [f"{a} on picture 1 here" for a in answers]
  assert row["fixed"] == answers[:2]
  assert row["empty"] == []
  assert row["record"] == JSONS[1]


def test_images_and_bytes_stay_bytes_and_numbers_arrays(source):
  row = row_of(source, "grün")
  assert row["image"] == row["encoded_mask"] == png(1)
  assert [np.asarray(mask).dtype for mask in row["masks"]] == [np.uint8]
  np.testing.assert_array_equal(np.asarray(row["boxes"]), BOXES)
  assert "image" not in source.texts(0)


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (np.array([b"a", b"bc"]), ["a", "bc"]),
    (np.array([[b"a"], [b"bc"]], object), [["a"], ["bc"]]),
    ([np.array([b"a"], object), np.array([], object)], [["a"], []]),
    ((b"a", {"b": [b"c"]}), ["a", {"b": ["c"]}]),
    (np.bytes_(b"a"), "a"),
    (np.array(["a"]), ["a"]),
    (b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n"),
    (b"a\0b", b"a\0b"),
    ([b"\xff\xd8"], [b"\xff\xd8"]),
    ([None, b"a"], [None, "a"]),
    (np.array([1, 2]).tolist(), [1, 2]),
  ],
)
def test_bytes_become_text_at_any_depth(value, expected):
  assert tfds_source._bytes_to_text(value) == expected  # noqa: SLF001


@pytest.mark.parametrize("where", ["rows", "folder"])
def test_a_disk_that_does_not_answer_is_named(folder, monkeypatch, where):
  hangs, opened = threading.Event(), dict(name="vqa_like", split="test", data_dir=str(folder))

  class Rows:
    def __getitem__(self, i):
      hangs.wait(60)

  if where == "rows":
    source = registry.open(opened)
    source._rows._rows = Rows()  # noqa: SLF001
    read = lambda: source.texts(0)  # noqa: E731
  else:
    monkeypatch.setattr(tfds_source, "_prepared_folder", lambda *_: hangs.wait(60))
    read = lambda: registry.open(opened)  # noqa: E731
  monkeypatch.setattr(input_files, "WAIT_SECONDS", 0.1)
  with pytest.raises(input_files.StalledError, match=rf"{folder}.* no answer for 0.1 s; is its"):
    read()
  hangs.set()


def test_text_ops_take_lists_of_texts(source, tokenizer):
  ops = 'lower(key="answers")|strfmt("{answers} {answer}", outkey="all")|flatten|'
  row = example(source, tokenizer, ops + 'choice(inkey="answers", outkey="one")')
  true = row_of(source, row["answer"])["answers"]
  assert row["answers"] == [a.translate(str.maketrans("YON", "yon")) for a in true]
  assert row["one"] in row["answers"]
  assert row["all"] == [f"{answer} {row['answer']}" for answer in row["answers"]]
  assert isinstance(row["captions/text"][0], str)


def example(source, tokenizer, ops, index=0):
  """The columns that an evaluator gets, through a Loader."""
  pp = f"decode|resize(8)|value_range(-1, 1)|{ops}|copy('question', 'prefix')"
  layout = loader.Layout(res=8, text_len=16, num_frames=0, for_training=False)
  loaded = loader.Loader(loader.Part("vqa_like", source, 1.0), pp, tokenizer, layout, 0)
  return loaded(0, index).columns


SECTION = dict(to_lower=False, caption_metrics=("cider",), mask_weights="oi", answer="answer")
SECTION |= dict(confidence="box_and_label")
BEST = [
  ("vqa", "answer", "acc", 1),
  ("vqa", "fixed", "acc_any", 1),
  ("vqa", "answers", "anls", 1),
  ("vqa", "inner", "anls", 1),
  ("vqav2", "one", "acc", 1),
  ("chartqa", "answer", "relaxed_acc", 1),
  ("choice", "answer", "acc", 1),
  ("science_qa", "letter", "acc", 1),
  ("pope", "yes", "acc", 1),
  ("tallyqa", "answer", "acc", 1),
  ("rsvqa", "answers", "acc_any", 1),
  ("json", "record", "field_f1", 1),
  ("caption", "captions", "cider", 10),
  ("detection", "suffix", "AP", 1),
  ("segmentation", "suffix", "miou", 1),
  ("predictions", "answers", None, None),
]
OPS = (
  'copy("nested", "inner")|flatten(["inner"])|copy("inner/inner/answers", "inner")|'
  'copy("fixed", "one")|choice(inkey="one", outkey="one")|'
  'strfmt("The answer is B.", outkey="letter")|strfmt("yes", outkey="yes")|'
  'flatten(["captions"])|copy("captions/text", "captions")|boxes_to_suffix'
)


def test_every_scorer_is_tested():
  elsewhere = {"instances"}  # Of COCO files: tests/evaluation/test_scorers.py.
  assert {kind for kind, *_ in BEST} == set(scorers.SCORERS) - elsewhere


@pytest.mark.parametrize(("kind", "column", "metric", "best"), BEST)
def test_a_true_answer_gets_the_highest_score(
  source, tokenizer, tmp_path, kind, column, metric, best
):
  section = SimpleNamespace(**SECTION | dict(type=kind, answer=column))
  if kind == "segmentation":
    section.mask_weights, codes = whole_mask(tmp_path)
  rows = []
  for i in range(len(source)):
    columns = example(source, tokenizer, OPS, i)
    if kind == "segmentation":
      columns["mask"], columns["box"] = codes[1], np.array([0.0, 0.0, 1.0, 1.0])
      columns["suffix"] = "<loc0000><loc0000><loc1023><loc1023>" + locations.seg_string(codes[0])
    true = columns[column]
    true = true if isinstance(true, str) else true[0]
    tokens = np.array([*tokenizer.encode(true), tokenizer.eos], np.int32)
    generated = scorers.Generated(true, tokens, np.zeros(len(tokens), np.float32))
    row = scorers.SCORERS[kind].row(section, tokenizer, columns, generated)
    rows.append(dict(row, prediction=true, id=columns["id"], _sha256=str(i)))
    assert "b'" not in str(row["answer"])
  got = text.mean(row["scores"] for row in rows) | scorers.SCORERS[kind].of_split(section, rows)
  if metric is None:
    assert rows[0]["answer"] in map(list, ANSWERS)
  elif kind == "caption":  # One of the references is repeated exactly.
    assert got[metric] > 3
  elif kind == "vqa" and metric == "acc_any":
    assert got[metric] == 1
  else:
    assert got[metric] == pytest.approx(best)


def whole_mask(folder):
  """(weights of a small VQ-VAE, (codes, their mask [64, 64]))."""
  path, codes = folder / "masks.npz", list(range(16))
  seg_vae_npz.save(path, seg_vae.init(jax.random.key(0), width=8, embed_dim=16))
  shown = np.asarray(seg_vae.decode(seg_vae_npz.load(str(path)), np.array([codes])))[0, :, :, 0] > 0
  return str(path), (codes, shown.astype(np.uint8))


PAIRS = {"train": 40, "val": 7, "test-dev": 3}


class Pairs(tfds.core.GeneratorBasedBuilder):
  """Two images that are not called `image`, objects with masks of one bit, and several splits."""

  name = "pairs"
  VERSION = tfds.core.Version("1.4.0")

  def _info(self):
    f = tfds.features
    objects = f.Sequence(dict(mask=f.Image(encoding_format="png"), bbox=f.BBoxFeature()))
    features = dict(left=f.Image(), right=f.Image(), objects=objects, number=np.int32)
    return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(count) for split, count in PAIRS.items()}

  def _generate_examples(self, count):
    rgba, bit = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((4, 6, 4), 7, np.uint8), "RGBA").save(rgba, "PNG")
    Image.fromarray(np.eye(5, dtype=bool)).save(bit, "PNG")
    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    for i in range(count):
      pair = dict(left=io.BytesIO(png(i)), right=io.BytesIO(rgba.getvalue()))
      objects = [dict(mask=io.BytesIO(bit.getvalue()), bbox=box) for _ in range(i % 3)]
      yield i, dict(pair, objects=objects, number=i)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  path = tmp_path_factory.mktemp("pairs")
  with contextlib.redirect_stdout(io.StringIO()):
    Pairs(data_dir=path, file_format="array_record").download_and_prepare(download_dir=path / "n")

  def opened(split, **fields):
    return registry.open(dict(name="pairs:1.4.0", split=split, data_dir=str(path), **fields))

  return opened


def test_splits_are_written_as_in_tfds(pairs):
  lengths = {
    "train + test-dev": 43,
    "val[2:]": 5,
    "train[:1_0]": 10,
    "train[-1_0:]+val[:50%]": 14,
    "train[:5%]": 2,
    "test-dev[:2] + val": 9,
  }
  assert {split: len(pairs(split)) for split in lengths} == lengths
  for split, match in {
    "tset+val": r"no split \['tset'\]; it has \['test-dev', 'train', 'val'\]",
    "val[:1_000]": r"incompatible with 7 examples. .* are test-dev 3, train 40, val 7; a part",
    "val[": "a part of one is written",
  }.items():
    with pytest.raises(UserError, match=match):
      pairs(split)


def test_a_row_has_one_number_in_every_split(pairs):
  rows = {row["_id"]: row["tfds_id"] for row in map(pairs("all").texts, range(50))}
  assert len(rows) == len(set(rows.values())) == 50
  part = pairs("val[3:] + train[10:20]")
  texts = [part.texts(i) for i in range(len(part))]
  assert [rows[text["_id"]] for text in texts] == [text["tfds_id"] for text in texts]
  assert texts[0]["tfds_id"] == "pairs-val.array_record-00000-of-00001__3"
  assert texts[0]["_id"].dtype == np.int32


def test_images_of_any_name_are_decoded_when_they_are_wanted(pairs, monkeypatch):
  source = pairs("train", skip_decode=["image"])
  row = next(row for row in map(source.__getitem__, range(9)) if len(row["objects"]["mask"]) == 2)
  assert row["left"].shape == (8, 8, 3)
  np.testing.assert_array_equal(row["left"], np.asarray(Image.open(io.BytesIO(png(row["number"])))))
  assert row["right"].shape == (4, 6, 3)
  for mask in row["objects"]["mask"]:
    np.testing.assert_array_equal(mask[:, :, 1], 255 * np.eye(5, dtype=np.uint8))

  [(_, looked)] = scan._read(source, [0], known := {}, 1)  # noqa: SLF001
  assert sorted(known[digest].size for digest in looked.digests) == [(4, 6), (8, 8)]

  def decoded(*_):
    raise AssertionError("an image was decoded")

  monkeypatch.setattr(tfds_source.images, "decode", decoded)
  monkeypatch.setattr(tfds.features.Image, "decode_example_np", decoded)
  text = source.texts(0)
  assert isinstance(text["left"], bytes)
  assert all(isinstance(mask, bytes) for mask in text["objects"]["mask"])


def test_the_masks_of_refcocos_builder_are_scored(tmp_path, tokenizer):
  section = SimpleNamespace(**SECTION | dict(type="segmentation"))
  section.mask_weights, (codes, shown) = whole_mask(tmp_path)
  box = np.array([0.0, 0.0, 1.0, 1.0], np.float32)
  example = {"objects/mask": np.dstack([shown * 255] * 3), "objects/bbox": box}
  scorer = scorers.SCORERS["segmentation"]
  assert scorers.missing(scorer, example) == []
  assert scorers.missing(scorer, {"box": 0}) == ["mask"]
  answer = "<loc0000><loc0000><loc1023><loc1023>" + locations.seg_string(codes)
  tokens = np.array([*tokenizer.encode(answer), tokenizer.eos], np.int32)
  row = scorer.row(section, tokenizer, example, scorers.Generated(answer, tokens, tokens))
  assert row["scores"]["miou"] == (1, 1)
  assert row["scores"]["boxacc/0.75"] == (1, 1)
