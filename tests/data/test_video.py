"""Video files, made here with PyAV: each frame is grey, and its level tells its number."""

import os

import numpy as np
import pytest

from pgjax.data import images, video
from pgjax.errors import UserError

av = pytest.importorskip("av", reason="PyAV (requirements-data.txt) is not installed")
STEP = 6  # Grey levels from frame to frame.


def write(path, count=40, rate=10, codec="mpeg4", options=None, skip=()):
  """`skip`: frames that are missing, as in a file with a variable rate."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=rate, options=options or {})
    stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
    stream.codec_context.gop_size = 12
    for i in (n for n in range(count) if n not in skip):
      frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), STEP * i, np.uint8), format="rgb24")
      frame.pts = i
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return str(path)


def numbers(encoded):
  """The frame that each picture shows."""
  return [round(float(images.decode(one).mean()) / STEP) for one in encoded]


@pytest.mark.parametrize(
  ("name", "codec"),
  [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "libx264"), ("a.mov", "mpeg4")],
)
def test_frames_are_those_of_their_times(tmp_path, name, codec):
  if codec == "libx264" and codec not in av.codecs_available:
    pytest.skip("this build of FFmpeg has no H.264")
  options = {"crf": "1", "bf": "2"} if codec == "libx264" else {"qscale": "1"}
  path = write(tmp_path / name, codec=codec, options=options)
  times = video.times(path)
  np.testing.assert_allclose(times, np.arange(40) / 10, atol=2e-3)
  for wanted in ([0, 1, 2, 39], [17], [13, 25, 26], [38, 39]):
    assert numbers(video.frames(path, wanted)) == wanted


def test_a_variable_frame_rate_has_times_of_its_own(tmp_path):
  path = write(tmp_path / "a.mkv", skip=range(5, 20))
  times = video.times(path)
  np.testing.assert_allclose(times, [n / 10 for n in range(40) if not 5 <= n < 20], atol=2e-3)
  assert numbers(video.frames(path, [4, 5, 24])) == [4, 20, 39]


def test_what_is_no_whole_video_raises(tmp_path):
  whole = write(tmp_path / "a.mkv")
  content = (tmp_path / "a.mkv").read_bytes()
  playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:{whole}\n#EXT-X-ENDLIST\n"
  cases = {
    "cut.mkv": (content[: len(content) // 4], "may be cut off"),
    "list.m3u8": (playlist.encode(), "no video of the formats"),
    "list.mp4": (playlist.encode(), "no video of the formats"),
    "text.mp4": (b"not a video", "no video of the formats"),
  }
  for name, (data, message) in cases.items():
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
      video.times(str(tmp_path / name))
  os.mkfifo(tmp_path / "pipe.mp4")
  with pytest.raises(UserError, match=r"it is a FIFO .*, not a file"):
    video.times(str(tmp_path / "pipe.mp4"))
  with pytest.raises(UserError, match="No such file"):
    video.times(str(tmp_path / "none.mp4"))
