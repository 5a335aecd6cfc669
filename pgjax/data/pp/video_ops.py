"""Which ops work on videos and pairs of images? Factories, as in parse.py.

A video is `episodic_images`, a list of encoded frames, until video_decode turns it into one float32
array `image` [N, H, W, 3].
"""

from typing import Annotated, Unpack

import numpy as np

from pgjax.call_syntax import Between
from pgjax.data import images, resizing
from pgjax.data.pp import text_ops
from pgjax.data.pp.text_ops import Name, Names, Route, routed
from pgjax.errors import UserError

_Count = Annotated[int, Between(1, 10_000)]
_Scalar = str | float
FRAMES = "episodic_images"


def video_decode(res: Annotated[int, Between(1, 2048)]):
  """`episodic_images` -> `image`, float32 [N, res, res, 3] in [-1, 1].

  Frames are encoded or uint8 [H, W, 3]. Resized without antialiasing or rounding to whole levels.
  """

  def apply(example):
    frames = example[FRAMES]
    if isinstance(frames, bytes) or len(frames) == 0:
      raise UserError(f"video_decode takes a list of frames, and '{FRAMES}' has none")
    return example | {"image": np.stack([_frame(frame, res) for frame in frames])}

  return apply


def _frame(frame, res):
  pixels = frame if isinstance(frame, np.ndarray) else images.decode(bytes(frame))
  pixels = resizing.resize(pixels.astype(np.float32), res, res, antialias=False)
  return np.float32(2) * (pixels / np.float32(255)) - np.float32(1)


def video_replicate_img(replicas: _Count, num_frames: _Count):
  """Repeats the frames of `image` this many times, and takes the first num_frames."""

  def apply(example):
    frames = np.asarray(example["image"])
    times = min(replicas, -(-num_frames // max(len(frames), 1)))  # No more than are used.
    return example | {"image": np.tile(frames, (times, 1, 1, 1))[:num_frames]}

  return apply


def video_ensure_shape(
  key: Name, shape: Annotated[list[Annotated[int, Between(0, 2**31 - 1)] | None], Between(0, 8)]
):
  """Checks the shape of an array; None is any length."""

  def apply(example):
    actual = np.shape(example[key])
    fits = len(actual) == len(shape) and all(
      m in (None, n) for n, m in zip(actual, shape, strict=True)
    )
    if not fits:
      raise UserError(f"'{key}' has the shape {actual}, and video_ensure_shape asks for {shape}")
    return example

  return apply


def video_choice(empty_fallback: _Scalar | None = None, **route: Unpack[Route]):
  """Picks one element at random, at any depth of a list; if it is empty, `empty_fallback` or ""."""
  inkey, outkey = routed(route, "image")

  def apply(example):
    value = example[inkey]
    flat = list(_flat(value.tolist() if isinstance(value, np.ndarray) else value))
    if not flat:
      is_number = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
      empty = 0 if is_number else ""
      return example | {outkey: empty if empty_fallback is None else empty_fallback}
    return example | {outkey: flat[text_ops.example_rng(example).randrange(len(flat))]}

  return apply


def _flat(value):
  if not isinstance(value, list | tuple):
    yield value
    return
  for each in value:
    yield from _flat(each)


def stack_images(inkeys: Names = (), outkey: Name = "image"):
  """Stacks decoded images of one size, such as a pair, to frames [N, H, W, C]."""
  if not inkeys:
    raise UserError("it takes inkeys=, a list of names.")

  def apply(example):
    arrays = [np.asarray(example[name]) for name in inkeys]
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
      shapes = {name: array.shape for name, array in zip(inkeys, arrays, strict=True)}
      raise UserError(f"stack_images takes images of one size and type, not {shapes}")
    return example | {outkey: np.stack(arrays)}

  return apply


def convert_to_video(num_frames: _Count, **route: Unpack[Route]):
  """An image [H, W, C] -> [num_frames, H, W, C], whose other frames are 0."""
  inkey, outkey = routed(route, "image")

  def apply(example):
    image = np.asarray(example[inkey])
    video = np.zeros((num_frames, *image.shape), image.dtype)
    video[0] = image
    return example | {outkey: video}

  return apply


IMAGE_OPS = (video_decode, video_replicate_img, video_ensure_shape, stack_images, convert_to_video)
OPS = (*IMAGE_OPS, video_choice)
