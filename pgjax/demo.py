"""Serves a local web page to try a checkpoint: an image, a prompt, the answer.

It draws the answer's boxes and masks, and shows each token with its probability. The page uses
Gradio (requirements-demo.txt), is reachable only from this machine, and sends nothing elsewhere.
"""

from __future__ import annotations

import html
import logging
import math
import os
import pathlib
import socket
import threading
from typing import Any

from etils import epy

from pgjax import cache_dir, cli
from pgjax.checkpoints import resolve
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  from pgjax.data import images
  from pgjax.data.sources import memory
  from pgjax.inference import decoder_cache, engine
  from pgjax.visualization import images as draw_images

log = logging.getLogger("pgjax")

MOST_BYTES = 20 << 20
HOST = "127.0.0.1"
METHODS = ("greedy", "beam(3)", "nucleus(0.9)", "temperature(0.7)", "best_of(4, nucleus(0.9))")
LENGTHS = (8, 16, 32, 64, 128, 256)  # Few, because each is compiled.
TASKS = ("caption en", "answer en what is this?", "detect cat ; dog", "segment cat", "ocr")
_STYLE = """
.tokens { line-height: 2.6; overflow-wrap: anywhere; }
.tokens span { display: inline-block; border-bottom: 3px solid; padding: 0 .2rem; margin: 0 .1rem;
  line-height: 1.5; white-space: pre; }
.tokens small { display: block; font-size: .7rem; opacity: .75; }
"""


def main(args: Any) -> None:
  """Serves until it is interrupted."""
  cache_dir.use_compilation_cache()
  gradio = imported()
  if not 1 <= args.port <= 65_535:
    raise UserError(f"--port={args.port} must be a number from 1 to 65535.")
  check_port(args.port)
  opened = engine.open_checkpoint(
    args.ckpt, args.step, quantize=args.quantize, ema=args.ema, base=args.base, weights=args.weights
  )
  for note in opened.notes:
    log.info(note)
  answerer = engine.Engine(opened)
  start(page(gradio, answerer), gradio, args.port)
  log.info("http://%s:%d answers from %s; Ctrl-C ends it.", HOST, args.port, opened.source.name)
  threading.Event().wait()


def imported() -> Any:
  """Gradio, with telemetry switched off before it is imported."""
  os.environ |= dict(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
  try:
    import gradio
  except ImportError:
    raise UserError("pgjax.demo needs Gradio: pip install -r requirements-demo.txt.") from None
  return gradio


def check_port(port: int) -> None:
  """Raises if another program uses the port, before weights are read."""
  try:
    socket.create_server((HOST, port)).close()
  except OSError as error:
    raise UserError(f"--port={port} cannot be used ({error}); choose another.") from None


def start(blocks: Any, gradio: Any, port: int) -> None:
  """Serves the page in threads, without anything that contacts another machine."""
  fonts = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
  try:
    blocks.launch(
      server_name=HOST,
      server_port=port,
      share=False,
      max_file_size=MOST_BYTES,
      ssr_mode=False,
      footer_links=[],
      theme=gradio.themes.Base(**fonts),
      css=_STYLE,
      prevent_thread_lock=True,
      quiet=True,
    )
  except OSError as error:
    raise UserError(f"--port={port} cannot be used ({error}); choose another.") from None


def page(gradio: Any, answerer: engine.Engine) -> Any:
  """The components, and the button's action."""
  settings, source = answerer.opened.settings, answerer.opened.source
  name = f"{source.name}, step {source.run.step}" if source.run else source.name
  methods = list(dict.fromkeys([settings.decode, *METHODS]))
  lengths = sorted({settings.max_decode_len, *LENGTHS})
  with gradio.Blocks(title="pgjax", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
    gradio.Markdown(f"# pgjax: {_plain(name)}")
    with gradio.Row():
      with gradio.Column():
        image = gradio.Image(label="Image", type="filepath", sources=["upload", "clipboard"])
        # Gradio would decode the file here, before its size could be refused in a sentence.
        image.preprocess = lambda payload: payload and payload.path
        prompt = gradio.Textbox(label="Prompt", lines=1, max_lines=4)
        gradio.Examples([[task] for task in TASKS], prompt, label="Tasks")
        with gradio.Row():
          own = dict(value=settings.decode, allow_custom_value=True)
          method = gradio.Dropdown(methods, label="Method", **own)
          length = gradio.Dropdown(lengths, value=settings.max_decode_len, label="Most tokens")
        grammar = gradio.Textbox(label='Grammar (none, boxes, json, one_of("yes", "no"), ...)')
        button = gradio.Button("Answer", variant="primary")
      with gradio.Column():
        answer = gradio.Textbox(label="Answer", lines=3, interactive=False)
        drawn = gradio.Image(label="Boxes and masks", type="pil", interactive=False)
        tokens = gradio.HTML(label="Tokens")

    def ask(path, text, how, most, rule):
      try:
        chosen = decoder_cache.Settings(how, int(most), rule.strip() or None)
        return asked(answerer, path, text, chosen)
      except UserError as error:
        options = dict(duration=None, title="Not answered", print_exception=False)
        raise gradio.Error(html.escape(str(error)), **options) from None

    inputs, outputs = [image, prompt, method, length, grammar], [answer, drawn, tokens]
    button.click(ask, inputs, outputs)
    prompt.submit(ask, inputs, outputs)
  return blocks


def asked(
  answerer: engine.Engine, path: str | None, prompt: str, settings: decoder_cache.Settings
) -> tuple[str, Any, str]:
  """(answer, picture with its boxes and masks or None, tokens as HTML)."""
  if path is None:
    raise UserError("Upload an image first.")
  encoded, opened = pathlib.Path(path).read_bytes(), answerer.opened
  if len(encoded) > MOST_BYTES:
    raise UserError(f"The file has {len(encoded):,} bytes; at most {MOST_BYTES:,} are accepted.")
  question = memory.InMemory([dict(image=encoded, prefix=prompt)], ["This question"])
  questions = engine.loader(opened, question)
  engine.check(opened, questions, settings)
  [answer] = answerer.answers(questions, settings, 1)
  return answer.text, picture(encoded, engine.objects_of(opened, answer)), shown(opened, answer)


def picture(encoded: bytes, parsed: Any) -> Any:
  """The image with the answer's objects; None without objects."""
  if not parsed.objects:
    return None
  return draw_images.with_objects(images.decode(encoded), parsed.objects)


def shown(opened: engine.OpenCheckpoint, answer: engine.Answer) -> str:
  """Each token above its probability."""
  spans = []
  for token, logp in zip(answer.tokens, answer.logp, strict=True):
    piece = html.escape(opened.tokenizer.piece(token))
    spans.append(f"<span><bdi>{piece}</bdi><small>{math.exp(logp):.1%}</small></span>")
  whole = math.exp(sum(answer.logp))
  return f'<div class="tokens">{"".join(spans)}</div><p>Probability of the answer: {whole:.3g}</p>'


def _plain(text: str) -> str:
  """With Markdown and HTML escaped."""
  return "".join(c if c.isalnum() or c in " -.:" else "\\" + c for c in html.escape(text))


FLAGS = [
  cli.Flag("ckpt", str, required=True, help=f"what answers; {resolve.ALLOWED}"),
  cli.Flag("port", int, 7860, help=f"port of the page on {HOST}"),
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
