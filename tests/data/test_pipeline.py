import itertools
import json
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from pgjax.data import device_feed, loader, pipeline, tokenizer
from pgjax.errors import UserError

PP = 'decode|resize(16)|value_range(-1, 1)|copy("question", "prefix")|copy("answer", "suffix")'


def run_config(**changes):
  config = ConfigDict(dict(seed=3, res=16, text_len=16, num_frames=0))
  config.input = dict(
    data=dict(name="easy_vqa", split="train[:50]"), pp=PP, batch_size=8, num_threads=1,
    num_workers=0, cache_mb=16, allow_truncated=False,
  )  # fmt: skip
  config.update_from_flattened_dict(changes)
  return config


def batches(count, config=None, **kwargs):
  data = pipeline.train_batches(config or run_config(), tokenizer.load("tiny"), **kwargs)
  return list(itertools.islice(data, count))


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


RANDOM_PP = PP.replace("resize(16)", "resize(16)|flip_lr|random_shift(3)|inception_crop(16, 50)")


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_batch_of_a_step_does_not_depend_on_the_number_of_processes(process_count):
  config = run_config(**{"input.pp": RANDOM_PP})
  whole = batches(9, config)  # More than an epoch of 50 examples.
  shares = [
    batches(9, config, process_index=p, process_count=process_count) for p in range(process_count)
  ]
  for step, batch in enumerate(whole):
    joined = {key: np.concatenate([share[step][key] for share in shares]) for key in batch}
    assert_equal(batch, joined)


def test_starting_at_a_step_equals_an_uninterrupted_stream():
  config = run_config(**{"input.pp": RANDOM_PP})
  for a, b in zip(batches(10, config)[6:], batches(4, config, start_step=6), strict=True):
    assert_equal(a, b)


def test_another_seed_gives_another_order():
  assert not np.array_equal(batches(1)[0]["text"], batches(1, run_config(seed=4))[0]["text"])


# Data of our own, whose suffix is its number


def write_images(folder, count, name="data", **fields):
  folder.mkdir(exist_ok=True)
  rows = []
  for i in range(count):
    pixels = np.random.default_rng(i).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    rows.append(dict(image=f"{i}.png", prefix=name, suffix=str(i), **fields))
  write_rows(folder, rows)
  return dict(name="jsonl", fname=str(folder / "data.jsonl"))


