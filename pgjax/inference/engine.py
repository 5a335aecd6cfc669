"""What does a checkpoint answer to an image and a prompt?

`open_checkpoint` reads only headers, so that questions are checked before weights load; an Engine
loads the weights once and answers questions in batches. Images go through the image ops of the
run's own evaluation. Image and prompt seed a sample, not its place in the batch: an answer does not
depend on the other questions.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pgjax.checkpoints import load as load_params, restore, source as source_lib
from pgjax.config import decode_method, load as config_load, mesh_spec, schema
from pgjax.data import (
  images,
  loader as loader_lib,
  locations,
  notes,
  pipeline,
  tokenizer as tokenizer_lib,
)
from pgjax.data.loader import Layout, Loader
from pgjax.data.pp import parse
from pgjax.distributed import mesh as mesh_lib, mesh_notes, sharding
from pgjax.errors import UserError, naming, not_finite
from pgjax.huggingface import image_config
from pgjax.inference import grammar, question_batches
from pgjax.inference.decoder_cache import Decoders, Settings
from pgjax.models import paligemma
from pgjax.params import of_model, storage
from pgjax.params.rules import Rule
from pgjax.training import attention_check

log = logging.getLogger("pgjax")

TEXT_LEN, MAX_DECODE_LEN, BATCH_SIZE = 128, 64, 8  # Defaults for checkpoints without a config.
_NEEDS_BOXES = ("draw_bbox", "flip_boxes_lr", "image_size")  # Ops for boxes of data, not questions.


class Answer(NamedTuple):
  """One answer; tokens and their log-probabilities end with the eos, if it was generated."""

  prompt: str
  text: str
  tokens: list[int]
  logp: list[float]


class OpenCheckpoint(NamedTuple):
  """A checkpoint whose weights are not read yet."""

  source: source_lib.Source
  config: Any  # Except `params`: `rules` decide how each parameter is stored.
  rules: dict[str, Rule]
  tokenizer: tokenizer_lib.Tokenizer
  pp: str  # Image ops.
  settings: Settings  # Those of its own evaluation.
  batch_size: int
  notes: tuple[str, ...]


def open_checkpoint(
  name: str,
  step: int | None = None,
  *,
  quantize: Any = None,
  ema: bool = True,
  dtype: Any = None,
  base: str | None = None,
  weights: str | None = None,
  resize: str | None = None,
  mesh: str | list | None = None,
) -> OpenCheckpoint:
  """Finds the checkpoint and its settings for images and decoding.

  dtype: of the computation, if not the checkpoint's own; no parameter is stored in more bits. base
  and weights: see source.open_source. resize: "bicubic", "antialias" or "bilinear", if not the
  checkpoint's own. mesh: as config.mesh; weights are sharded over all devices without it.
  """
  if resize:
    image_config.of_method(resize)  # Before weights are downloaded.
  on_mesh = _mesh_fields(mesh) if mesh else {}
  exact = None if quantize else dtype  # Codes of rounded weights are other codes.
  source = source_lib.open_source(name, step, base, ema=ema, weights=weights, dtype=exact)
  source_lib.check_base(source, base)
  rules = restore.rules(source, quantize, dtype)
  saved = source.run.config if source.run else {}
  table = source.leaves[paligemma.TOKEN_TABLE].dtype.name
  dtype = dtype or saved.get("dtype", "float32" if table == "float32" else "bfloat16")
  model = dict(source.model, dtype=dtype, remat="none", attention="auto")
  fields = dict(model=model, res=source.res, dtype=dtype, text_len=saved.get("text_len", TEXT_LEN))
  fields |= on_mesh | {
    n: saved[n] for n in ("evals", "decode", "num_frames", "tokenizer") if n in saved
  }
  config = config_load.from_dict(fields)
  tokenizer = restore.tokenizer_of(source, config)
  as_evaluated = _as_evaluated(source, config, tokenizer, resize)
  return OpenCheckpoint(source, config, rules, tokenizer, *as_evaluated)


def _mesh_fields(mesh: str | list) -> dict[str, Any]:
  """The config's fields for another mesh than the default, which splits the batch."""
  config = config_load.from_dict(dict(input={}, evals={}))
  config = config_load.overridden(config, {"mesh": mesh})
  if config.mesh == mesh_spec.AUTO:
    raise UserError('mesh="auto" is for training; name a preset of docs/meshes.md, or the axes.')
  schema.check(dict(mesh=config.mesh), schema.RUN, "config")
  config_load.set_mesh(config)
  return {name: config[name] for name in ("mesh", "sharding_strategy")}


