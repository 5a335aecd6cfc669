"""Serves a local web page to try a checkpoint: an image, a prompt, the answer.

It draws the answer's boxes and masks, and shows each token with its probability. The page uses
Gradio (requirements-demo.txt), is reachable only from this machine, and sends nothing elsewhere.
Only the page itself may ask, and only about images that were uploaded to it.
"""

from __future__ import annotations

if __name__ == "__main__":  # Before the imports below, which take a moment.
  from pgjax.distributed import signals

  signals.begin()

import atexit
import contextlib
import functools
import html
import logging
import math
import os
import pathlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from etils import epy

from pgjax import cache_dir, cli
from pgjax.checkpoints import resolve
from pgjax.distributed import signals
from pgjax.errors import UserError, printable
from pgjax.web import guard

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  from pgjax.config import decode_method
  from pgjax.data import images
  from pgjax.data.sources import memory
  from pgjax.inference import decoder_cache, engine, example_prompts, grammar
  from pgjax.visualization import images as draw_images

log = logging.getLogger("pgjax")

MOST_BYTES = 20 << 20
MOST_PIXELS = 24_000_000  # Of an upload: about two seconds of work.
MOST_TEXT = 4_000  # Characters of a prompt, a method or a grammar.
MOST_BRANCHES = 16  # Of beam and best_of.
HOST = "127.0.0.1"
METHODS = ("greedy", "beam(3)", "nucleus(0.9)", "temperature(0.7)", "best_of(4, nucleus(0.9))")
LENGTHS = (8, 16, 32, 64, 128, 256)  # Few, because each is compiled.
_START_SECONDS = 60
_STYLE = """
.tokens { line-height: 2.8; overflow-wrap: anywhere; }
.tokens span { display: inline-block; padding: 0 .2rem; margin: 0 .1rem; line-height: 1.5;
  white-space: pre; vertical-align: top; }
.tokens meter { display: block; width: 100%; min-width: 1.6rem; height: .45rem; }
.tokens small { display: block; font-size: .7rem; opacity: .75; }
"""


def main(args: Any) -> None:
  """Serves until it is interrupted."""
  cache_dir.use_compilation_cache()
  gradio = imported()
  if not 1 <= args.port <= 65_535:
    raise UserError(f"--port={args.port} must be a number from 1 to 65535.")
  check_port(args.port)
  choices = dict(base=args.base, weights=args.weights, resize=args.resize)
  opened = engine.open_checkpoint(
    args.ckpt, args.step, quantize=args.quantize, ema=args.ema, **choices
  )
  for note in opened.notes:
    log.info(note)
  answerer = engine.Engine(opened)
  with serving(gradio, answerer, args.port):
    log.info("http://%s:%d answers from %s; Ctrl-C ends it.", HOST, args.port, opened.source.name)
    threading.Event().wait()


