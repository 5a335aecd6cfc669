"""The source of videos: rows, clips, and the columns of big_vision's configs."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from pgjax.data import loader as loader_lib, tokenizer, video as video_files
from pgjax.data.sources import registry, video
from pgjax.errors import UserError

LAYOUT = loader_lib.Layout(res=8, text_len=64, num_frames=4, for_training=True)
PP = "decode|resize(8)|value_range(-1, 1)"


@pytest.fixture
def folder(tmp_path):
  """set/clip, twelve frames of grey 10, 20 ... in the order 1 ... 12, and set/train.jsonl."""
  (tmp_path / "set/clip").mkdir(parents=True)
  for i in range(1, 13):
    Image.fromarray(np.full((4, 6, 3), 10 * i, np.uint8)).save(tmp_path / f"set/clip/{i}.png")
  write(tmp_path, dict(video="clip", prefix="p", suffix="s"))
  return tmp_path


def write(folder, *rows):
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "set/train.jsonl").write_text(lines)


def opened(folder, **fields):
  return registry.open(dict(name="video", fname=str(folder / "set/train.jsonl"), **fields))


def levels(example, name="image"):
  return [int(video_files.images.decode(frame)[0, 0, 0]) // 10 for frame in example[name]]


def test_frames_are_chosen_by_stride_from_the_first_or_a_random_one():
  assert video.chosen(100, 4, 10) == [0, 10, 20, 30]
  assert video.chosen(25, 4, 10) == [0, 10, 20]
  assert video.chosen(3, 4, None) == [0, 1, 2]
  assert video.chosen(100, 4, None) == [12, 37, 62, 87]
  rng = np.random.default_rng(0)
  starts = {video.chosen(42, 4, 10, rng)[0] for _ in range(200)}
  assert starts == {0, 1, 2}  # 42 - 4 * 10.
  assert {video.chosen(40, 4, 10, rng)[0] for _ in range(20)} == {0}
  spread = {tuple(video.chosen(40, 4, None, rng)) for _ in range(200)}
  assert spread == {tuple(range(k, 40, 10)) for k in range(10)}


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(folder):
  assert levels(opened(folder, num_frames=12)[0]) == list(range(1, 13))
  assert levels(opened(folder, num_frames=3, stride=5)[0]) == [1, 6, 11]
  example = opened(folder, num_frames=4, stride=5)[0]  # Only three frames are that far apart.
  assert levels(example) == [1, 6, 11, 1]
  assert levels(example, "episodic_images") == [1, 6, 11]
  assert levels(opened(folder, num_frames=4, stride=5, short="first")[0]) == [1, 1, 6, 11]
  assert levels(opened(folder, num_frames=4, stride=5, short="mask")[0]) == [1, 6, 11]


def test_start_and_end_cut_a_clip(folder):
  row = dict(video="clip", start=1, end="2.5", prefix="p", suffix="s")
  write(folder, row, row | dict(start=30, end=40))
  assert levels(opened(folder, num_frames=9, fps=4, short="mask")[0]) == [5, 6, 7, 8, 9, 10]
  with pytest.raises(UserError, match=r"no frame is between 30 s and 40 s; it has 12 frames"):
    opened(folder, fps=4)[1]
  with pytest.raises(UserError, match="need fps="):
    opened(folder)[0]


def test_a_row_becomes_frames_for_the_model(folder):
  source = opened(folder, num_frames=4, stride=2, deterministic_fs=False)
  part = loader_lib.Part("video", source, 1.0)
  load = loader_lib.Loader(part, PP, tokenizer.load("tiny"), LAYOUT, seed=0)
  image = load(0, 0).arrays["image"]
  assert image.shape == (4, 8, 8, 3)
  np.testing.assert_array_equal(image, load(0, 0).arrays["image"])
  clips = {float(load(epoch, 0).arrays["image"][0, 0, 0, 0]) for epoch in range(40)}
  assert len(clips) == 5  # A clip of 4 * 2 of 12 frames begins at 0 ... 4, anew for each epoch.
  masked = opened(folder, num_frames=4, stride=5, short="mask")
  load = loader_lib.Loader(part._replace(source=masked), PP, tokenizer.load("tiny"), LAYOUT, seed=0)
  assert load(0, 0).arrays["image_mask"].tolist() == [True, True, True, False]


def test_big_visions_configs_get_their_columns(folder, monkeypatch):
  write(
    folder,
    dict(video="clip/1.png", captions=["a", "b"], start=2, end=3.5, question="q", answer="x", id=7),
    *[dict(video=["clip/2.png", "clip/3.png"], caption="c")] * 300,
  )
  monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
  spec = dict(name="<add_your_data_loader_here>", dataset_name="set", split="train")
  spec |= dict(num_frames=16, stride=9, deterministic_fs=True, first_k_shards=1)
  source = registry.open(spec)
  assert len(source) == video.SHARD_ROWS
  texts = source.texts(0)
  assert {name: texts[name] for name in ("caption/string", "question", "answer", "id")} == {
    "caption/string": ["a", "b"], "question": "q", "answer": "x", "id": 7
  }  # fmt: skip
  assert texts["example/video_id"] == "1"
  assert (texts["segment_start"], texts["segment_end"]) == (2, 3.5)
  assert (texts["clip/start/timestamp"], texts["clip/end/timestamp"]) == (2_000_000, 3_500_000)
  assert source.texts(1)["caption/string"] == ["c"]
  assert source.texts(1)["clip/end/timestamp"] == -1
  assert levels(source[1], "episodic_images") == [2]  # stride 9
  assert len(registry.open(spec | dict(split="train[:3]", first_k_shards=None))) == 3


@pytest.mark.parametrize(
  ("row", "fields", "message"),
  [
    (dict(prefix="p"), {}, r"line 1: 'video' must be the name of a video.*not None"),
    (dict(video="../x.mp4"), {}, r"line 1: video '../x.mp4' is outside of"),
    (dict(video="x.mp4"), {}, r"line 1 \(video x.mp4\): video 'x.mp4' is not in"),
    (dict(video="https://x.org/a.mp4"), {}, r"line 1: video .* is a URL; nothing is downloaded"),
    (dict(video="clip", start="soon"), {}, "'start' must be a time in seconds, not 'soon'"),
    (dict(video="clip", start=5, end=5), {}, "the clip ends at 5 s and starts at 5 s"),
    (dict(video="clip"), dict(num_frames=0), "num_frames=0 must be a whole number from 1 on"),
    (dict(video="clip"), dict(short="cut"), "short='cut' must be one of loop, first, mask"),
    (dict(video="clip"), dict(prefix="q"), r"there is no column 'q' \(prefix=\); it has 'video'"),
  ],
)
def test_a_wrong_row_or_field_raises(folder, row, fields, message):
  write(folder, row)
  with pytest.raises(UserError, match=message):
    opened(folder, **fields)[0]


def test_missing_videos_may_be_left_out_and_are_counted(folder, caplog):
  write(folder, dict(video="clip", prefix="p"), dict(video="gone.mp4", prefix="p"))
  with caplog.at_level(logging.WARNING, "pgjax"):
    source = opened(folder, skip_missing=True)
  assert len(source) == 1
  assert "left out are 1 of 2 rows, whose videos are not in" in caplog.text
  with pytest.raises(UserError, match=r"There is no .*set/test.jsonl \(or .json, .csv\), the rows"):
    registry.open(dict(name="video", dataset_name="set", split="test", data_dir=str(folder)))


def test_the_package_for_videos_is_named_before_a_run(folder, monkeypatch):
  (folder / "set/a.mp4").write_bytes(b"")
  write(folder, dict(video="a.mp4", prefix="p"))
  monkeypatch.setitem(__import__("sys").modules, "av", None)
  with pytest.raises(UserError, match=r"needs PyAV: pip install -r requirements-data.txt"):
    opened(folder)
  (folder / "set/train.jsonl").write_text('{"video": "a.mp4", "prefix": "p"}\n')
  with pytest.raises(UserError, match=r"names a video: read the file as dict\(name='video'"):
    registry.open(dict(name="jsonl", fname=str(folder / "set/train.jsonl")))