def write_rows(folder, rows):
  (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


JSONL_PP = "decode|resize(16)|value_range(-1, 1)"
LAYOUT = loader.Layout(res=16, text_len=16, num_frames=0, for_training=False)


def own_config(data, **changes):
  config = run_config(**{"input.pp": JSONL_PP, **changes})
  del config.input.data
  config.input.data = data
  return config


def answers(batch):
  tiny = tokenizer.load("tiny")
  return [
    tiny.decode(row[mask == 1]) for row, mask in zip(batch["text"], batch["mask_loss"], strict=True)
  ]


def prompts(batch):
  tiny = tokenizer.load("tiny")
  return [
    tiny.decode(row[mask == 0]) for row, mask in zip(batch["text"], batch["mask_ar"], strict=True)
  ]


def test_each_epoch_has_every_example_once_and_its_own_order(tmp_path):
  config = own_config(write_images(tmp_path, 12), **{"input.batch_size": 4})
  numbers = [n for batch in batches(9, config) for n in answers(batch)]
  epochs = [numbers[i : i + 12] for i in (0, 12, 24)]
  assert all(sorted(epoch, key=int) == [str(i) for i in range(12)] for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_mixture_has_its_weights_and_counts_all_examples(tmp_path):
  config = own_config(
    {
      "one": dict(write_images(tmp_path / "one", 5, "one"), weight=3),
      "two": dict(write_images(tmp_path / "two", 9, "two"), weight=1),
      "none": dict(name="jsonl", fname="/nowhere.jsonl", weight=0),
    }
  )
  tiny = tokenizer.load("tiny")
  data = pipeline.train_batches(config, tiny)
  assert data.num_examples == 14
  names = [name.strip() for _ in range(10) for name in prompts(next(data))]
  assert (names.count("one"), names.count("two")) == (60, 20)
  assert names[:8].count("one") == 6  # Also within a batch.


def test_the_order_of_a_data_set_is_independent_of_the_mixture(tmp_path):
  one = dict(write_images(tmp_path / "one", 7, "one"), weight=1)
  two = dict(write_images(tmp_path / "two", 7, "two"), weight=1)
  single, mixed = own_config({"one": one}), own_config({"one": one, "two": two})
  numbers = [n for batch in batches(2, single) for n in answers(batch)]
  pairs = [pair for b in batches(4, mixed) for pair in zip(prompts(b), answers(b), strict=True)]
  assert [answer for prompt, answer in pairs if prompt.startswith("one")] == numbers


@pytest.mark.parametrize(
  "change",
  [{"input.num_threads": 4}, {"input.cache_mb": 0}, {"piece_bytes": 1, "input.num_threads": 3}],
)
def test_threads_pieces_and_the_cache_change_nothing(change, monkeypatch):
  plain = batches(12, run_config(**{"input.pp": RANDOM_PP}))
  change = dict(change)
  if "piece_bytes" in change:
    monkeypatch.setattr(pipeline, "WHOLE_BATCH_BYTES", change.pop("piece_bytes"))
  for a, b in zip(plain, batches(12, run_config(**{"input.pp": RANDOM_PP, **change})), strict=True):
    assert_equal(a, b)


def test_large_images_in_a_small_batch_load_one_by_one(monkeypatch):
  plain = batches(3)
  monkeypatch.setattr(pipeline, "WHOLE_BATCH_BYTES", 1)
  for a, b in zip(plain, batches(3, run_config(**{"input.num_threads": 8})), strict=True):
    assert_equal(a, b)


def test_the_batch_has_the_documented_shapes_and_dtypes():
  batch = batches(1)[0]
  shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
  text = ((8, 17), "int32")
  assert shapes == dict(
    image=((8, 16, 16, 3), "float32"), text=text, mask_ar=text, mask_loss=text
  )  # fmt: skip
  assert -1 <= batch["image"].min() < 0 < batch["image"].max() <= 1


def test_frames_are_padded_and_masked(tmp_path):
  data = write_images(tmp_path, 3)
  write_rows(tmp_path, [dict(image=["0.png", "1.png"], prefix="p", suffix="s")] * 4)
  (batch,) = batches(1, own_config(data, num_frames=3))
  assert batch["image"].shape == (8, 3, 16, 16, 3)
  assert batch["image_mask"].tolist() == [[True, True, False]] * 8
  assert not batch["image"][:, 2].any()
  write_rows(tmp_path, [dict(image="1.png", prefix="p", suffix="s")] * 4)
  (single,) = batches(1, own_config(data, num_frames=3))
  assert single["image_mask"].tolist() == [[True, False, False]] * 8
  np.testing.assert_array_equal(single["image"][:, 0], batch["image"][:, 1])


def test_original_op_strings_pack_to_the_same_arrays():
  theirs = (
    '|tok(key="prefix", bos="yes")|tok(key="suffix", eos="yes")|tok(key="septok", text="\\n")'
    '|masked_concat(["prefix", "septok", "suffix"], mask_ar=[0, 0, 1], mask_loss=[0, 0, 1])'
    '|tolen(17, pad_value=0, key="text")|tolen(17, pad_value=1, key="mask_ar")'
    '|tolen(17, pad_value=0, key="mask_loss")|keep("image", "text", "mask_ar", "mask_loss")'
  )
  for a, b in zip(batches(2), batches(2, run_config(**{"input.pp": PP + theirs})), strict=True):
    assert_equal(a, b)


def test_incomplete_original_op_strings_raise():
  tok = '|tok(key="prefix", bos="yes")|tok(key="suffix", eos="yes")'
  concat = '|masked_concat(["prefix", "suffix"], mask_ar=[0, 1], {})'
  message = error(run_config(**{"input.pp": PP + tok + concat.format("mask_loss=[0, 1]")}))
  assert "texts have different lengths" in message
  for masks in (concat.format("mask_input=[1, 1]"), concat.replace(", {}", "")):
    assert "must make mask_loss too" in error(run_config(**{"input.pp": PP + tok + masks}))
  one_cut = concat.format("mask_loss=[0, 1]") + '|tolen(17, key="text")'
  assert "of equal length" in error(run_config(**{"input.pp": PP + tok + one_cut}))


# Evaluation


def eval_config(data, **changes):
  return ConfigDict(dict(data=data, pp=JSONL_PP, batch_size=4, **changes))


@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_sees_each_example_once_on_any_number_of_processes(tmp_path, process_count):
  section = eval_config(write_images(tmp_path, 9, note="own"))
  seen, masks = [], []
  for index in range(process_count):
    evaluated = pipeline.eval_batches(
      section, tokenizer.load("tiny"), layout=LAYOUT, process_index=index,
      process_count=process_count,
    )  # fmt: skip
    assert (evaluated.num_examples, len(evaluated)) == (9, 3)
    for _ in range(2):  # It can be gone through again.
      all_batches = list(evaluated)
      assert len(all_batches) == 3
    for arrays, rows in all_batches:
      assert arrays["text"].shape == (4 // process_count, 16)
      assert len(rows) == arrays["_mask"].sum()
      seen += [row["suffix"] for row in rows]
      masks += arrays["_mask"].tolist()
      assert all(row["note"] == "own" for row in rows)
      assert set(arrays) == {"image", "text", "mask_ar", "mask_input", "_mask", "_index"}
  assert sorted(seen) == [str(i) for i in range(9)]
  assert (len(masks), sum(masks)) == (12, 9)


def test_the_answer_is_no_part_of_an_evaluation_prompt(tmp_path):
  tiny = tokenizer.load("tiny")
  data = write_images(tmp_path, 2)
  (arrays, _), *_ = pipeline.eval_batches(eval_config(data), tiny, layout=LAYOUT)
  assert arrays["mask_ar"][arrays["mask_input"] == 1].sum() == 0
  assert tiny.decode(arrays["text"][0]) == "data\n"
  section = eval_config(data)
  section.pp += '|strfmt("The", outkey="answer_start")'
  (arrays, _), *_ = pipeline.eval_batches(section, tiny, layout=LAYOUT)
  assert tiny.decode(arrays["text"][0]) == "data\nThe"


def test_perplexity_rows_are_as_in_training(tmp_path):
  data = write_images(tmp_path, 3)
  layout = LAYOUT._replace(for_training=True)
  (arrays, _), *_ = pipeline.eval_batches(eval_config(data), tokenizer.load("tiny"), layout=layout)
  assert arrays["text"].shape == (4, 17)
  assert answers(arrays)[:3] == ["0", "1", "2"]


# What is wrong with the data


def error(config, count=3):
  with pytest.raises(UserError) as caught:
    batches(count, config)
  return str(caught.value)


def test_a_damaged_image_raises_with_file_and_line_through_the_threads(tmp_path):
  config = own_config(write_images(tmp_path, 4), **{"input.num_threads": 2})
  (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:80])
  message = error(config)
  assert message.startswith(
    f"{tmp_path}/data.jsonl, line 3 (image 2.png): the image cannot be decoded"
  )


def test_an_image_deleted_while_training_raises_with_file_and_line(tmp_path):
  config = own_config(write_images(tmp_path, 4))
  data = pipeline.train_batches(config, tokenizer.load("tiny"))
  (tmp_path / "1.png").unlink()
  with pytest.raises(UserError, match=r"line 2 \(image 1.png\).*cannot be read: No such file"):
    list(itertools.islice(data, 3))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"input.pp": "resize(16)|value_range(-1, 1)"}, "'image' is bytes; decode takes encoded"),
    ({"input.pp": "drop('id')"}, "pp must decode 'image'"),
    ({"input.pp": "flip_lr|decode"}, "'image' is bytes; decode takes encoded"),
    ({"input.pp": "decode|decode"}, "'image' is ndarray; decode takes encoded bytes"),
    ({"input.pp": "decode|value_range(-1, 1)"}, r"the image is (12, 20, 3) after pp"),
    ({"input.pp": "decode|resize(16)"}, "the image is uint8 after pp"),
    ({"input.pp": JSONL_PP + "|drop('suffix')"}, "there is no 'suffix' after pp, only id, image"),
    ({"input.pp": JSONL_PP + "|copy('number', 'suffix')"}, "'suffix' must be text, not 7"),
    ({"input.pp": "decode|rezise(16)"}, "Did you mean 'resize'?"),
    ({"res": 32}, "the image is (16, 16, 3) after pp, and res asks for (32, 32, 3)"),
  ],
)
def test_wrong_results_of_pp_raise(tmp_path, changes, message):
  assert message in error(own_config(write_images(tmp_path, 4, number=7), **changes))


