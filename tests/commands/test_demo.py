"""The demo: what its button does, and the page itself in a browser, where Gradio is installed."""

import html
import importlib.util
import re
import socket
import subprocess
import sys
import time

import pytest
from PIL import Image

from pgjax import demo
from pgjax.data import locations, tokenizer
from pgjax.errors import UserError
from pgjax.inference import decoder_cache, engine
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


def test_an_upload_that_is_not_an_image_raises(answerer, tmp_path):
  file = tmp_path / "file"
  for content, sentence in (
    (b"no picture", "cannot be decoded"),
    (huge_png(20_000, 10_000), "200,000,000 pixels"),
    (bytes(demo.MOST_BYTES + 1), "20,971,521 bytes; at most 20,971,520"),
  ):
    file.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
      demo.asked(answerer, str(file), "what?", SETTINGS)
  with pytest.raises(UserError, match="Upload an image first"):
    demo.asked(answerer, None, "what?", SETTINGS)
  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  with pytest.raises(UserError, match="the prompt has"):
    demo.asked(answerer, str(tmp_path / "a.png"), "long " * 30, SETTINGS)


def test_an_answer_comes_with_its_picture_and_the_probability_of_each_token(answerer, tmp_path):
  Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
  boxes = SETTINGS._replace(grammar='boxes(labels=["cat"])')
  text, _, tokens = demo.asked(answerer, str(tmp_path / "a.png"), "detect cat", boxes)
  shown = re.findall(r"<span><bdi>(.*?)</bdi><small>[\d.]+%</small></span>", tokens)
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
  assert page.count("60.7%") == len(ids)
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
