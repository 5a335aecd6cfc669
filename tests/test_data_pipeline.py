import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from pgjax.data import pipeline, tokenizer
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
  made = pipeline.train_batches(config or run_config(), tokenizer.load("tiny"), **kwargs)
  return list(itertools.islice(made, count))


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


def test_starting_at_a_step_equals_having_come_there():
  config = run_config(**{"input.pp": RANDOM_PP})
  for a, b in zip(batches(10, config)[6:], batches(4, config, start_step=6), strict=True):
    assert_equal(a, b)


def test_another_seed_gives_another_order():
  assert not np.array_equal(batches(1)[0]["text"], batches(1, run_config(seed=4))[0]["text"])
