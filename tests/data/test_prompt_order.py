"""The order of a split: every example once, similar prompts together, two text lengths at most."""

import hashlib
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from pgjax.data import device_feed, loader, pipeline, prompt_order, tokenizer
from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError

PP = "decode|resize(16)|value_range(-1, 1)"
LAYOUT = loader.Layout(16, 128, 0, for_training=False)


def test_each_example_is_in_one_batch_that_its_prompt_fits():
  rng = np.random.default_rng(0)
  for case in range(50):
    total, batch_size = int(rng.integers(1, 400)), int(rng.integers(1, 40))
    lengths = rng.integers(3, rng.integers(4, 257), total)
    window = [None, 3][case % 2]
    order = prompt_order.by_length(lengths, batch_size, 256, window)
    assert sorted(order.examples) == list(range(total))
    text_lens = np.full(-(-total // batch_size), 256)
    text_lens = text_lens if order.text_lens is None else order.text_lens
    assert len(text_lens) == -(-total // batch_size)
    assert len(set(text_lens)) <= 2
    fits = np.repeat(text_lens, batch_size)[:total]
    assert (lengths[order.examples] <= fits).all()
    if window:
      assert (order.examples // (3 * batch_size) == np.arange(total) // (3 * batch_size)).all()


def test_long_prompts_share_batches_and_ties_stay_in_order():
  lengths = np.where(np.arange(80) % 10 == 0, 200, 12)
  order = prompt_order.by_length(lengths, 8, 256)
  assert order.text_lens.tolist() == [208] + 9 * [16]
  assert order.examples[:8].tolist() == list(range(0, 80, 10))
  assert order.examples[8:].tolist() == [i for i in range(80) if i % 10]


def test_a_split_stays_in_order_where_sorting_saves_little():
  for lengths in (np.arange(80) % 16 + 1, np.full(80, 230), np.r_[200, np.full(40, 12)]):
    order = prompt_order.by_length(lengths, 8, 256)
    assert order.examples.tolist() == list(range(len(lengths)))
    assert set(order.text_lens) == {-(-lengths.max() // 16) * 16}
  for lengths, text_len in ((14, 20), (250, 256), (160, 128)):  # The last: pp makes longer texts.
    assert prompt_order.by_length(np.full(80, lengths), 8, text_len).text_lens is None


@pytest.fixture(scope="module")
def split(tmp_path_factory):
  """94 questions of 2 to 80 letters: 12 batches of 8, of which the last has 6 rows."""
  folder = tmp_path_factory.mktemp("split")
  rng = np.random.default_rng(1)
  for i in range(4):
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
  rows = [
    dict(image=f"{i % 4}.png", prefix="a1" * int(1 + 39 * rng.random() ** 4), suffix="s", id=i)
    for i in range(94)
  ]
  (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return ConfigDict(
    dict(data=dict(name="jsonl", fname=f"{folder}/data.jsonl"), pp=PP, batch_size=8)
  )


def opened(section, **reading):
  return pipeline.eval_batches(section, tokenizer.load("tiny"), layout=LAYOUT, **reading)


def test_processes_read_their_parts_of_the_same_sorted_batches(split):
  whole = list(opened(split))
  parts = [list(opened(split, process_index=i, process_count=2)) for i in range(2)]
  assert len({batch.arrays["text"].shape[1] for batch in whole}) == 2
  for batch, *own in zip(whole, *parts, strict=True):
    for name, array in batch.arrays.items():
      np.testing.assert_array_equal(array, np.concatenate([part.arrays[name] for part in own]))
    assert batch.rows == [row for part in own for row in part.rows]
  assert [row["_index"] for b in whole for row in b.rows] == opened(split).order.examples.tolist()


def test_only_padding_is_removed_and_hashes_are_of_whole_rows(split):
  load = loader.Loader(pipeline.parts(split.data)[0], PP, tokenizer.load("tiny"), LAYOUT, 0)
  for arrays, rows in opened(split):
    for i, row in enumerate(rows):
      want, length = load(0, row["_index"]).arrays, arrays["text"].shape[1]
      for name in ("text", "mask_ar", "mask_input"):
        np.testing.assert_array_equal(arrays[name][i], want[name][:length])
      assert not want["mask_input"][length:].any()
      digest = hashlib.sha256(b"".join(want[name].tobytes() for name in sorted(want)))
      assert row["_sha256"] == digest.hexdigest()
  with pytest.raises(UserError, match="the prompt has over 2 tokens with its image"):
    prompt_order.Order(np.arange(1), np.array([2])).trimmed(want, 0)


def test_two_programs_are_compiled_for_a_split_of_any_lengths(split):
  traced = []

  @jax.jit
  def program(arrays):
    traced.append(arrays["text"].shape)
    return arrays["mask_input"].sum()

  mesh = mesh_lib.make_mesh([("data", -1)], jax.devices()[:1])
  for batch in device_feed.to_device(opened(split), mesh):
    program(batch.arrays)
  assert len(traced) == 2, traced


def test_a_split_is_not_sorted_where_texts_do_not_decide_its_prompts(split):
  random_pp = ConfigDict({**split, "pp": PP.replace("decode|", "decode|flip_lr|")})
  order = opened(random_pp).order
  assert order.examples.tolist() == list(range(94))
  assert order.text_lens is None
