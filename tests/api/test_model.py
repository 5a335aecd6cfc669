"""The Python functions give what the commands give, and a mistake in an argument is a sentence.

The checkpoint has random weights: what it answers is rubbish, and the same rubbish each time.
"""

import dataclasses
import json
import logging
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import pgjax
from pgjax import evaluate, predict
from pgjax.api import answer as answer_lib, arguments
from pgjax.checkpoints import source as source_lib
from pgjax.data import locations
from pgjax.formats import seg_vae_npz
from pgjax.models import paligemma, seg_vae
from pgjax.params import tree as param_tree
from tests import small_checkpoint
from tests.commands.test_predict import run

pytestmark = pytest.mark.xdist_group("api")  # They share a checkpoint and what is compiled.


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root):
  return small_checkpoint.write(tmp_path_factory.mktemp("api") / "checkpoint", root)


@pytest.fixture(scope="module")
def model(folder):
  return pgjax.load(folder)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
  """The path of a picture of 60 x 48 random pixels."""
  path = tmp_path_factory.mktemp("pictures") / "a.png"
  pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def printed(capsys, *flags):
  """The output of pgjax.predict --json."""
  capsys.readouterr()
  assert run(predict, *flags, "--json") == 0
  return json.loads(capsys.readouterr().out)


def test_importing_pgjax_imports_nothing_else():
  """And the four names are listed, each loaded at its first use."""
  program = (
    "import sys, pgjax; assert {'load', 'fit', 'score', 'UserError'} <= set(dir(pgjax));"
    " heavy = {'jax', 'numpy', 'flax', 'PIL', 'absl', 'ml_collections'} & set(sys.modules);"
    " assert not heavy, heavy; pgjax.UserError; assert 'jax' not in sys.modules;"
    " pgjax.load; assert 'jax' in sys.modules; assert not hasattr(pgjax, 'trian')"
  )
  subprocess.run([sys.executable, "-c", program], check=True, cwd=pathlib.Path(__file__).parents[2])


@pytest.mark.parametrize(
  "settings",
  [
    dict(),
    pytest.param(dict(grammar="boxes", max_decode_len=12), marks=pytest.mark.long),
    pytest.param(dict(decode="nucleus(0.9)", seed=3, max_decode_len=7), marks=pytest.mark.long),
  ],
)
def test_answers_are_those_of_predict(model, folder, picture, capsys, settings):
  prompt = "detect cat"
  answer = model.answer(picture, prompt, **settings)
  flags = [f"--{name}={value}" for name, value in settings.items()]
  expected = printed(capsys, f"--ckpt={folder}", f"--image={picture}", f"--prompt={prompt}", *flags)
  assert list(answer.tokens) == [token["id"] for token in expected["tokens"]]
  assert list(answer.token_logps) == [token["logp"] for token in expected["tokens"]]
  assert (answer.text, answer.logp) == (expected["answer"], expected["logp"])
  assert (answer.prompt, answer.ended) == (expected["prompt"], expected["ended"])
  assert list(answer.image_size) == expected["image_size"] == [60, 48]
  assert len(answer.boxes) == len(expected["objects"])
  for box, of_json in zip(answer.boxes, expected["objects"], strict=True):
    assert (box.label, box.score) == (of_json["label"], of_json["score"])
    assert box.xyxy == pytest.approx(of_json["box"], abs=0.006)


def test_an_image_may_be_a_path_bytes_a_pil_image_or_an_array(model, picture):
  opened = Image.open(picture)
  forms = [str(picture), picture, picture.read_bytes(), opened, np.asarray(opened)]
  rgba = Image.open(picture).convert("RGBA")
  answers = [model.answer(image, "what?") for image in [*forms, rgba]]
  assert len({(a.tokens, a.token_logps) for a in answers}) == 1
  assert (
    model.answer(np.zeros((48, 60, 3), np.uint8), "what?").token_logps != answers[0].token_logps
  )


