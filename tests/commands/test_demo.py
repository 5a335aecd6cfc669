"""The demo: what its button does, and the page itself in a browser, where Gradio is installed."""

import html
import importlib.util
import io
import itertools
import json
import re
import socket
import subprocess
import sys
import time

import ml_collections
import pytest
from PIL import Image

from pgjax import demo
from pgjax.data import locations, tokenizer
from pgjax.errors import UserError
from pgjax.inference import decoder_cache, engine, example_prompts
from tests import small_checkpoint
from tests.browser import Browser, needs_chromium
from tests.commands.test_predict import huge_png

needs_gradio = pytest.mark.skipif(
  importlib.util.find_spec("gradio") is None, reason="Gradio (requirements-demo.txt) is missing"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, root):
  return small_checkpoint.write(tmp_path_factory.mktemp("demo") / "full", root)


@pytest.fixture(scope="module")
def answerer(checkpoint):
  return engine.Engine(engine.open_checkpoint(checkpoint))


SETTINGS = decoder_cache.Settings("greedy", 12)


def test_without_gradio_it_raises_a_user_error(monkeypatch):
  monkeypatch.setitem(sys.modules, "gradio", None)
  with pytest.raises(UserError, match=r"pip install -r requirements-demo\.txt"):
    demo.imported()


def png(width=8, height=8):
  file = io.BytesIO()
  Image.new("RGB", (width, height), (200, 30, 30)).save(file, "PNG")
  return file.getvalue()


def test_an_upload_that_is_not_an_image_raises(answerer):
  for content, sentence in (
    (b"no picture", "cannot be decoded"),
    (huge_png(20_000, 10_000), "200,000,000 pixels"),
    (huge_png(9_460, 9_459), r"9,460 x 9,459 = 89,482,140 pixels|89,482,140 pixels"),
    (huge_png(6_001, 4_000), "6,001 x 4,000 = 24,004,000 pixels; at most 24,000,000"),
    (bytes(demo.MOST_BYTES + 1), "20,971,521 bytes; at most 20,971,520"),
  ):
    with pytest.raises(UserError, match=sentence):
      demo.asked(answerer, content, "what?", SETTINGS)
  with pytest.raises(UserError, match="the prompt has"):
    demo.asked(answerer, png(), "long " * 30, SETTINGS)


@pytest.mark.parametrize(
  ("how", "most", "rule", "sentence"),
  [
    ("beam(17)", 8, "", "at most 16 answers at once"),
    ("best_of(1000000, nucleus(0.9))", 8, "", "from 1 to 1024"),
    ("best_of(1024, nucleus(0.9))", 8, "", "at most 16 answers at once"),
    ("x" * 5000, 8, "", "texts of up to 4,000 characters"),
    ("greedily", 8, "", "Method: there is no 'greedily'"),
    (["greedy"], 8, "", "texts of up to"),
    (None, 8, "", "texts of up to"),
    ("greedy", 10**9, "", "Most tokens must be one of 8, 12, 16"),
    ("greedy", "8", "", "Most tokens must be one of"),
    ("greedy", True, "", "Most tokens must be one of"),
    ("greedy", None, "", "Most tokens must be one of"),
    ("greedy", 8.5, "", "Most tokens must be one of"),
    ("greedy", 8, 'json(schema="/etc/passwd")', "a file cannot be named here"),
    ("greedy", 8, "json('/etc/passwd')", "a file cannot be named here"),
    ("greedy", 8, 'json(schema="/x", fields=["a"])', "a file cannot be named here"),
    ("greedy", 8, "json" + " " * 5000, "texts of up to"),
    ("greedy", 8, "jsn", "there is no 'jsn'"),
  ],
  ids=itertools.count(),
)
def test_a_request_has_bounds_and_names_no_file(how, most, rule, sentence):
  with pytest.raises(UserError, match=sentence):
    demo.chosen_settings(SETTINGS, how, most, rule)


def test_what_the_page_offers_is_within_its_bounds():
  for method in demo.METHODS:
    for length in demo.lengths(SETTINGS):
      chosen = demo.chosen_settings(SETTINGS, method, length, " boxes ")
      assert chosen == decoder_cache.Settings(method, length, "boxes")
  assert demo.chosen_settings(SETTINGS, "greedy", 8.0, None).max_decode_len == 8
  wide = decoder_cache.Settings("beam(32)", 8)
  assert demo.chosen_settings(wide, "beam(32)", 8, "").decode == "beam(32)"  # The run's own.


def test_a_prompt_is_text_of_a_bounded_length():
  demo.check_prompt("x" * 4000)
  for odd in (None, 3, ["x"], "x" * 4001):
    with pytest.raises(UserError, match="The prompt must be text of up to 4,000 characters"):
      demo.check_prompt(odd)


