"""What does a checkpoint answer to an image and a prompt?

Opened first, from headers alone, so that questions are checked before any weight is read; loaded
once; then it answers questions in batches. A run's images go through the image ops of its own
evaluation. A sample's random numbers follow from what is asked, not from its place: many questions
get the answers that each of them gets alone.
"""

import logging
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pgjax.checkpoints import load as load_params, restore, source as source_lib
from pgjax.config import decode_method, load as config_load
from pgjax.data import images, loader as loader_lib, locations, pipeline, tokenizer as tokenizer_lib
from pgjax.data.loader import Layout, Loader
from pgjax.data.pp import parse
from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.errors import UserError, naming
from pgjax.inference import grammar
from pgjax.inference.decoder_cache import Decoders, Settings
from pgjax.models import paligemma
from pgjax.params import of_model, storage
from pgjax.params.rules import Rule

log = logging.getLogger("pgjax")

TEXT_LEN, MAX_DECODE_LEN, BATCH_SIZE = 128, 64, 8  # Where the checkpoint does not say.
_NEEDS_BOXES = ("draw_bbox", "flip_boxes_lr")  # Of the data, which a question has not.


class Answer(NamedTuple):
  """One answer; tokens and their log-probabilities end with the eos, if it came."""

  prompt: str
  text: str
  tokens: list[int]
  logp: list[float]


class OpenCheckpoint(NamedTuple):
  """A checkpoint of which no weights are read yet."""

  source: source_lib.Source
  config: Any  # But for `params`: what is on the mesh is in `rules`.
  rules: dict[str, Rule]
  tokenizer: tokenizer_lib.Tokenizer
  pp: str  # Of images.
  settings: Settings  # What its own evaluation decodes with.
  batch_size: int
  notes: tuple[str, ...]


def open_checkpoint(
  name: str, step: int | None = None, *, quantize: Any = None, ema: bool = True, dtype: Any = None
) -> OpenCheckpoint:
  """Finds the checkpoint and what it says about images and decoding.

  dtype: of the computation, if not the checkpoint's own; no parameter is stored in more bits.
  """
  source = source_lib.open_source(name, step, ema=ema)
  rules = restore.rules(source, quantize, dtype)
  saved = source.run.config if source.run else {}
  table = source.leaves[paligemma.TOKEN_TABLE].dtype.name
  own = saved.get("dtype", "float32" if table == "float32" else "bfloat16")
  config = config_load.from_dict(
    dict(
      model=dict(source.model, dtype=dtype or own, remat="none"),
      res=source.res,
      dtype=dtype or own,
      **{n: saved[n] for n in ("evals", "decode", "num_frames", "tokenizer") if n in saved},
      text_len=saved.get("text_len", TEXT_LEN),
    )
  )
  tokenizer = restore.tokenizer_of(source, config)
  return OpenCheckpoint(source, config, rules, tokenizer, *_as_evaluated(source, config, tokenizer))


def _as_evaluated(source, config, tokenizer) -> tuple[str, Settings, int, tuple[str, ...]]:
  """Image ops, settings and batch size of the first evaluator that decodes, and what is said."""
  for name, entry in config.evals.items():
    if entry["type"] != "perplexity":
      entry = {"decode": None, "batch_size": BATCH_SIZE, **entry}  # Older ones have no decode.
      with naming(f"{source.path / 'run.json'}: config.evals[{name!r}]"):
        parsed = parse.parse(entry["pp"], tokenizer=tokenizer)
      pixels = [
        op.written
        for op in parsed.ops
        if op.name in parse.IMAGE_OPS and op.name not in _NEEDS_BOXES
      ]
      settings = Settings(entry["decode"] or config.decode, entry["max_decode_len"])
      note = f"Images and answers as config.evals[{name!r}] has them: {'|'.join(pixels)}."
      return "|".join(pixels), settings, entry["batch_size"], (*source.notes, note)
  pp = f"decode|resize({config.res}, antialias=True)|value_range(-1, 1)"
  note = f"The checkpoint does not say how images are resized; as big_vision's forkme: {pp}."
  settings = Settings(config.decode, MAX_DECODE_LEN)
  return pp, settings, BATCH_SIZE, (*source.notes, note)


def loader(opened: OpenCheckpoint, source: Any) -> Loader:
  """Makes questions of a source (see data/sources/registry.py) ready for this model."""
  config = opened.config
  layout = Layout(config.res, config.text_len, config.num_frames, for_training=False)
  return Loader(loader_lib.Part("questions", source, 1.0), opened.pp, opened.tokenizer, layout, 0)


