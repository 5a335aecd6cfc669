"""Answers a prompt about an image: the answer on stdout, everything else on stderr.

Image ops, length and decode method are those of the checkpoint's run; the prompt is the prefix, as
in training ("detect cat ; dog"). --jsonl answers many questions in batches and in order: a JSON
object a line with "image" and "prefix".
"""

from __future__ import annotations

if __name__ == "__main__":  # Before the imports below, which take a moment.
  from pgjax.distributed import signals

  signals.begin()

import collections
import io
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from etils import epy

from pgjax import cache_dir, cli, disk
from pgjax.checkpoints import resolve
from pgjax.distributed import signals
from pgjax.errors import UserError, naming, printable

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  from pgjax.config import decode_method
  from pgjax.data import images
  from pgjax.data.sources import memory, registry, remote
  from pgjax.distributed import launchers, processes
  from pgjax.formats import outputs
  from pgjax.inference import decoder_cache, engine, grammar
  from pgjax.visualization import boxes as draw_boxes, images as draw_images

log = logging.getLogger("pgjax")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def main(args: Any) -> None:
  """Answers the questions; mistakes are reported before the weights are read."""
  cache_dir.use_compilation_cache()
  check_flags(args)
  args.image = [remote.local_file(image, "--image") for image in args.image or ()]
  check_questions(args)
  is_first = launchers.is_first()  # The others answer their parts of each batch.
  out, drawn = (name if is_first else None for name in (args.out, args.draw))
  with outputs.file(out, "--out") as out, outputs.file(drawn, "--draw") as drawn:
    answer(args, out and out.path, drawn and drawn.path)


def answer(args: Any, out: pathlib.Path | None, drawn: pathlib.Path | None) -> None:
  """Answers the checked questions; out, drawn: files of this machine."""
  processes.join()
  choices = dict(base=args.base, weights=args.weights, resize=args.resize, mesh=args.mesh)
  opened = engine.open_checkpoint(
    args.ckpt, args.step, quantize=args.quantize, ema=args.ema, **choices
  )
  settings = decoder_cache.Settings(
    args.decode or opened.settings.decode,
    args.max_decode_len or opened.settings.max_decode_len,
    args.grammar,
    args.seed,
  )
  questions = engine.loader(opened, asked(args))
  sizes = engine.check(opened, questions, settings)
  for note in opened.notes:
    log.info(note)
  batch_size = args.batch_size or opened.batch_size
  answers = engine.Engine(opened).answers(questions, settings, batch_size)
  if not processes.is_main():  # It answers its part of each batch; the main process writes.
    collections.deque(answers, maxlen=0)
    return
  if args.jsonl:
    source = questions.part.source
    write(out, lines(source, answers, sizes, opened, settings, everything=args.json))
    return
  [given] = answers
  if drawn:
    draw(args, drawn, given.text, engine.objects_of(opened, given).objects)
  as_json = args.json and json.dumps(engine.as_json(opened, given, sizes[0], settings))
  cli.result(as_json or printable(given.text))


def check_flags(args: Any) -> None:
  """Checks combinations of flags, and that the files can be written."""
  if bool(args.jsonl) == bool(args.image):
    raise UserError("Give either --image and --prompt, or --jsonl with many questions.")
  if args.image and args.prompt is None:
    raise UserError('--image needs --prompt, such as --prompt="answer en what is this?".')
  if args.jsonl and (args.draw or args.prompt is not None):
    raise UserError("--draw and --prompt are for one --image; --jsonl has prefixes of its own.")
  if args.out and not args.jsonl:
    raise UserError("--out is for the answers to --jsonl; one answer is written to stdout.")
  if args.draw and pathlib.Path(args.draw).suffix.lower() not in _PICTURES:
    raise UserError(f"--draw={args.draw} must end in one of {', '.join(_PICTURES)}.")


def check_questions(args: Any) -> None:
  """Checks what does not depend on the checkpoint, which may still have to be downloaded."""
  if args.decode is not None:
    decode_method.parse(args.decode, "--decode")
  if args.grammar:
    grammar.parse(args.grammar, "--grammar")
  if args.max_decode_len is not None and args.max_decode_len < 1:
    raise UserError(f"--max_decode_len={args.max_decode_len} must be at least 1.")
  source = asked(args)
  if args.image:
    with naming(source.where(0)):
      for image in args.image:
        images.size(images.encoded(image))


def asked(args: Any) -> Any:
  """The questions."""
  if args.jsonl:
    return registry.open(dict(name="jsonl", fname=args.jsonl))
  row = dict(image=args.image if len(args.image) > 1 else args.image[0], prefix=args.prompt)
  return memory.InMemory([row], [f"--image={', '.join(args.image)}"])