def test_a_batch_gets_the_answers_of_each_question(model, picture):
  images = [picture, *(Image.new("RGB", (50, 50), (9 * i, 99, 199)) for i in range(11))]
  questions = [(image, f"what is {i}?") for i, image in enumerate(images)]
  together = model.answer_batch(questions, batch_size=8, max_decode_len=6)
  assert [answer.prompt for answer in together] == [prompt for _, prompt in questions]
  for question, answer in zip(questions, together, strict=True):
    single = model.answer(*question, max_decode_len=6)
    assert single.tokens == answer.tokens
    np.testing.assert_allclose(single.token_logps, answer.token_logps, atol=1e-5)
  assert model.answer_batch([]) == []


@pytest.mark.slow
def test_several_images_are_one_question(tmp_path, root, capsys):
  folder = small_checkpoint.write(tmp_path / "frames", root, num_frames=3)
  colours = [(255, 0, 0), (0, 0, 255)]
  frames = [Image.new("RGB", (48, 48), colour) for colour in colours]
  for i, frame in enumerate(frames):
    frame.save(tmp_path / f"{i}.png")
  model = pgjax.load(folder)
  answer = model.answer(frames, "what?")
  flags = [f"--image={tmp_path}/{i}.png" for i in range(2)]
  expected = printed(capsys, f"--ckpt={folder}", "--prompt=what?", *flags)
  assert list(answer.token_logps) == [token["logp"] for token in expected["tokens"]]
  assert model.answer(frames[::-1], "what?").logp != answer.logp
  assert answer.draw().size == (672, 672)
  assert model.logprobs(frames, "what?", [answer])[0] == pytest.approx(answer.logp, abs=1e-5)


def test_the_log_probability_of_the_greedy_answer_is_its_own(model, picture):
  answer = model.answer(picture, "what is it?", max_decode_len=9)
  totals, among = model.logprobs(picture, "what is it?", [answer, "yes"]), None
  [among, other] = model.token_logprobs(picture, "what is it?", [answer, "yes"])
  assert totals[0] == pytest.approx(answer.logp, abs=1e-5)
  np.testing.assert_allclose(among, answer.token_logps, atol=1e-5)
  assert sum(other) == totals[1]
  assert model.logprobs(picture, "what is it?", []) == []