def _as_evaluated(source, config, tokenizer, resize) -> tuple[str, Settings, int, tuple[str, ...]]:
  """Image ops, settings, batch size of the first evaluator that decodes, and notes for the log."""
  decoding = (n for n, entry in config.evals.items() if entry["type"] != "perplexity")
  if (name := next(decoding, None)) is None:
    pp, note = _image_ops(source, config.res, resize)
    return pp, Settings(config.decode, MAX_DECODE_LEN), BATCH_SIZE, (*source.notes, note)
  entry = {"decode": None, "batch_size": BATCH_SIZE, **config.evals[name]}  # Old configs lack them.
  with naming(f"{source.path / 'run.json'}: config.evals[{name!r}]"):
    ops = parse.parse(entry["pp"], tokenizer=tokenizer).ops
  pixel_ops = [op for op in ops if op.name in parse.IMAGE_OPS and op.name not in _NEEDS_BOXES]
  pp = "|".join(op.written for op in pixel_ops)
  note = f"Image ops and decoding are those of config.evals[{name!r}]: {pp}."
  if resize:
    pp = image_config.with_method(pp, resize)
    note = f"{note} With --resize={resize}: {pp}."
  settings = Settings(entry["decode"] or config.decode, entry["max_decode_len"])
  return pp, settings, entry["batch_size"], (*source.notes, note)


def _image_ops(source, res, resize) -> tuple[str, str]:
  """Ops of a checkpoint without evaluators, and a note about them."""
  if resize:
    pp = image_config.of_method(resize).pp(res)
    return pp, f"Images are resized as --resize={resize} asks: {pp}."
  if images := source.images():
    pp = images.pp(res)
    return pp, f"Images are resized as {images.origin} says: {pp}."
  pp = image_config.of_method("antialias").pp(res)
  how = "as big_vision's forkme; --resize=bicubic is Hugging Face's way"
  return pp, f"The checkpoint does not say how images are resized; {how}: {pp}."


def loader(opened: OpenCheckpoint, source: Any) -> Loader:
  """Preprocesses the questions of a source (data/sources/registry.py) for this model."""
  config = opened.config
  layout = Layout(config.res, config.text_len, config.num_frames, for_training=False)
  return Loader(loader_lib.Part("questions", source, 1.0), opened.pp, opened.tokenizer, layout, 0)


def check(opened: OpenCheckpoint, questions: Loader, settings: Settings) -> list[tuple[int, int]]:
  """(width, height) of each question's first image; raises UserError for bad inputs.

  Reads the headers of all images, but no pixels. Logs what is odd about prompts (data/notes.py).
  """
  decode_method.parse(settings.decode, "--decode")
  if settings.max_decode_len < 1:
    raise UserError(f"--max_decode_len={settings.max_decode_len} must be at least 1.")
  rule = settings.grammar and grammar.parse(settings.grammar, "--grammar")
  source, most = questions.part.source, max(1, opened.config.num_frames)
  sizes, noted = [], notes.Notes(source.where)
  for i in range(len(source)):
    with naming(source.where(i)):
      question, num_tokens, limit = questions.texts(i)
      noted.add(i, question)
      if num_tokens > limit:
        raise UserError(
          f"the prompt has {num_tokens} tokens, with <bos> and the newline after it, and this"
          f" checkpoint takes {limit} (text_len); shorten it"
        )
      example = source[i]
      encoded = example["image"] if isinstance(example["image"], list) else [example["image"]]
      if len(encoded) > most:
        raise UserError(
          f"there are {len(encoded)} images, and this checkpoint takes {most} for a prompt"
          " (num_frames)"
        )
      first, *_ = [images.size(data) for data in encoded]
      sizes.append(first)
      if rule:
        rule.labels_of(question)
  for note in noted.sentences():
    log.warning(note)
  return sizes