def lines(source, answers, sizes, opened, settings, *, everything: bool) -> Iterator[str]:
  """A JSON object per question: the fields of predictions.jsonl, or everything."""
  for i, answer in enumerate(answers):
    row = dict(id=source.texts(i)["id"], prompt=answer.prompt, prediction=answer.text)
    if everything:
      row |= engine.as_json(opened, answer, sizes[i], settings)
    else:
      row |= dict(logp=sum(answer.logp))
    yield _json_line(row)


def _json_line(row: dict[str, Any]) -> str:
  """A row with its letters as they are, but all control characters escaped, as JSON allows."""
  text = json.dumps(row, ensure_ascii=False)
  return printable(text, lambda c: f"\\u{ord(c):04x}")


def write(path: pathlib.Path | None, lines: Iterator[str]) -> None:
  """Writes the lines to stdout as they come, or to --out, which appears when it is complete."""
  if not path:
    for line in lines:
      cli.result(line)
    return
  count = 0
  if path.exists() and not path.is_file():  # A FIFO or /dev/stdout.
    partial = path
  else:
    path = path.resolve()
    partial = path.with_name(f"{path.name}.partial")
  so_far = f"the answers so far are in {partial}"
  with signals.on_stop(lambda: None, f"Stopped by {{}}; {so_far}."):
    try:
      with partial.open("w", buffering=1) as file:
        for line in lines:
          file.write(f"{line}\n")
          count += 1
      partial.replace(path)
    except OSError as error:
      raise UserError(f"{path} cannot be written ({disk.reason(error)}); {so_far}.") from error
    except UserError as error:
      raise UserError(f"{error} {so_far[0].upper()}{so_far[1:]}.") from error
  log.info("%d answers written to %s.", count, path)


def draw(args: Any, path: pathlib.Path, text: str, objects: Any) -> None:
  """Writes the original first image with the answer's boxes and masks, and the answer below it."""
  picture = draw_images.with_objects(images.decode(images.encoded(args.image[0])), objects)
  picture = draw_boxes.captioned(picture, f"{args.prompt}\n{printable(text)}")
  file = io.BytesIO()
  suffix = path.suffix[1:].upper()
  picture.save(file, "JPEG" if suffix == "JPG" else suffix)
  disk.write(path, file.getvalue())
  log.info("The answer and %d objects are drawn in %s.", len(objects), path)


FLAGS = [
  cli.Flag("ckpt", str, required=True, help=f"what answers; {resolve.ALLOWED}"),
  cli.Flag("image", tuple, help="the image's file; several for one prompt, each with --image="),
  cli.Flag("prompt", str, help="the question, as in the prefixes of the training data"),
  cli.Flag("decode", str, help='such as "beam(3)" or "nucleus(0.9)"; else the checkpoint\'s own'),
  cli.Flag("max_decode_len", int, help="most tokens of an answer; else the checkpoint's own"),
  cli.Flag("grammar", str, help='format of answers: boxes, json, one_of("yes", "no"), ...'),
  cli.Flag("seed", int, 0, help="seed of sampling"),
  cli.Flag("draw", str, help="picture to write: the image with boxes and masks, the answer below"),
  cli.Flag("json", bool, False, help="write tokens, probabilities, boxes in pixels and settings"),
  cli.Flag("jsonl", str, help='many questions, a line each: {"image": "a.png", "prefix": "..."}'),
  cli.Flag("out", str, help="file for the answers to --jsonl, or s3://, gs://; else stdout"),
  cli.Flag("batch_size", int, least=1, help="questions per batch; else the checkpoint's own"),
  cli.Flag("resize", str, help="bicubic, antialias or bilinear; else the checkpoint's own"),
  cli.Flag("mesh", str, help="how several GPUs share the work, as config.mesh: docs/meshes.md"),
  cli.QUANTIZE,
  cli.STEP,
  cli.BASE,
  cli.WEIGHTS,
  cli.EMA,
  cli.PEER_TIMEOUT,
]
CONFIG = "none"
EXAMPLES = [
  'python -m pgjax.predict --ckpt=/tmp/easyvqa --image=a.png --prompt="what is the red shape?"',
  'python -m pgjax.predict --ckpt=w --image=a.jpg --prompt="detect cat" --draw=out.png --json',
  'python -m pgjax.predict --ckpt=w --jsonl=questions.jsonl --out=answers.jsonl --decode="beam(3)"',
]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
