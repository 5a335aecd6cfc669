"""Which frames are in a video file, and how are some of them decoded?

PyAV (FFmpeg) reads the file. Frames are chosen by their presentation times, which the packets have,
so that files with a variable frame rate and files that begin late are read right, and only the part
around the chosen frames is decoded. A phone's rotation is applied, as players do.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pgjax.data import images
from pgjax.errors import UserError
from pgjax.formats import input_files

MAX_BYTES = 64 << 30
QUALITY = 95  # Of the JPEGs, with whole chroma.
# FFmpeg has many more; playlists among them would open other files and URLs.
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,gif,m4v"
_INSTALL = "reading videos needs PyAV: pip install -r requirements-data.txt (or pip install av)"
_LEAST = 0.5  # Share of the declared frames or time that a whole file has.
_FILES = 4096  # Videos whose times are remembered.

Choose = Callable[[np.ndarray], Sequence[int]]


def require() -> Any:
  """The module `av`; raises UserError if it is not installed."""
  try:
    import av
  except ImportError:
    raise UserError(f"{_INSTALL}.") from None
  return av


def times(path: str) -> np.ndarray:
  """float64 [N]: the time of each frame in seconds, from the first one, in order."""
  stamps = _stamps_of(path)
  return (stamps.numbers - stamps.numbers[0]) * stamps.unit


def frames(path: str, indices: Sequence[int]) -> list[bytes]:
  """The frames with these ascending numbers, as JPEG; raises UserError without the path."""
  stamps = _stamps_of(path)
  wanted = [int(stamps.numbers[i]) for i in indices]
  with _errors():
    return input_files.bounded(lambda alive: _encoded(path, wanted, stamps.is_seekable, alive))


class _Stamps(NamedTuple):
  """Presentation times of the frames in units of `unit` seconds, or their numbers; ascending."""

  numbers: np.ndarray
  unit: float
  is_seekable: bool  # Else frames are counted from the start.


def _stamps_of(path: str) -> _Stamps:
  with _errors():
    info = input_files.status(path)
    return _remembered(path, info.st_mtime_ns, info.st_size)


@functools.lru_cache(maxsize=_FILES)
def _remembered(path: str, changed_ns: int, size: int) -> _Stamps:
  del changed_ns, size
  return input_files.bounded(lambda alive: _stamps(path, alive))


def _stamps(path: str, alive: Callable) -> _Stamps:
  with _opened(path) as (container, stream):
    unit, numbers = float(stream.time_base), []
    for packet in container.demux(stream):
      alive()
      if packet.size and not packet.is_discard:
        numbers.append(packet.pts)
    if not numbers:
      raise UserError("it has no frames")
    if None not in numbers and container.format.name != "avi":  # AVI has the order of decoding.
      _check_whole(numbers, container, stream)
      return _Stamps(np.unique(np.array(numbers, np.int64)), unit, is_seekable=True)
  with _opened(path) as (container, stream):
    unit = 1 / float(stream.average_rate or 25)
    count = sum(1 for _ in _decoded(container, stream, alive))
    if not count:
      raise UserError("none of its frames can be decoded")
    return _Stamps(np.arange(count), unit, is_seekable=False)


def _check_whole(numbers: list[int], container: Any, stream: Any) -> None:
  """Raises for a file that was cut off, whose header declares more frames or a longer time."""
  seconds = (max(numbers) - min(numbers)) * float(stream.time_base)
  declared = (container.duration or 0) / 1e6
  if len(numbers) < _LEAST * stream.frames or seconds + 1 < _LEAST * declared:
    raise UserError(
      f"it declares {stream.frames or 'many'} frames in {declared:.1f} s and has {len(numbers)} in"
      f" {seconds:.1f} s, so it may be cut off; copy or download it again"
    )


def _encoded(path: str, wanted: list[int], is_seekable: bool, alive: Callable) -> list[bytes]:
  """JPEGs of the frames with these times; from the last key frame before, else from the start."""
  for seek in (True, False)[not is_seekable :]:
    pictures: dict[int, bytes] = {}
    with _opened(path) as (container, stream):
      if seek:
        container.seek(wanted[0], stream=stream, backward=True)
      for count, frame in enumerate(_decoded(container, stream, alive)):
        number = frame.pts if is_seekable else count
        if number in wanted and number not in pictures:
          pictures[number] = _jpeg(frame)
        if len(pictures) == len(set(wanted)):
          return [pictures[time] for time in wanted]
  raise UserError(
    f"only {len(pictures)} of the {len(set(wanted))} frames that are wanted can be decoded; is the"
    " file damaged?"
  )


def _decoded(container: Any, stream: Any, alive: Callable) -> Iterator[Any]:
  for frame in container.decode(stream):
    alive()
    yield frame


def _jpeg(frame: Any) -> bytes:
  if frame.is_corrupt:
    raise UserError(f"the frame at {frame.time:.2f} s is damaged")
  pixels = frame.to_ndarray(format="rgb24")
  if turns := round(getattr(frame, "rotation", 0) / 90) % 4:
    pixels = np.ascontiguousarray(np.rot90(pixels, turns))
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, subsampling=0)
  return file.getvalue()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
  """(container, its first video stream), of a regular file in one of _FORMATS."""
  av = require()
  with (
    input_files.opened(path, most=MAX_BYTES) as file,
    av.open(file, options={"format_whitelist": _FORMATS}) as container,
  ):
    streams = [s for s in container.streams.video if "attached_pic" not in _disposition(s)]
    if not streams:
      raise UserError("it has no video stream")
    stream = streams[0]
    stream.codec_context.thread_count = 1  # Each example has a thread of its own.
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > images.MAX_PIXELS:
      raise UserError(
        f"its frames are {width:,} x {height:,} pixels, above the {images.MAX_PIXELS:,} that are"
        " decoded"
      )
    yield container, stream


def _disposition(stream: Any) -> str:
  return str(getattr(stream, "disposition", "")).lower()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
  """Errors of files and of FFmpeg as UserError."""
  try:
    yield
  except UserError:
    raise
  except input_files.UnresponsiveError as error:
    raise input_files.StalledError(f"the video cannot be read: {error}") from None
  except Exception as error:  # FFmpeg's are OSErrors, ValueErrors and others.
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    raise UserError(
      f"the video cannot be read ({reason}); is it damaged, or no video of the formats"
      f" {', '.join(sorted(_FORMATS.split(',')))}?"
    ) from None