class Engine:
  """A loaded checkpoint; the next question reuses the compiled programs."""

  def __init__(self, opened: OpenCheckpoint, mesh: Any = None):
    """Loads the weights onto all devices of this machine, or those of `mesh`."""
    config, source = opened.config, opened.source
    self.opened, self.mesh = opened, mesh or mesh_lib.start(config.mesh)
    model = paligemma.Model(**config.model)
    for note in mesh_notes.notes(model, config, self.mesh):
      log.info("%s", note)
    self.model = attention_check.checked_forward(model, config, self.mesh, log.warning)
    self.leaves = storage.of_rules(of_model.param_shapes(self.model, config.res), opened.rules)
    abstract = load_params.abstract_params(self.leaves, config, self.mesh)
    places = sharding.shardings_of(abstract)
    self._decoders = Decoders(self.model, self.leaves, self.mesh, places, opened.tokenizer)
    log.info("Loading %s on %d x %s.", source.path, self.mesh.size, self.mesh.devices.flat[0])
    self.params = restore.load(source, abstract, self.leaves)

  def answers(
    self, questions: Loader, settings: Settings, batch_size: int, *, num_threads: int = 8
  ) -> Iterator[Answer]:
    """In the order of the questions; the same on every process.

    While answers are reported, the next batch is decoded and the one after it is read.
    """
    tokenizer, decoded = self.opened.tokenizer, self._decoders.of(settings)
    batches = self.batches(questions, batch_size, num_threads=num_threads, by_length=True)
    with contextlib.closing(batches):
      run = lambda batch: decoded(self.params, batch.arrays, batch.rows)  # noqa: E731
      outputs = question_batches.dispatched_ahead(batches, run)
      for prompt, ids, logp in question_batches.in_order(outputs, self.mesh):
        ids = ids[: ids.index(tokenizer.eos) + 1] if tokenizer.eos in ids else ids
        if np.isnan(logp[: len(ids)]).any():
          raise not_finite(f"log p of the answer to {prompt!r}", np.nan)
        yield Answer(prompt, tokenizer.decode(ids), ids, logp[: len(ids)])

  def batches(
    self, questions: Loader, batch_size: int, *, num_threads: int = 8, by_length: bool = False
  ) -> Iterator[pipeline.EvalBatch]:
    """On the mesh, with this process's `rows`; a thread reads the next ones.

    The batch size is rounded up to a multiple of the devices that split it. by_length: similar
    prompts share a batch, if there are many (data/prompt_order.py).
    """
    devices = mesh_lib.batch_devices(self.mesh)
    size = -(-min(batch_size, len(questions.part.source)) // devices) * devices
    if not size:
      return
    feed = question_batches.feed(questions, size, self.mesh, num_threads, by_length=by_length)
    with contextlib.closing(feed):
      yield from feed


def objects_of(opened: OpenCheckpoint, answer: Answer) -> locations.Parsed:
  """The objects of an answer, with their scores."""
  if "<loc" not in answer.text:
    return locations.Parsed((), 0, 0)
  return locations.parse_tokens(answer.tokens, answer.logp, opened.tokenizer)


def as_json(
  opened: OpenCheckpoint, answer: Answer, size: tuple[int, int], settings: Settings
) -> dict[str, Any]:
  """Everything about an answer; boxes are x0, y0, x1, y1 in pixels of an image of this size."""
  parsed, source, (width, height) = objects_of(opened, answer), opened.source, size
  objects = []
  for o in parsed.objects:
    box = [round(c, 2) for c in locations.from_normalised(o.box, "voc", width=width, height=height)]
    scores = dict(score=o.score, box_score=o.box_score, label_score=o.label_score)
    objects.append(dict(label=o.label, box=box, **scores, mask_codes=o.codes))
  tokens = [
    dict(id=token, piece=opened.tokenizer.piece(token), logp=p)
    for token, p in zip(answer.tokens, answer.logp, strict=True)
  ]
  return dict(
    prompt=answer.prompt,
    answer=answer.text,
    logp=sum(answer.logp),
    ended=bool(answer.tokens) and answer.tokens[-1] == opened.tokenizer.eos,
    tokens=tokens,
    objects=objects,
    malformed=parsed.malformed,
    duplicates=parsed.duplicates,
    image_size=[width, height],
    settings=settings._asdict(),
    checkpoint=str(source.path),
    step=source.run.step if source.run else None,
  )