def test_too_many_images_raise(tmp_path):
  data = write_images(tmp_path, 3)
  write_rows(tmp_path, [dict(image=["0.png", "1.png"], prefix="p", suffix="s")] * 2)
  assert "num_frames=0 means one" in error(own_config(data))
  assert "more than num_frames=1" in error(own_config(data, num_frames=1))


def test_texts_that_are_too_long_are_an_error_before_any_image_is_read(tmp_path):
  data = write_images(tmp_path, 50)
  rows = [dict(image=f"{i}.png", prefix="p", suffix="9" * (30 if i < 2 else 3)) for i in range(50)]
  write_rows(tmp_path, rows)
  for i in range(50):
    (tmp_path / f"{i}.png").write_bytes(b"no image")
  config = own_config(data)
  with pytest.raises(UserError, match=r"2 of 50 texts of 'jsonl' \(4.0%\).*needs text_len=33"):
    pipeline.train_batches(config, tokenizer.load("tiny"))
  write_rows(tmp_path, [dict(row, prefix="9" * 40) for row in rows])
  with pytest.raises(UserError, match="text_len=16"):  # Prompts are looked at as well.
    pipeline.eval_batches(eval_config(data), tokenizer.load("tiny"), layout=LAYOUT)


def test_the_text_len_in_the_message_is_enough(tmp_path):
  data = write_images(tmp_path, 4)
  write_rows(tmp_path, [dict(image="0.png", prefix="p", suffix="9" * 30)] * 4)
  for text_len, truncated in [(32, 4), (33, 0)]:
    config = own_config(data, text_len=text_len, **{"input.allow_truncated": True})
    train = pipeline.train_batches(config, tokenizer.load("tiny"))
    assert train.scans[0][1:4] == (4, truncated, 33)
    ends = [tokenizer.EOS in row for row in next(train)["text"]]
    assert ends == [not truncated] * 8


