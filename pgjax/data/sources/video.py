"""Which examples are in a file of texts with videos beside it?

dict(name="video", fname="data/train.jsonl", num_frames=16, stride=10) reads rows such as

  {"video": "clips/a.mp4", "start": 3.5, "end": 9, "question": "...", "answer": "..."}

from JSONL, a JSON list or CSV. `video` is a video file, a folder of frames as JPEG or PNG (in the
order of their names, numbers as numbers), or a list of such frames, below the file's folder or
`root`. `start` and `end` are optional, in seconds.

For big_vision's video configs, dataset_name="msrvtt", split="train" is the file
data_dir/msrvtt/train.jsonl (or .json, .csv). data_dir is $TFDS_DATA_DIR by default.

Each row gets `image` and `episodic_images`, both a list of frames as JPEG; `example/video_id` (the
file without its ending), `caption/string` (a list), `segment_start` and `segment_end` (seconds) and
`clip/start/timestamp` and `clip/end/timestamp` (microseconds), unless the file has such columns. An
end of -1 is that of the video.
"""

import math
import os
import re
from typing import Any, NamedTuple

import numpy as np

from pgjax.data import video as video_files
from pgjax.data.sources import columns, files, row_files
from pgjax.data.sources.easy_vqa import cut_split
from pgjax.errors import UserError
from pgjax.formats import input_files

SHARD_ROWS = 256  # Rows that `first_k_shards` counts as one.
_FRAME_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_CAPTIONS = ("caption/string", "captions", "caption", "sentences")
_SHORT = ("loop", "first", "mask")