@pytest.mark.long
def test_log_probabilities_are_those_of_the_whole_logits(model, folder, picture):
  """As the model itself has them, a row at a time and without padding; some are longer than 16."""
  opened = model._answerer.opened  # noqa: SLF001
  source, tokenizer = source_lib.open_source(folder), opened.tokenizer
  arrays = {name: jnp.asarray(leaf.whole()) for name, leaf in source.leaves.items()}
  variables = {"params": param_tree.unflatten(arrays)}
  module = paligemma.Model(**opened.config.model)
  pixels = np.asarray(Image.open(picture).resize((48, 48), Image.Resampling.NEAREST))
  image = jnp.asarray(pixels / np.float32(127.5) - 1)[None]
  answers = ["yes", "", "yes yes " * 6, *"abcdefgh"]  # More than a batch.
  results = model.token_logprobs(pixels, "what is it?", answers)
  assert len(results) == len(answers)
  for answer, logps in zip(answers[:4], results, strict=False):
    prompt = [tokenizer.bos, *tokenizer.encode("what is it?"), tokenizer.newline]
    suffix = [*tokenizer.encode(answer), tokenizer.eos]
    text = jnp.array([prompt + suffix])
    mask_ar = (jnp.arange(text.shape[1]) >= len(prompt)).astype(jnp.int32)[None]
    logits, _ = module.apply(variables, image, text[:, :-1], mask_ar[:, :-1])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), text[:, 1:, None], axis=-1)[0, :, 0]
    np.testing.assert_allclose(logps, chosen[len(prompt) - 1 :], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_quantized_it_answers_as_predict_does_quantized(folder, picture, capsys, quantize):
  answer = pgjax.load(folder, quantize=quantize).answer(picture, "what?")
  flags = [f"--ckpt={folder}", f"--image={picture}", "--prompt=what?", f"--quantize={quantize}"]
  expected = printed(capsys, *flags)
  assert [(t["id"], t["logp"]) for t in expected["tokens"]] == list(
    zip(answer.tokens, answer.token_logps, strict=True)
  )


@pytest.mark.long
def test_dtype_is_that_of_computation_and_of_float32_parameters(folder, model, picture, tmp_path):
  answers = {}
  for dtype in ("float32", "bfloat16"):
    loaded = pgjax.load(folder, dtype=dtype)
    stored = {leaf.dtype.name for leaf in jax.tree.leaves(loaded._answerer.params)}  # noqa: SLF001
    assert (stored, loaded._answerer.model.dtype) == ({dtype}, dtype)  # noqa: SLF001
    answers[dtype] = loaded.answer(picture, "what?", grammar="one_of('yes')")
  own = model.answer(picture, "what?", grammar="one_of('yes')")
  assert answers["float32"] == own
  assert 0 < abs(answers["bfloat16"].logp - own.logp) < 0.2


@pytest.mark.long
def test_fewer_devices_answer_the_same(folder, model, picture):
  one = pgjax.load(folder, devices=1)
  assert repr(one) == f"<pgjax model {folder} on 1 x cpu>"
  answer = one.answer(picture, "what?")
  assert answer.tokens == model.answer(picture, "what?").tokens
  assert one.logprobs(picture, "what?", [answer])[0] == pytest.approx(answer.logp, abs=1e-5)


def drawn(image, text):
  objects = locations.parse(text).objects
  return answer_lib.Answer("segment cat", text, (5,), (-0.5,), False, (80, 40), image, objects)


TEXT = (
  "<loc0000><loc0000><loc1023><loc0511>" + "".join(f"<seg{i:03d}>" for i in range(16)) + " cat ; "
  "<loc0256><loc0512><loc0767><loc1023> a <dog>"
)


def test_masks_are_as_large_as_the_image_and_need_their_weights(tmp_path, monkeypatch, caplog):
  seg_vae_npz.load.cache_clear()
  monkeypatch.delenv("PGJAX_WEIGHTS_DIR", raising=False)
  answer = drawn(np.full((40, 80, 3), 200, np.uint8), TEXT)
  with pytest.raises(pgjax.UserError, match="The weights of masks, 'oi', are not there"):
    answer.masks  # noqa: B018
  with caplog.at_level(logging.WARNING):
    without = answer.draw()
  assert "Masks are not drawn, only their boxes." in caplog.text
  assert drawn(None, "no object").masks == ()
  monkeypatch.setenv("PGJAX_WEIGHTS_DIR", str(tmp_path))
  seg_vae_npz.save(
    tmp_path / seg_vae_npz.FILE, seg_vae.init(jax.random.key(0), width=8, embed_dim=8)
  )
  [mask] = answer.masks
  assert (mask.label, mask.mask.shape, mask.mask.dtype) == ("cat", (40, 80), bool)
  assert mask.mask[:, :39].any()
  assert not mask.mask[:, 41:].any()
  assert mask.xyxy == answer.boxes[0].xyxy == pytest.approx((0, 0, 39.96, 40), abs=0.01)
  assert np.any(np.asarray(answer.draw()) != np.asarray(without))
  seg_vae_npz.load.cache_clear()


def test_a_notebook_shows_the_picture_and_the_texts_as_texts(picture):
  page = drawn(picture, "<loc0256><loc0512><loc0767><loc1023> a <dog>")._repr_html_()
  assert 'src="data:image/' in page
  assert "&lt;loc0256&gt;" in page
  assert "<dog>" not in page
  assert "probability 0.607" in page


def test_results_cannot_be_changed(model, picture):
  with pytest.raises(dataclasses.FrozenInstanceError):
    model.answer(picture, "what?").text = "other"


IMAGE = np.zeros((8, 8, 3), np.uint8)
FLOATS = np.zeros((8, 8, 3))


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (dict(image="none.png"), "this question: none.png cannot be read: No such file or directory"),
    (dict(image=b"no picture"), "this question: the image cannot be decoded (cannot identify"),
    (dict(image=FLOATS), "or a list of these, not ndarray of float64 [8, 8, 3]"),
    (dict(image=IMAGE[:, :, 0]), "or a list of these, not ndarray of uint8 [8, 8]"),
    (dict(image=IMAGE[:0]), "or a list of these, not ndarray of uint8 [0, 8, 3]"),
    (dict(image=None), "an image must be a path, the bytes of a file, a PIL image"),
    (dict(image=[]), "or a list of these, not list"),
    (dict(image=[IMAGE, IMAGE]), "there are 2 images, and this checkpoint takes 1"),
    (dict(prompt=3), "this question: prompt=3 must be text."),
    (dict(prompt="long " * 20), "the prompt has 63 tokens, with <bos>"),
    (dict(decode="fast"), "decode: there is no 'fast'"),
    (dict(decode=1), "decode=1 must be text; see docs/decoding.md."),
    (dict(grammar="box"), "grammar: there is no 'box'"),
    (dict(max_decode_len=0), "max_decode_len=0 must be from 1 to"),
    (dict(max_decode_len=True), "max_decode_len=True must be a whole number"),
    (dict(seed=2**70), "must be from 0 to 4294967295."),
  ],
)
def test_a_mistake_in_a_question_is_a_sentence(model, arguments, sentence):
  with pytest.raises(pgjax.UserError) as error:
    model.answer(**(dict(image=IMAGE, prompt="what?") | arguments))
  assert sentence in str(error.value)
  assert not str(error.value).startswith("--")