def imported() -> Any:
  """Gradio, with telemetry switched off before it is imported, and its own folder of uploads."""
  os.environ |= dict(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
  os.environ["GRADIO_TEMP_DIR"] = upload_folder()
  try:
    import gradio
  except ImportError:
    raise UserError("pgjax.demo needs Gradio: pip install -r requirements-demo.txt.") from None
  return gradio


def check_port(port: int) -> None:
  """Raises if another program uses the port, before weights are read."""
  listening(port).close()


def listening(port: int) -> socket.socket:
  """A server's socket on this machine only; port 0 takes any free one."""
  try:
    return socket.create_server((HOST, port))
  except OSError as error:
    raise UserError(f"--port={port} cannot be used ({error}); choose another.") from None


@functools.cache
def upload_folder() -> str:
  """Where this process stores uploads; only this user may read it, and it is removed at the end."""
  folder = tempfile.mkdtemp(prefix="pgjax-demo-")
  remove = functools.partial(shutil.rmtree, folder, ignore_errors=True)
  atexit.register(remove)
  signals.of_process().clean_up.append(remove)
  return folder


@contextlib.contextmanager
def serving(gradio: Any, answerer: engine.Engine, port: int) -> Iterator[int]:
  """Serves the page from a thread, behind its guard, without contacting another machine.

  Gives the port; 0 takes any free one.
  """
  import uvicorn  # Comes with Gradio.

  server_socket = listening(port)
  port = server_socket.getsockname()[1]
  uploads = guard.Uploads(pathlib.Path(upload_folder()), MOST_BYTES)
  app = guard.Guard(application(gradio, page(gradio, answerer, uploads)), uploads, HOST, port)
  server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
  thread = threading.Thread(target=server.run, args=([server_socket],), daemon=True)
  thread.start()
  deadline = time.monotonic() + _START_SECONDS
  while not server.started:
    if not thread.is_alive() or time.monotonic() > deadline:
      raise UserError("The page could not be started; the lines above say why.")
    time.sleep(0.05)
  try:
    yield port
  finally:
    server.should_exit = True
    thread.join(5)


def application(gradio: Any, blocks: Any) -> Any:
  """The page as a web application."""
  import fastapi

  fonts = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
  return gradio.mount_gradio_app(
    fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
    blocks,
    path="",
    max_file_size=MOST_BYTES,
    ssr_mode=False,
    footer_links=[],
    run_history=False,
    show_error=False,
    theme=gradio.themes.Base(**fonts),
    css=_STYLE,
  )


def page(gradio: Any, answerer: engine.Engine, uploads: guard.Uploads) -> Any:
  """The components, and the button's action."""
  settings, source = answerer.opened.settings, answerer.opened.source
  name = f"{source.name}, step {source.run.step}" if source.run else source.name
  methods = list(dict.fromkeys([settings.decode, *METHODS]))
  prompts = example_prompts.of(answerer.opened)
  with gradio.Blocks(title="pgjax", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
    gradio.Markdown(f"# pgjax: {_plain(name)}")
    with gradio.Row():
      with gradio.Column():
        image = gradio.Image(label="Image", type="filepath", sources=["upload", "clipboard"])
        # Gradio would decode the file here, before its size could be refused in a sentence.
        image.preprocess = lambda payload: payload and payload.path
        prompt = gradio.Textbox(label="Prompt", lines=1, max_lines=4)
        gradio.Examples([[text] for text in prompts], prompt, label="Prompts of the run")
        with gradio.Accordion("Advanced", open=False):
          with gradio.Row():
            own = dict(value=settings.decode, allow_custom_value=True)
            method = gradio.Dropdown(methods, label="Method", **own)
            most = dict(value=settings.max_decode_len, label="Most tokens")
            length = gradio.Dropdown(lengths(settings), **most)
          grammar_box = gradio.Textbox(
            label='Grammar (none, boxes, json, one_of("yes", "no"), ...)'
          )
        button = gradio.Button("Answer", variant="primary")
      with gradio.Column():
        answer = gradio.Textbox(label="Answer", lines=3, interactive=False)
        tokens = gradio.HTML(label="Tokens")
        drawn = gradio.Image(label="Boxes and masks", type="pil", interactive=False, visible=False)

    def ask(path, text, how, most, rule, request):
      try:
        chosen = chosen_settings(settings, how, most, rule)
        check_prompt(text)
        if path is None:
          raise UserError("Upload an image first.")
        encoded = uploads.read(path, guard.owner_of(request.headers))
        shown, marked, spans = asked(answerer, encoded, text, chosen)
        return shown, spans, gradio.update(value=marked, visible=marked is not None)
      except UserError as error:
        options = dict(duration=None, title="Not answered", print_exception=False)
        raise gradio.Error(html.escape(str(error)), **options) from None

    ask.__annotations__["request"] = gradio.Request  # Gradio passes it by its type.
    inputs, outputs = [image, prompt, method, length, grammar_box], [answer, tokens, drawn]
    button.click(ask, inputs, outputs)
    prompt.submit(ask, inputs, outputs)
  return blocks


def lengths(settings: decoder_cache.Settings) -> list[int]:
  """The numbers of tokens that may be chosen."""
  return sorted({settings.max_decode_len, *LENGTHS})


def chosen_settings(
  own: decoder_cache.Settings, how: Any, most: Any, rule: Any
) -> decoder_cache.Settings:
  """What a request asks for, within the bounds of the page; raises UserError for anything else."""
  if (
    not isinstance(how, str)
    or not isinstance(rule, str | None)
    or max(len(how), len(rule or "")) > MOST_TEXT
  ):
    raise UserError(f"Method and grammar are texts of up to {MOST_TEXT:,} characters.")
  if most not in lengths(own) or isinstance(most, bool):
    raise UserError(f"Most tokens must be one of {', '.join(map(str, lengths(own)))}.")
  method = decode_method.parse(how, "Method")
  if how != own.decode and method.branches > MOST_BRANCHES:
    raise UserError(f"{how}: this page generates at most {MOST_BRANCHES} answers at once.")
  rule = (rule or "").strip()
  if rule:
    grammar.parse(rule, "Grammar", files=False)
  return decoder_cache.Settings(how, int(most), rule or None)


def check_prompt(text: Any) -> None:
  """Raises UserError unless it is text of a bounded length; its tokens are counted later."""
  if not isinstance(text, str) or len(text) > MOST_TEXT:
    raise UserError(f"The prompt must be text of up to {MOST_TEXT:,} characters.")


def asked(
  answerer: engine.Engine, encoded: bytes, prompt: str, settings: decoder_cache.Settings
) -> tuple[str, Any, str]:
  """(answer, picture with its boxes and masks or None, tokens as HTML) for an encoded image."""
  opened = answerer.opened
  if len(encoded) > MOST_BYTES:
    raise UserError(f"The file has {len(encoded):,} bytes; at most {MOST_BYTES:,} are accepted.")
  width, height = images.size(encoded)
  if width * height > MOST_PIXELS:
    raise UserError(
      f"The image has {width:,} x {height:,} = {width * height:,} pixels; at most {MOST_PIXELS:,}"
      " are accepted here: shrink it, or use pgjax.predict."
    )
  question = memory.InMemory([dict(image=encoded, prefix=prompt)], ["This question"])
  questions = engine.loader(opened, question)
  engine.check(opened, questions, settings)
  [answer] = answerer.answers(questions, settings, 1)
  parsed = engine.objects_of(opened, answer)
  return printable(answer.text), picture(encoded, parsed), shown(opened, answer)


def picture(encoded: bytes, parsed: Any) -> Any:
  """The image with the answer's objects; None without objects."""
  if not parsed.objects:
    return None
  return draw_images.with_objects(images.decode(encoded), parsed.objects)


def shown(opened: engine.OpenCheckpoint, answer: engine.Answer) -> str:
  """Each token above its probability, as a bar and as a number."""
  spans = []
  for token, logp in zip(answer.tokens, answer.logp, strict=True):
    piece = html.escape(opened.tokenizer.piece(token))
    likely = min(1.0, math.exp(logp))
    bar = f'<meter value="{likely:.4f}"></meter>'
    spans.append(f"<span><bdi>{piece}</bdi>{bar}<small>{likely:.1%}</small></span>")
  whole = math.exp(sum(answer.logp))
  return f'<div class="tokens">{"".join(spans)}</div><p>Probability of the answer: {whole:.3g}</p>'


def _plain(text: str) -> str:
  """With Markdown and HTML escaped."""
  return "".join(c if c.isalnum() or c in " -.:" else "\\" + c for c in html.escape(text))


FLAGS = [
  cli.Flag("ckpt", str, required=True, help=f"what answers; {resolve.ALLOWED}"),
  cli.Flag("port", int, 7860, help=f"port of the page on {HOST}"),
  cli.Flag("resize", str, help="bicubic, antialias or bilinear; else the checkpoint's own"),
  cli.QUANTIZE,
  cli.STEP,
  cli.BASE,
  cli.WEIGHTS,
  cli.EMA,
]
CONFIG = "none"
EXAMPLES = ["python -m pgjax.demo --ckpt=/tmp/easyvqa", "python -m pgjax.demo --ckpt=w --port=8000"]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