class Video:
  """One example for each row.

  num_frames, stride: frames of an example, and the step between them; stride=None spreads them over
    the clip.
  deterministic_fs: from the clip's first frame; else from a random one, if the clip has more than
    num_frames * stride frames.
  short: what `image` has if a clip has fewer frames: "loop" repeats them all, as
    video_replicate_img does, "first" repeats the first one in front, "mask" leaves them out
    (image_mask).
  first_k_shards: only the first k times 256 rows, for quick evaluations.
  fps: frames per second of folders, needed for start and end in them.
  skip_missing: leaves out rows whose video does not exist; they are counted.
  """

  def __init__(
    self,
    fname=None,
    num_frames=16,
    stride=None,
    *,
    dataset_name=None,
    split=None,
    data_dir=None,
    deterministic_fs=True,
    first_k_shards=None,
    short="loop",
    fps=None,
    skip_missing=False,
    root=None,
    video="video",
    start="start",
    end="end",
    prefix=None,
    suffix=None,
    id=None,
    prompt=None,
  ):
    self._num_frames = _whole(num_frames, "num_frames")
    self._stride = None if stride is None else _whole(stride, "stride")
    self._deterministic, self._fps, self._short = deterministic_fs, fps, short
    if short not in _SHORT:
      raise UserError(f"data='video': short={short!r} must be one of {', '.join(_SHORT)}.")
    self.fname, part = _file(fname, dataset_name, split, data_dir)
    self.root = os.path.abspath(os.path.expanduser(root or os.path.dirname(self.fname)))
    self._names = dict(video=video, start=start, end=end)
    self._columns = columns.Columns(prefix=prefix, suffix=suffix, id=id, prompt=prompt)
    file = row_files.RowFile(self.fname)
    rows = list(file)
    rows = rows[part(len(rows))]
    if first_k_shards is not None:
      rows = rows[: SHARD_ROWS * _whole(first_k_shards, "first_k_shards")]
    if not rows:
      raise UserError(f"{self.fname} has no examples; {_WANTED}.")
    self._at = file.at
    self._clips = [self._checked(number, row) for number, row in rows]
    self.read_as: list[str] = []
    self._paths = self._located()
    self.omitted = ""
    if skip_missing:
      self._skip_missing()

  def __len__(self):
    return len(self._clips)

  def __getitem__(self, i):
    return self.sample(i, None)

  def sample(self, i, seed):
    """Example i; a random clip is drawn with `seed`, a tuple of whole numbers, or None."""
    rng = None if self._deterministic or seed is None else np.random.default_rng(seed)
    frames = self._frames(i, rng)
    missing = self._num_frames - len(frames)
    image = frames
    if missing > 0 and self._short == "loop":
      image = (frames * (missing // len(frames) + 2))[: self._num_frames]
    elif missing > 0 and self._short == "first":
      image = frames[:1] * missing + frames
    return {**self.texts(i), "image": image, "episodic_images": frames}

  def texts(self, i):
    """The example without its frames."""
    clip = self._clips[i]
    derived = {
      "example/video_id": _video_id(clip.video),
      "segment_start": clip.start,
      "segment_end": clip.end,
      "clip/start/timestamp": round(clip.start * 1e6),
      "clip/end/timestamp": round(clip.end * 1e6) if clip.end >= 0 else -1,
    }
    example = derived | clip.row
    captions = next((clip.row[name] for name in _CAPTIONS if name in clip.row), None)
    if captions is not None:
      example["caption/string"] = captions if isinstance(captions, list) else [captions]
    return example if example.get("id") is not None else example | {"id": str(i)}

  def where(self, i):
    """File, line and video."""
    clip = self._clips[i]
    return f"{self._at(clip.number)} (video {clip.names[0]})"

  def check_images(self):
    """Raises for the first missing video or folder."""
    paths = ((path, self.where(i)) for i, group in enumerate(self._paths) for path in group)
    files.check_present(self.root, paths, what="video")
    if any(_is_video(path) for group in self._paths for path in group):
      video_files.require()

  def _checked(self, number: int, row: dict[str, Any]) -> "_Clip":
    where = self._at(number)
    row = self._columns.applied(row, where)
    video = row.get(self._names["video"])
    clip = _Clip(
      number,
      row,
      video,
      *(_seconds(row, self._names[n], default, where) for n, default in _TIMES.items()),
    )
    if not video or not all(isinstance(name, str) and name for name in clip.names):
      raise UserError(
        f"{where}: {self._names['video']!r} must be the name of a video, of a folder of frames, or"
        f" a list of frames, not {video!r:.80}; {_WANTED}."
      )
    if 0 <= clip.end <= clip.start:
      raise UserError(f"{where}: the clip ends at {clip.end:g} s and starts at {clip.start:g} s.")
    return clip

  def _located(self) -> list[list[str]]:
    named = ((name, self._at(clip.number)) for clip in self._clips for name in clip.names)
    located = files.locate(self.root, named, self.fname, what="video", read_as=self.read_as)
    paths = iter(located)
    return [[next(paths) for _ in clip.names] for clip in self._clips]

  def _skip_missing(self) -> None:
    present = files.present(path for group in self._paths for path in group)
    rest = [i for i, group in enumerate(self._paths) if all(path in present for path in group)]
    missing = len(self._clips) - len(rest)
    if not rest:
      raise UserError(f"{self.fname}: none of its {missing:,} videos is in {self.root}.")
    if missing:
      total = len(self._clips)
      self.omitted = f"{missing:,} of {total:,} rows, whose videos are not in {self.root}"
      files.log.warning("%s: left out are %s.", self.fname, self.omitted)
      self._clips = [self._clips[i] for i in rest]
      self._paths = [self._paths[i] for i in rest]

  def _frames(self, i, rng) -> list[bytes]:
    """The chosen frames, encoded."""
    clip, paths = self._clips[i], self._paths[i]
    if isinstance(clip.video, str):
      if _is_video(paths[0]):
        times = video_files.times(paths[0])
        return video_files.frames(paths[0], self._chosen(times, clip, rng))
      paths = _frames_in(paths[0])
    if self._fps is None and (clip.start > 0 or clip.end >= 0):
      raise UserError("start and end of a clip in separate frames need fps=, frames per second")
    times = np.arange(len(paths)) / (self._fps or 1)
    return [files.file_bytes(paths[k]) for k in self._chosen(times, clip, rng)]

  def _chosen(self, times: np.ndarray, clip: "_Clip", rng) -> list[int]:
    """The numbers of the frames of a video whose frames have these times, ascending."""
    start, end = clip.start, clip.end
    inside = np.flatnonzero((times >= start - _TINY) & ((times < end - _TINY) | (end < 0)))
    if not len(inside):
      raise UserError(
        f"no frame is between {start:g} s and {f'{end:g} s' if end >= 0 else 'the end'}; it has"
        f" {len(times):,} frames in {times[-1]:.2f} s"
      )
    return [int(inside[k]) for k in chosen(len(inside), self._num_frames, self._stride, rng)]


class _Clip(NamedTuple):
  """A row, its video (or list of frames), and its start and end in seconds; an end of -1: none."""

  number: int
  row: dict[str, Any]
  video: Any
  start: float
  end: float

  @property
  def names(self) -> list:
    return self.video if isinstance(self.video, list) else [self.video]


_TIMES = dict(start=0.0, end=-1.0)  # In rows without them.
_TINY = 1e-6  # Seconds.
_WANTED = 'a row is such as {"video": "a.mp4", "prefix": "...", "suffix": "..."}'


def chosen(length: int, num_frames: int, stride: int | None, rng=None) -> list[int]:
  """Up to num_frames ascending numbers of `length` frames; rng draws where they begin.

  With a stride from the first frame on, or from a random one if there are more than num_frames *
  stride; without, in the middles of num_frames equal parts (all at one random point of them).
  """
  if stride is None:
    if length <= num_frames:
      return list(range(length))
    at = 0.5 if rng is None else rng.random()
    return [int((k + at) * length / num_frames) for k in range(num_frames)]
  room = length - num_frames * stride
  first = 0 if rng is None or room <= 0 else int(rng.integers(room + 1))
  return list(range(first, length, stride))[:num_frames]


def _file(fname, dataset_name, split, data_dir):
  """(the file with the rows, a function from their number to the slice that is read)."""
  if (fname is None) == (dataset_name is None):
    raise UserError(
      "data='video' needs either fname=, a JSONL or CSV file, or dataset_name= and split=, whose"
      " file is data_dir/dataset_name/split.jsonl."
    )
  if fname is not None:
    return os.path.expanduser(fname), lambda _: slice(None)
  if not isinstance(split, str):
    raise UserError(f"data='video', dataset_name={dataset_name!r} needs split=.")
  name, part = cut_split(split)
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  root = os.path.abspath(os.path.expanduser(data_dir))
  folder = input_files.inside(root, dataset_name, f"dataset_name={dataset_name!r}", "data_dir")
  for ending in row_files.ENDINGS:
    if input_files.exists(path := os.path.join(folder, name + ending)):
      return path, part
  raise UserError(
    f"There is no {os.path.join(folder, name)}.jsonl (or .json, .csv), the rows of {dataset_name},"
    f" split {name}: {_WANTED}, and videos are below {folder}. data_dir= or the environment"
    " variable TFDS_DATA_DIR names another folder."
  )


def _whole(value, name: str) -> int:
  if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
    raise UserError(f"data='video': {name}={value!r} must be a whole number from 1 on.")
  return value


def _seconds(row: dict[str, Any], name: str, default: float, where: str) -> float:
  value = row.get(name)
  if value is None or value == "":
    return default
  try:
    seconds = float(value)
  except (TypeError, ValueError):
    seconds = math.nan
  if isinstance(value, bool) or not (0 <= seconds < 1e7 or seconds == default):
    raise UserError(f"{where}: {name!r} must be a time in seconds, not {value!r:.80}.")
  return seconds


def _video_id(video: str | list[str]) -> str:
  name = video if isinstance(video, str) else os.path.dirname(video[0])
  return re.sub(r"\.[A-Za-z0-9]{2,4}$", "", re.split(r"[\\/]", name.rstrip("\\/"))[-1])


def _is_video(path: str) -> bool:
  """Whether it is a file, and no single frame."""
  return not path.lower().endswith(_FRAME_ENDINGS) and not input_files.is_folder(path)


def _frames_in(folder: str) -> list[str]:
  """The frames of a folder in the order of their names."""
  if not input_files.is_folder(folder):
    return [folder]
  names = [n for n in input_files.names(folder) if n.lower().endswith(_FRAME_ENDINGS)]
  if not names:
    raise UserError(f"the folder has no frames ({', '.join(_FRAME_ENDINGS)})")
  order = {name: [(int(n) if n.isdigit() else 0, n) for n in re.split(r"(\d+)", name)]
           for name in names}  # fmt: skip
  return [os.path.join(folder, name) for name in sorted(names, key=order.__getitem__)]