@pytest.mark.parametrize(
  ("call", "sentence"),
  [
    (lambda m: m.answer_batch("a.png"), "questions='a.png' must be a list of pairs"),
    (lambda m: m.answer_batch([IMAGE]), "questions[0] must be a pair (image, prompt), not array"),
    (lambda m: m.answer_batch([(IMAGE, "a"), ("b", "a")]), "questions[1]: b cannot be read"),
    (lambda m: m.answer_batch([(IMAGE, 1)]), "questions[0]: prompt=1 must be text."),
    (lambda m: m.answer_batch([(IMAGE, "a")], batch_size=0), "batch_size=0 must be from 1"),
    (lambda m: m.logprobs(IMAGE, "a", "yes"), "answers='yes' must be a list of texts"),
    (lambda m: m.logprobs(IMAGE, "a", ["yes", 1]), "answers[1]=1 must be a text or an Answer."),
    (lambda m: m.logprobs(FLOATS, "a", ["yes"]), "this question: an image must be"),
    (lambda m: pgjax.load("none"), "There is no checkpoint 'none'"),
    (lambda m: pgjax.load(3), "ckpt=3 must be a path or a name"),
    (lambda m: pgjax.load(m.checkpoint, dtype="float64"), "dtype='float64' must be one of float32"),
    (lambda m: pgjax.load(m.checkpoint, quantize="int2"), "quantize=int2 must be one of nf4, int8"),
    (lambda m: pgjax.load(m.checkpoint, step="7"), "step='7' must be a whole number"),
    (lambda m: pgjax.load(m.checkpoint, step=8), "step=8 cannot be chosen there"),
    (lambda m: pgjax.load(m.checkpoint, ema=1), "ema=1 must be True or False."),
    (lambda m: pgjax.load(m.checkpoint, devices=9), "devices=9 must be from 1 to 8."),
    (
      lambda m: pgjax.load(m.checkpoint, mesh=3),
      "mesh=3 must be the name of a preset, or its axes.",
    ),
    (lambda m: pgjax.load(m.checkpoint, devices=4, mesh=[("data", 8)]), "does not fit 4 devices"),
    (lambda m: pgjax.fit(3, "w"), "config=3 must be text such as"),
    (lambda m: pgjax.fit("none.py", "w"), "config=none.py: there is no file none.py."),
    (lambda m: pgjax.fit({}, "w"), "config.input lacks data, pp"),
    (lambda m: pgjax.fit(dict(evals=3), "w"), "config.evals=3 must be"),
    (lambda m: pgjax.fit(CONFIG, "w", evals__val=3), "config.evals['val']=3 must be a dict"),
    (lambda m: pgjax.fit(dict(input=3), "w"), "config.input=3 must be"),
    (lambda m: pgjax.fit(CONFIG, 3), "workdir=3 must be a path"),
    (lambda m: pgjax.fit(CONFIG, "/dev/null/x"), "workdir=/dev/null/x cannot be written"),
    (lambda m: pgjax.fit(CONFIG, "w", input__batchsize=8), "config.input.batchsize: there is no"),
    (lambda m: pgjax.score(m.checkpoint, 3), "out=3 must be a path"),
    (lambda m: pgjax.score(m.checkpoint, "w", evals="("), "evals: '(' is not a regular expression"),
    (lambda m: pgjax.score(m.checkpoint, "w", evals=["val"]), "evals: a pattern must be a string"),
    (lambda m: pgjax.score(m.checkpoint, "w", evals="x"), "No evaluator of this config matches"),
    (lambda m: pgjax.score(m.checkpoint, "w", quantize=[]), "quantize=[] must be one of nf4"),
    (lambda m: pgjax.score(m.checkpoint, "w", ema=None), "ema=None must be True or False."),
    (lambda m: pgjax.score(m.checkpoint, "w", lr="x"), "config.lr=x cannot be read"),
  ],
)
def test_a_mistake_in_another_argument_is_a_sentence(model, tmp_path, monkeypatch, call, sentence):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(pgjax.UserError) as error:
    call(model)
  assert sentence in str(error.value)
  assert not str(error.value).startswith("--")