def check(opened: OpenCheckpoint, questions: Loader, settings: Settings) -> list[tuple[int, int]]:
  """(width, height) of each first image; raises UserError for what cannot be asked so.

  Reads all images' headers, and no pixels.
  """
  decode_method.parse(settings.decode, "--decode")
  if settings.max_decode_len < 1:
    raise UserError(f"--max_decode_len={settings.max_decode_len} must be at least 1.")
  bound = settings.grammar and grammar.parse(settings.grammar, "--grammar")
  source, sizes = questions.part.source, []
  for i in range(len(source)):
    num_tokens, room = questions.num_tokens(i)
    try:
      if num_tokens > room:
        raise UserError(
          f"the prompt has {num_tokens} tokens, with <bos> and the newline after it, and this"
          f" checkpoint takes {room} (text_len); shorten it"
        )
      example = source[i]
      sizes.append(_sizes(example["image"], opened.config.num_frames)[0])
      if bound:
        bound.labels_of(example)
    except UserError as error:
      raise UserError(f"{source.where(i)}: {error}") from None
  return sizes


def _sizes(image: bytes | list[bytes], num_frames: int) -> list[tuple[int, int]]:
  encoded = image if isinstance(image, list) else [image]
  if len(encoded) > max(1, num_frames):
    raise UserError(
      f"there are {len(encoded)} images, and this checkpoint takes {max(1, num_frames)} for a"
      " prompt (num_frames)"
    )
  return [images.size(data) for data in encoded]


class Engine:
  """A loaded checkpoint. What was compiled for some settings stays for the next question."""

  def __init__(self, opened: OpenCheckpoint, mesh: Any = None):
    """Reads the weights onto all devices of this machine, or those of `mesh`."""
    config, source = opened.config, opened.source
    self.opened, self.mesh = opened, mesh or mesh_lib.start(config.mesh)
    self.model = paligemma.Model(**config.model)
    self.leaves = storage.of_rules(of_model.param_shapes(self.model, config.res), opened.rules)
    abstract = load_params.abstract_params(self.leaves, config, self.mesh)
    places = sharding.shardings_of(abstract)
    self._decoders = Decoders(self.model, self.leaves, self.mesh, places, opened.tokenizer)
    log.info("Loading %s on %d x %s.", source.path, self.mesh.size, self.mesh.devices.flat[0])
    self.params = restore.load(source, abstract, self.leaves)

  def answers(
    self, questions: Loader, settings: Settings, batch_size: int, *, num_threads: int = 8
  ) -> Iterator[Answer]:
    """In the order of the questions."""
    run = self._decoders.of(settings)
    for batch in self.batches(questions, batch_size, num_threads=num_threads):
      tokens, logp = map(np.asarray, run(self.params, batch.arrays, batch.rows))
      for example, *made in zip(batch.rows, tokens, logp, strict=False):
        yield self._answer(example["prefix"], *made)

  def batches(
    self, questions: Loader, batch_size: int, *, num_threads: int = 8
  ) -> Iterator[pipeline.EvalBatch]:
    """On the mesh; the batch size is rounded up to a multiple of the number of devices."""
    size = -(-min(batch_size, len(questions.part.source)) // self.mesh.size) * self.mesh.size
    for batch in pipeline.split_of(questions, size, num_threads=num_threads) if size else ():
      arrays = batch.arrays | dict(_index=_of_content(batch.arrays))
      yield batch._replace(arrays=mesh_lib.global_batch(arrays, self.mesh))

  def _answer(self, prompt, tokens, logp) -> Answer:
    ids, eos = tokens.tolist(), self.opened.tokenizer.eos
    end = ids.index(eos) + 1 if eos in ids else len(ids)
    text = self.opened.tokenizer.decode(ids[:end])
    return Answer(prompt, text, ids[:end], [float(p) for p in logp[:end]])


def _of_content(arrays) -> np.ndarray:
  """int32 [B]: a number for each row that only its image and prompt decide."""
  made = [
    zlib.crc32(image.tobytes(), zlib.crc32(text.tobytes()))
    for image, text in zip(arrays["image"], arrays["text"], strict=True)
  ]
  return np.array(made, np.uint32).astype(np.int32) & 0x7FFFFFFF


def objects_of(opened: OpenCheckpoint, answer: Answer) -> locations.Parsed:
  """The objects of an answer, with their scores."""
  if "<loc" not in answer.text:
    return locations.Parsed((), 0, 0)
  return locations.parse_tokens(answer.tokens, answer.logp, opened.tokenizer)


def as_json(
  opened: OpenCheckpoint, answer: Answer, size: tuple[int, int], settings: Settings
) -> dict[str, Any]:
  """Everything about an answer; boxes are x0, y0, x1, y1 in pixels of an image of this size."""
  parsed = objects_of(opened, answer)
  width, height = size
  objects = [
    dict(
      label=o.label,
      box=[
        round(c, 2) for c in locations.from_normalised(o.box, "voc", width=width, height=height)
      ],
      score=o.score,
      box_score=o.box_score,
      label_score=o.label_score,
      mask_codes=o.codes,
    )
    for o in parsed.objects
  ]
  tokens = [
    dict(id=token, piece=opened.tokenizer.piece(token), logp=p)
    for token, p in zip(answer.tokens, answer.logp, strict=True)
  ]
  source = opened.source
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