def test_the_prompts_offered_are_those_of_the_run(answerer, tmp_path):
  opened = answerer.opened
  prompts = example_prompts.of(opened)  # Of the data of config.evals: easy-VQA.
  assert len(prompts) == len(set(prompts)) == example_prompts.MOST
  assert all(any(word in p for word in ("shape", "color", "circle", "red", "a ")) for p in prompts)
  step = tmp_path / "w/checkpoints/7"
  file = tmp_path / "w/evals/val/predictions.jsonl"
  file.parent.mkdir(parents=True)
  rows = [dict(prompt=p) for p in ("is it?", "is it?", "what is the colour?", "x" * 300, "a\x1b")]
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  run = opened.source.run._replace(path=step)
  own = opened._replace(source=opened.source._replace(run=run))
  assert example_prompts.of(own) == ["is it?", "what is the colour?"]
  file.write_text("[]\nnot json\n")
  assert example_prompts.of(own) == prompts
  bare = opened._replace(config=ml_collections.ConfigDict({**opened.config, "evals": {}}))
  assert example_prompts.of(bare) == list(example_prompts.GENERAL)


def test_an_answer_comes_with_its_picture_and_the_probability_of_each_token(answerer):
  boxes = SETTINGS._replace(grammar='boxes(labels=["cat"])')
  text, _, tokens = demo.asked(answerer, png(64, 32), "detect cat", boxes)
  bar = r"<meter value=\"[\d.]+\"></meter>"
  shown = re.findall(rf"<span><bdi>(.*?)</bdi>{bar}<small>[\d.]+%</small></span>", tokens)
  assert "".join(map(html.unescape, shown)).replace("\u2581", " ") == f"{text}<eos>"
  assert "<loc" in text
  assert "<loc" not in tokens


def test_boxes_are_drawn_on_the_upload_and_masks_only_with_their_weights(tmp_path, monkeypatch):
  monkeypatch.delenv("PGJAX_WEIGHTS_DIR", raising=False)
  Image.new("RGB", (640, 320)).save(tmp_path / "a.png")
  encoded = (tmp_path / "a.png").read_bytes()
  box = "<loc0100><loc0100><loc0900><loc0900>"
  mask = "".join(f"<seg{i:03d}>" for i in range(16))
  pictures = [demo.picture(encoded, locations.parse(t)) for t in (f"{box} a", f"{box}{mask} a")]
  assert pictures[0].size == (640, 320)
  assert pictures[0].getbbox() is not None
  assert pictures[0].tobytes() == pictures[1].tobytes()
  assert demo.picture(encoded, locations.parse("nothing")) is None


def test_tokens_are_escaped_and_add_up(checkpoint):
  opened = engine.open_checkpoint(checkpoint)
  ids = tokenizer.load("tiny").encode("<b>&")
  page = demo.shown(opened, engine.Answer("p", "<b>&", ids, [-0.5] * len(ids)))
  assert "<b>" not in page
  assert page.count("60.7%") == page.count('<meter value="0.6065">') == len(ids)
  assert f"{2.718281828 ** (-0.5 * len(ids)):.3g}" in page


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


@pytest.fixture(scope="module")
def served(checkpoint, root):
  """The address of the demo, as a program of its own."""
  port = free_port()
  argv = [sys.executable, "-m", "pgjax.demo", f"--ckpt={checkpoint}", f"--port={port}"]
  process = subprocess.Popen(argv, cwd=root, stderr=subprocess.PIPE, text=True)
  lines = []
  for line in process.stderr:
    lines.append(line)
    if "answers from" in line:
      break
  assert lines, "the demo printed nothing"
  assert "answers from" in lines[-1], "".join(lines)
  yield f"http://127.0.0.1:{port}"
  process.terminate()
  process.communicate()


@needs_gradio
@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_the_page_answers_an_upload_and_contacts_nobody_else(served, tmp_path, width, phone):
  Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "a.png")
  with Browser(width, phone=phone) as browser:
    open_page(browser, served)
    upload(browser, tmp_path / "a.png")
    browser.wait_for("!!document.querySelector('[data-testid=image] img, .image-frame img')")
    ask(browser, "what shape is it?")
    browser.wait_for("document.querySelectorAll('.tokens span').length > 0", 120)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.outside(served) == []
    # Gradio's own client warns so each time an answer has come.
    assert [c for c in browser.complaints if "Method not implemented" not in c] == []


@needs_gradio
@needs_chromium
@pytest.mark.slow
def test_bad_uploads_get_a_sentence_on_the_page(served, tmp_path):
  (tmp_path / "huge.png").write_bytes(huge_png(20_000, 10_000))
  (tmp_path / "note.png").write_text("no picture")
  (tmp_path / "large.png").write_bytes(bytes(50 << 20))
  for name, sentence in (
    ("huge.png", "200,000,000 pixels"),
    ("note.png", "cannot be decoded"),
    ("large.png", "exceed the maximum allowed size"),
  ):
    with Browser() as browser:
      open_page(browser, served)
      upload(browser, tmp_path / name)
      if name != "large.png":
        time.sleep(2)
        ask(browser, "what is it?")
      browser.wait_for(f"document.body.innerText.includes({sentence!r})", 60)
      assert browser.outside(served) == []


def open_page(browser, address):
  browser.open(address)
  browser.wait_for("!!document.querySelector('input[type=file]')")


def upload(browser, path):
  browser.choose_files("input[type=file]", path)


def ask(browser, prompt):
  put = (
    "(e => { e.value = %r; e.dispatchEvent(new Event('input', {bubbles: true})); })"
    "(document.querySelector('textarea'))"
  )
  browser.run(put % prompt)
  browser.run("[...document.querySelectorAll('button')].find(b => b.innerText == 'Answer').click()")