def test_a_batch_that_processes_do_not_divide_raises():
  with pytest.raises(UserError, match="batch_size=8 does not divide among 3 processes"):
    batches(1, process_count=3)


def test_an_invalid_weight_raises(tmp_path):
  assert "needs a weight" in error(own_config({"a": write_images(tmp_path, 2)}))
  assert "positive weight" in error(own_config({"a": dict(write_images(tmp_path, 2), weight=0)}))


# On to the device


@pytest.fixture
def mesh():
  return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def test_the_feed_preserves_order_and_returns_global_arrays(mesh):
  host = batches(5)
  feed = device_feed.to_device(iter(batches(5)), mesh)
  for expected, batch in zip(host, feed, strict=True):
    assert batch["image"].sharding.num_devices == 8
    assert_equal(expected, jax.device_get(batch))
  with pytest.raises(StopIteration):
    next(feed)  # Also when it is asked again.
  assert feed.wait_seconds > 0


def test_the_feed_prefetches_its_depth_and_stops_when_closed(mesh):
  asked = []

  def endless():
    for i in itertools.count():
      asked.append(i)
      yield dict(text=np.full((8, 2), i, np.int32))

  feed = device_feed.to_device(endless(), mesh)
  assert int(next(feed)["text"][0, 0]) == 0
  deadline = time.time() + 10
  while len(asked) < 4 and time.time() < deadline:
    time.sleep(0.01)
  time.sleep(0.3)
  assert len(asked) == 4  # One was taken, two are ready, one waits for its place.
  feed.close()
  assert len(asked) == 4


def test_the_feed_passes_on_the_user_error_and_evaluation_rows(mesh, tmp_path):
  data = write_images(tmp_path, 9)
  section = eval_config(data)
  section.batch_size = 8
  evaluated = pipeline.eval_batches(section, tokenizer.load("tiny"), layout=LAYOUT)
  first, second = device_feed.to_device(evaluated, mesh)
  assert isinstance(first.arrays["text"], jax.Array)
  assert [row["suffix"] for row in second.rows] == ["8"]
  (tmp_path / "8.png").write_bytes(b"damaged")
  feed = device_feed.to_device(evaluated, mesh)
  next(feed)
  with pytest.raises(UserError, match=r"line 9 .*cannot be decoded"):
    next(feed)


@pytest.mark.parametrize(
  "column", ["_seed", "_epoch", "_rng", "mask_ar", "mask_loss", "image_mask"]
)
def test_a_column_with_a_name_of_the_pipeline_is_refused(tmp_path, column):
  data = write_images(tmp_path, 8, **{column: [1, 2]})
  with pytest.raises(UserError, match=rf"data\.jsonl, line 1 .*a column is called '{column}'"):
    pipeline.train_batches(own_config(data), tokenizer.load("tiny"))


@pytest.mark.parametrize("op", ['copy("suffix", "_seed")', 'strfmt("x", outkey="_epoch")'])
def test_an_op_writes_no_name_of_the_pipeline(tmp_path, op):
  data = write_images(tmp_path, 8)
  with pytest.raises(UserError, match="must not begin with an underscore"):
    pipeline.train_batches(
      own_config(data, **{"input.pp": f"{JSONL_PP}|{op}"}), tokenizer.load("tiny")
    )
