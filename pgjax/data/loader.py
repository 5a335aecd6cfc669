"""How does one raw example become a row of a batch?

The ops of `pp` run, the image is checked against the model's input, the texts are packed, and all
other columns stay on the host. Errors name file and line.

`pp` ends with `image`, `prefix` and `suffix` (texts), which are packed here; or, as in big_vision's
configs, with `text`, `mask_ar` and `mask_loss` or `mask_input`, which are used unchanged. When
decoding, the prompt excludes the suffix and includes `answer_start` if pp sets it. The perplexity
of tokens without `mask_loss` is that of the answer, the real tokens whose `mask_ar` is 1.
"""

import contextlib
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pgjax.data import image_size, notes, prefix_lm
from pgjax.data.pp import parse
from pgjax.errors import UserError, naming

log = logging.getLogger("pgjax")

TEXT_KEYS = ("text", "mask_ar", "mask_loss", "mask_input")
# Of a batch, not of the data, unless the source declares them as its `own_columns`.
RESERVED = ("image_mask", "mask_ar", "mask_loss", "mask_input")
# Ops on images that change no text and draw no random numbers.
_WITHOUT_TEXT = (
  *("decode", "resize", "resize_small", "resize_long", "value_range", "vgg_value_range"),
  *("clip_value_range", "central_crop", "draw_bbox", "video_decode", "video_replicate_img"),
  *("video_ensure_shape", "stack_images"),
)
# Columns in which other programs' files have the prompt or the answer.
_OTHER_NAMES = {
  "prefix": ("prompt", "question", "instruction", "query", "input", "problem"),
  "suffix": ("answer", "response", "output", "caption", "text", "label", "completion", "target"),
}


class LoadedRow(NamedTuple):
  """One example, ready to be stacked."""

  arrays: dict[str, np.ndarray]
  columns: dict  # For the host: id, answer, question ...


_begun: dict[int, tuple[float, str]] = {}  # By thread: since when, and what, it loads.


@contextlib.contextmanager
def _noted_as_begun(where: str) -> Iterator[None]:
  thread = threading.get_ident()
  _begun[thread] = time.monotonic(), where
  try:
    yield
  finally:
    del _begun[thread]


def slowest() -> tuple[float, str] | None:
  """Seconds and place of the example that threads of this process have loaded for longest."""
  if not (begun := list(_begun.values())):
    return None
  since, where = min(begun)
  return time.monotonic() - since, where


class Layout(NamedTuple):
  """The sizes of every row, and whether it is for training."""

  res: int
  text_len: int
  num_frames: int
  for_training: bool  # Text with suffix and mask_loss; else only the prompt.
  for_perplexity: bool = False  # As in training, and tokens may come without mask_loss.


class Part(NamedTuple):
  """One data set of a mixture."""

  name: str
  source: object
  weight: float
  pp: str | None = None  # Its own ops, where the data sets of a mixture have different ones.
  order: str | None = None  # Whose hash seeds order and random ops; None: name.