CONFIG = str(pathlib.Path(__file__).parents[2] / "configs/easyvqa.py")


def test_commands_that_an_error_quotes_keep_their_flags():
  text = "--step=3 is wrong: python -m pgjax.prepare chartqa --raw=FOLDER"
  with pytest.raises(pgjax.UserError) as error, arguments.named_as_in_python():
    raise pgjax.UserError(text)
  assert str(error.value) == text.removeprefix("--")


def metrics_of(folder):
  """metrics.json without what differs from one second or folder to the next."""
  metrics = json.loads((pathlib.Path(folder) / "metrics.json").read_text())
  for facts in metrics["about"]["evals"].values():
    del facts["seconds"]
  return metrics


@pytest.mark.slow
def test_scores_are_those_of_evaluate(folder, tmp_path):
  scored = pgjax.score(folder, tmp_path / "python", evals="test")
  assert run(evaluate, f"--ckpt={folder}", f"--out={tmp_path}/command", "--evals=test") == 0
  assert metrics_of(tmp_path / "python") == metrics_of(tmp_path / "command")
  command = (tmp_path / "command/predictions.jsonl").read_text()
  assert scored.predictions.read_text() == command
  assert scored.report.is_file()
  assert scored.metrics == {n: metrics_of(tmp_path / "command")[n] for n in scored.metrics}
  assert scored.metrics["test/num"] == 20
  cut = pgjax.score(
    folder,
    tmp_path / "cut",
    evals="test",
    evals__test__data=dict(name="easy_vqa", split="test[:8]"),
  )
  assert cut.metrics["test/num"] == 8
