"""What do big_vision's ops compute? Their TensorFlow calls, or big_vision's own where it is given.

`pipeline(pp, ...)` is a function from a dict of tensors to one. Random ops take `pick(n)` instead
of a generator, so that a test can list all outcomes. With PGJAX_BIG_VISION, the path of a checkout,
the ops are those of the checkout, which draw as they like.
"""

import ast
import functools
import importlib
import itertools
import string
import sys
import tempfile

import numpy as np
import sentencepiece
import tensorflow as tf
from transfer_strings import CHECKOUT

tf.config.threading.set_intra_op_parallelism_threads(1)

MODULES = (
  "ops_general", "ops_image", "ops_text", "proj.paligemma.ops", "proj.paligemma.video",
  "proj.paligemma.segmentation", "proj.paligemma.sciqa_ops", "proj.paligemma.widgetcap",
  "proj.paligemma.robustness",
)  # fmt: skip
PIXELS = ("decode", "resize(", "value_range", "video_d", "video_r", "video_e", "stack", "draw")
DRAWS = 40  # Of big_vision's own random ops, which take no index.


def pipeline(pp, *, tokenizer=None, vae=None, pick=None):
  """tokenizer: bytes of a SentencePiece model with all pieces. vae: arrays of vae-oid.npz."""
  if CHECKOUT:
    return _of_checkout(pp, tokenizer, vae)
  ops = Ops(tokenizer, vae, pick or (lambda n: 0))
  parsed = [_call(part) for part in pp.split("|") if part]

  def run(data):
    data = dict(data)
    for name, arguments, named in parsed:
      data = getattr(ops, name)(data, *arguments, **named)
    return data

  return run


def _call(text):
  node = ast.parse(text.strip(), mode="eval").body
  if isinstance(node, ast.Name):
    return node.id, (), {}
  named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
  return node.func.id, [ast.literal_eval(argument) for argument in node.args], named


def _of_checkout(pp, tokenizer, vae):
  if CHECKOUT not in sys.path:
    sys.path.insert(0, CHECKOUT)
  for name in MODULES:
    importlib.import_module(f"big_vision.pp.{name}")
  builder, registry, text, bv_tokenizer, segmentation = (
    importlib.import_module(f"big_vision.pp.{name}")
    for name in ("builder", "registry", "ops_text", "tokenizer", "proj.paligemma.segmentation")
  )

  def gemma(tokensets=()):
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
      file.write(tokenizer or b"")
      file.flush()
      return text.SentencepieceTokenizer(model=file.name, tokensets=tokensets)

  registry.Registry.register("tokenizers.gemma", replace=True)(gemma)
  bv_tokenizer.get_tokenizer.cache_clear()
  segmentation.get_checkpoint = lambda model: vae
  run = builder.get_preprocess_fn(pp, log_data=False)
  return lambda data: run(dict(data))


def outcomes(pp, values, tokenizer, vae):
  """What TensorFlow gives: all of it once, then the texts for every outcome of the random ops.

  big_vision's own ops take no index, so they draw a few times.
  """
  options = dict(tokenizer=tokenizer, vae=vae)
  data, sizes = tensors(values), []
  first = pipeline(pp, pick=lambda n: sizes.append(n) or 0, **options)(data)
  texts = "|".join(part for part in pp.split("|") if not part.startswith(PIXELS))
  if CHECKOUT:
    draws = DRAWS * ("choice" in pp or "shuffle" in pp)
    run = pipeline(texts, **options)
    return [first, *(run(data) for _ in range(draws))]
  picks = itertools.product(*map(range, sizes)) if sizes else ()
  given = [functools.partial(_next, iter(each)) for each in picks]
  return [first, *(pipeline(texts, pick=pick, **options)(data) for pick in given)]


def _next(given, n):
  return next(given) % n


def tensors(value):
  """A row as TFDS gives it: texts and numbers as tensors, lists of lists as ragged tensors."""
  if isinstance(value, dict):
    return {name: tensors(inner) for name, inner in value.items()}
  if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
    return tf.constant(np.stack(value))
  if isinstance(value, list) and value and isinstance(value[0], list):
    return tf.ragged.constant(value)
  return tf.constant(value, tf.float32) if isinstance(value, float) else tf.constant(value)