class Loader:
  """(position in the endless stream, index in the source) -> LoadedRow."""

  def __init__(self, part: Part, pp: str, tokenizer, layout: Layout, seed: int, cache_bytes=0):
    """Parses `pp`; raises UserError for a mistake in it."""
    self.part, self.layout, self.tokenizer, self.seed = part, layout, tokenizer, seed
    name = part.order or part.name
    self.name_hash = zlib.crc32(name.encode())  # Independent of other data sets.
    parsed = parse.parse(part.pp or pp, tokenizer=tokenizer)
    self.text_ops = parsed.text_only()
    self.decode, self.ops = _DecodeCache.split(parsed, cache_bytes)
    fname = getattr(part.source, "fname", None)
    self._noted: set[str] = set()
    self._prompt_lens: dict[int, int] = {}
    self._text_only = all(op.name in _WITHOUT_TEXT for op in parsed.ops if op.needs_image)
    self.folder = os.path.dirname(os.path.abspath(fname)) if fname else None

  def __call__(self, position: int, index: int) -> LoadedRow:
    """Reads, preprocesses and packs an example; errors name file and line."""
    where = self.part.source.where(index)
    with naming(where), _noted_as_begun(where):
      row = self._read(position, index)
      example = self._start(row, position, index)
      self._note(image_size.check(example), index)
      example = notes.without_image_word(self.ops(self.decode(example)))
      arrays = _images(example.pop("image", None), self.layout)
      texts = self._pack(example, row).arrays
    columns = {k: v for k, v in example.items() if k not in TEXT_KEYS and not k.startswith("_")}
    columns["_source_id"] = row.get("id")  # Names the row where pp keeps no `id`.
    return LoadedRow({**arrays, **texts}, columns)

  def _note(self, kind: str, index: int) -> None:
    """Logs a note about an image, once for each kind."""
    if kind and kind not in self._noted:
      self._noted.add(kind)
      log.warning("%s: %s.", self.part.source.where(index), image_size.NOTES[kind])

  def num_tokens(self, index: int) -> tuple[int, int]:
    """The number of tokens in the text and how many fit, without reading the image."""
    with naming(self.part.source.where(index)):
      return self.texts(index)[1:]

  def texts(self, index: int) -> tuple[dict, int, int]:
    """The example after the text ops, its number of tokens, and how many fit."""
    row = self.part.source.texts(index)
    example = notes.without_image_word(self.text_ops(self._start(row, 0, index)))
    arrays, num_tokens, room = self._pack(example, row)
    if not self.layout.for_training:
      real = np.flatnonzero(arrays["mask_input"])
      self._prompt_lens[index] = int(real[-1]) + 1 if len(real) else 0
    return example, num_tokens, room

  def prompt_lens(self, indices: Iterable[int]) -> np.ndarray | None:
    """Tokens of each example's prompt, up to the last that is not padding; reads no images.

    None if texts do not decide them: an op draws random numbers of the image's, or the source does.
    """
    if not self._text_only or hasattr(self.part.source, "sample"):
      return None
    for index in indices:
      if index not in self._prompt_lens:
        self.num_tokens(index)
    return np.array([self._prompt_lens[index] for index in indices], np.int64)

  def _read(self, position: int, index: int) -> dict:
    """The raw example; of a source that draws parts of it, a random one for each epoch."""
    source = self.part.source
    if not hasattr(source, "sample"):
      return source[index]
    return source.sample(index, self._random_seed(position, index))

  def _random_seed(self, position: int, index: int) -> tuple[int, int, int, int]:
    return self.seed, self.name_hash, index, position // len(self.part.source)

  def _start(self, example, position, index):
    for name in example.keys() - getattr(self.part.source, "own_columns", frozenset()):
      if name.startswith("_") or name in RESERVED:
        raise UserError(
          f"a column is called {name!r}; pgjax uses this name itself, {', '.join(RESERVED)} and all"
          " that begin with an underscore; rename it"
        )
    seed = self._random_seed(position, index)
    return {**example, "_epoch": seed[-1], "_seed": seed, "_folder": self.folder}

  def _pack(self, example, row) -> prefix_lm.Packed:
    text_len = self.layout.text_len
    if "text" in example and "mask_ar" in example:
      arrays = {k: np.asarray(example[k]) for k in TEXT_KEYS if k in example}
      needed = "mask_loss" if self.layout.for_training else "mask_input"
      if self.layout.for_perplexity and needed not in arrays and "mask_input" in arrays:
        arrays[needed] = arrays["mask_ar"] * arrays.pop("mask_input")
      if needed not in arrays or len({np.shape(array) for array in arrays.values()}) > 1:
        shapes = {key: np.shape(array) for key, array in arrays.items()}
        raise UserError(f"pp makes tokens, so it must make {needed} too, of equal length: {shapes}")
      room = len(arrays["text"])
      return prefix_lm.Packed(arrays, example.get("_num_tokens", room), room)
    prefix = _text(example, "prefix", row)
    if self.layout.for_training:
      suffix = _text(example, "suffix", row)
      learned = example.get("_learned_locs")
      return prefix_lm.for_training(self.tokenizer, prefix, suffix, text_len, learned_locs=learned)
    start = _text(example, "answer_start", row) if "answer_start" in example else ""
    return prefix_lm.for_decoding(self.tokenizer, prefix, text_len, answer_start=start)