def _routed(compute):
  def op(self, data, *arguments, key=None, inkey="image", outkey="image", **named):
    data[key or outkey] = compute(self, data[key or inkey], *arguments, **named)
    return data

  return op


def _clipped(image, dtype):
  return tf.cast(tf.clip_by_value(image, dtype.min, dtype.max), dtype)


class Ops:
  """Each method is the op of its name."""

  def __init__(self, tokenizer, vae, pick):
    self.pieces = tokenizer and sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    self.vae, self.pick = vae, pick

  @_routed
  def decode(self, encoded, channels=3, precise=False):
    if precise:
      return tf.image.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE")
    return tf.io.decode_image(encoded, channels=channels, expand_animations=False)

  @_routed
  def resize(self, image, size, method="bilinear", antialias=False):
    size = (size, size) if isinstance(size, int) else size
    return _clipped(tf.image.resize(image, size, method=method, antialias=antialias), image.dtype)

  @_routed
  def resize_small(self, image, size, method="area", antialias=False):
    return _scaled(image, size, min, method, antialias)

  @_routed
  def resize_long(self, image, size, method="area", antialias=True):
    return _scaled(image, size, max, method, antialias)

  @_routed
  def value_range(self, image, vmin=-1, vmax=1, in_min=0, in_max=255.0, clip_values=False):
    low, high = tf.constant(in_min, tf.float32), tf.constant(in_max, tf.float32)
    image = (tf.cast(image, tf.float32) - low) / (high - low)
    image = vmin + image * (vmax - vmin)
    return tf.clip_by_value(image, vmin, vmax) if clip_values else image

  @_routed
  def strjoin(self, texts, glue, axis=None):
    return tf.strings.reduce_join(texts, axis=axis, separator=glue)

  @_routed
  def lower(self, texts):
    return tf.strings.lower(texts)

  @_routed
  def reshape(self, value, new_shape):
    return tf.reshape(value, new_shape)

  @_routed
  def video_choice(self, value, empty_fallback=None):
    flat = tf.reshape(value, (-1,))
    if len(flat) == 0:
      return tf.constant(empty_fallback) if empty_fallback is not None else tf.zeros((), flat.dtype)
    return flat[self.pick(len(flat))]

  def video_decode(self, data, res):
    frames = [
      tf.image.resize(tf.io.decode_jpeg(frame), (res, res)) for frame in data["episodic_images"]
    ]
    data["image"] = 2 * (tf.stack(frames) / 255.0) - 1.0
    return data

  def video_replicate_img(self, data, replicas, num_frames):
    data["image"] = tf.tile(data["image"], [replicas, 1, 1, 1])[:num_frames]
    return data

  def video_ensure_shape(self, data, key, shape):
    data[key] = tf.ensure_shape(data[key], shape)
    return data

  def stack_images(self, data, inkeys=(), outkey="image"):
    data[outkey] = tf.stack([data[name] for name in inkeys])
    return data

  def draw_bbox(self, data, image_key="image", bbox_key="bbox"):
    image = tf.cast(data[image_key], tf.float32)[None]
    box, red = tf.reshape(data[bbox_key], [1, 1, 4]), tf.constant([[255.0, 0.0, 0.0]])
    data[image_key] = tf.squeeze(tf.image.draw_bounding_boxes(image, box, red))
    return data

  def strfmt(self, data, template, outkey="text"):
    parts = []
    for literal, name, _, _ in string.Formatter().parse(template):
      parts.append(tf.constant(literal))
      if name:
        is_text = data[name].dtype == tf.string
        parts.append(data[name] if is_text else tf.strings.format("{}", data[name], summarize=-1))
    data[outkey] = tf.strings.join(parts)
    return data

  def copy(self, data, inkey, outkey):
    data[outkey] = data[inkey]
    return data

  def keep(self, data, *keys):
    return {name: value for name, value in data.items() if name in keys}

  def drop(self, data, *keys):
    return {name: value for name, value in data.items() if name not in keys}

  def flatten(self, data):
    flat = {}
    for name, value in data.items():
      inner = self.flatten(value) if isinstance(value, dict) else {"": value}
      flat |= {f"{name}/{key}" if key else name: each for key, each in inner.items()}
    return flat

  def setdefault(self, data, key, value):
    if key not in data or tf.size(data[key]) == 0:
      data[key] = tf.constant(value)
    return data

  def getidx(self, data, inkey, index_key, outkey=None):
    data[outkey or inkey] = data[inkey][data[index_key]]
    return data

  def choice(self, data, key=None, inkey=None, outkey=None):
    names, targets = (
      [each] if isinstance(each, str) else each for each in (inkey or key, outkey or key)
    )
    index = self.pick(int(tf.shape(data[names[0]])[0]))
    for name, target in zip(names, targets, strict=True):
      data[target] = data[name][index]
    return data

  choice_no_replacement = choice

  def sci_qa_choices_shuffle(self, data, choice_str_inkey="choices", ans_inkey="answer"):
    choices = data[choice_str_inkey]
    rest, order = list(range(len(choices))), []
    while rest:
      order.append(rest.pop(self.pick(len(rest))))
    marks = tf.constant([f"({letter})" for letter in string.ascii_uppercase[: len(order)]])
    each = tf.strings.join([marks, tf.gather(choices, order)], separator=" ")
    data["indexed_choices"] = tf.strings.reduce_join(each, separator=", ")
    letter = string.ascii_uppercase[order.index(int(data[ans_inkey]))]
    data["indexed_answer"] = tf.constant(letter)
    return data

  def tok(self, data, model, bos="no", eos="no", text=None, key=None):
    text = data[key].numpy().decode() if text is None else text
    ids = [2] * (bos == "yes") + self.pieces.EncodeAsIds(text) + [1] * (eos == "yes")
    data[key] = tf.constant(ids, tf.int32)
    return data

  def masked_concat(self, data, keys, outkey="text", **masks):
    parts = [data[name] for name in keys]
    data[outkey] = tf.concat(parts, axis=0)
    for name, numbers in masks.items():
      filled = [tf.fill(tf.shape(part), n) for part, n in zip(parts, numbers, strict=True)]
      data[name] = tf.concat(filled, axis=0)
    return data

  def tolen(self, data, length, pad_value, key):
    value = data[key][:length]
    pads = [(0, length - len(value))]
    data[key] = tf.pad(value, pads, constant_values=pad_value)
    return data

  def refcoco_mask2str(self, data):
    mask, box = data["objects/mask"], data["objects/bbox"]
    sides = tf.cast(tf.tile(tf.shape(mask)[:2], [2]), tf.float32)
    y1, x1, y2, x2 = tf.unstack(tf.cast(tf.round(sides * box), tf.int32))
    cut = tf.image.resize(mask[None, y1:y2, x1:x2, :1], [64, 64], antialias=True) / 255.0
    locations = tf.clip_by_value(tf.cast(tf.round(box * 1023), tf.int32), 0, 1023).numpy()
    text = "".join(f"<loc{n:04d}>" for n in locations)
    text += "".join(f"<seg{n:03d}>" for n in self._codes(cut))
    data["prefix"], data["suffix"] = data["objects/refs/sentence"], tf.constant(text)
    return data

  def _codes(self, mask):
    x = 2.0 * (mask - 0.5)
    for name in "0246":
      x = tf.nn.relu(self._conv(f"encoder.{name}", x, 2))
    for name in "89":
      y = tf.nn.relu(self._conv(f"encoder.{name}.net.0", x, 1))
      y = tf.nn.relu(self._conv(f"encoder.{name}.net.2", y, 1))
      x = x + self._conv(f"encoder.{name}.net.4", y, 1)
    x = self._conv("encoder.10", x, 1)
    codebook = self.vae["_vq_vae._embedding"]
    x = tf.reshape(x, [-1, codebook.shape[1]])
    distances = tf.reduce_sum((x[:, None] - codebook[None]) ** 2, axis=-1)
    return tf.argmin(distances, axis=1).numpy()

  def _conv(self, name, x, stride):
    kernel = np.transpose(self.vae[f"{name}.weight"], (2, 3, 1, 0))
    return tf.nn.conv2d(x, kernel, strides=stride, padding="SAME") + self.vae[f"{name}.bias"]


def _scaled(image, size, which, method, antialias):
  sides = tf.cast(tf.shape(image)[:2], tf.float32)
  factor = tf.cast(size, tf.float32) / (tf.reduce_min if which is min else tf.reduce_max)(sides)
  sides = tf.cast(tf.round(sides * factor), tf.int32)
  return _clipped(tf.image.resize(image, sides, method=method, antialias=antialias), image.dtype)