def _text(example, key, row) -> str:
  """example[key]; `row` is the example before pp, whose columns the message names."""
  if key not in example:
    names = ", ".join(sorted(k for k in example if not k.startswith("_")))
    example_of = "('caption en', outkey='prefix')" if key == "prefix" else ""
    raise UserError(
      f"there is no '{key}' after pp, only {names}; make it with copy(inkey, outkey) or"
      f" strfmt{example_of}{_other_columns(example, row)}"
    )
  text = example[key]
  if text is None:
    raise UserError(
      f"'{key}' is null; remove the row, or give it a text with setdefault({key!r}, '...')"
    )
  if not isinstance(text, str):
    raise UserError(f"'{key}' must be text, not {text!r}; strfmt turns numbers into text")
  return text


def _other_columns(example, row) -> str:
  """What to add to pp if the data has prompt and answer under other names."""
  copies = [
    f"copy({other!r}, {key!r})"
    for key, names in _OTHER_NAMES.items()
    if key not in example and key not in row
    for other in [name for name in names if name in row][:1]
  ]
  return f"; the data has other names: add {'|'.join(copies)} to pp, before keep" if copies else ""


def _images(value, layout: Layout) -> dict[str, np.ndarray]:
  """image, and image_mask if there are frames; raises unless the model takes it."""
  several = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 4)
  frames = list(value) if several else [value]
  size = (layout.res, layout.res, 3)
  for frame in frames:
    if not isinstance(frame, np.ndarray):
      raise UserError("pp must decode 'image': decode|resize(res)|value_range(-1, 1)")
    if frame.shape != size:
      raise UserError(f"the image is {frame.shape} after pp, and res asks for {size}")
    if frame.dtype != np.float32:
      raise UserError(f"the image is {frame.dtype} after pp, not float32: end with value_range")
  if not layout.num_frames:
    if several:
      raise UserError(f"there are {len(frames)} images, and num_frames=0 means one; set num_frames")
    return dict(image=value)
  missing = layout.num_frames - len(frames)
  if missing < 0:
    raise UserError(f"there are {len(frames)} images, more than num_frames={layout.num_frames}")
  image = np.stack(frames + [np.zeros(size, np.float32)] * missing)
  return dict(image=image, image_mask=np.arange(layout.num_frames) < len(frames))


class _DecodeCache:
  """Runs the leading decode and resize, and caches the first images by their encoded bytes."""

  def __init__(self, leading: parse.Pipeline, limit_bytes: int):
    self.leading, self.limit_bytes = leading, limit_bytes
    self.used_bytes, self.pixels = 0, {}

  @classmethod
  def split(cls, parsed: parse.Pipeline, limit_bytes: int):
    """The cached beginning and the rest of a pipeline."""
    cacheable = [op.name in ("decode", "resize") and "key=" not in op.written for op in parsed.ops]
    count = [*cacheable, False].index(False)
    return cls(parse.Pipeline(parsed.ops[:count]), limit_bytes), parse.Pipeline(parsed.ops[count:])

  def __call__(self, example):
    encoded = example.get("image")
    if not self.leading.ops or not isinstance(encoded, bytes):
      return self.leading(example)
    if encoded in self.pixels:
      return example | {"image": self.pixels[encoded]}
    example = self.leading(example)
    size = len(encoded) + example["image"].nbytes
    if self.used_bytes + size <= self.limit_bytes:
      self.used_bytes += size
      example["image"].setflags(write=False)
      self.pixels[encoded] = example["image"]
    return example

  def __reduce__(self):  # Worker processes start with empty caches.
    return _DecodeCache, (self.leading, self.limit_bytes)
