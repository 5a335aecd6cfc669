"""Answers come in the order of the questions, each batch after the next one was dispatched."""

import jax
import numpy as np
import pytest

from pgjax.data import pipeline
from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.inference import question_batches


@pytest.mark.parametrize("broken", [False, True])
def test_results_come_after_the_next_batch_was_dispatched(broken):
  """And before the error of a batch that cannot be read."""
  log = []

  def items():
    for i in range(3):
      log.append(f"read {i}")
      yield i
    if broken:
      raise UserError("damaged")

  def run(item):
    log.append(f"run {item}")
    return 10 * item

  try:
    for item, output in question_batches.dispatched_ahead(items(), run):
      assert output == 10 * item
      log.append(f"answer {item}")
  except UserError:
    log.append("damaged")
  expected = ["read 0", "run 0", "read 1", "run 1", "answer 0", "read 2", "run 2", "answer 1"]
  assert log == [*expected, "answer 2", *["damaged"] * broken]


def test_an_error_of_one_process_is_raised_at_once(monkeypatch):
  monkeypatch.setattr(question_batches.processes, "process_count", lambda: 2)

  def items():
    yield 0
    raise UserError("damaged")

  with pytest.raises(UserError):  # The others do not gather these answers.
    next(question_batches.dispatched_ahead(items(), str))


def test_answers_are_in_the_order_of_the_questions():
  mesh = mesh_lib.make_mesh([("data", -1)], jax.devices()[:1])
  batches = [[3, 0], [2, 1], [4, 5], [6]]

  def output(rows):
    numbers = jax.numpy.array([*rows, 9][:2])
    return pipeline.EvalBatch({}, [dict(prefix=f"p{i}", _index=i) for i in rows]), (
      numbers[:, None],
      -numbers[:, None].astype(float),
    )

  rows = question_batches.in_order(map(output, batches), mesh)
  assert list(rows) == [[f"p{i}", [i], [-float(i)]] for i in range(7)]


def test_the_seed_of_a_sample_does_not_depend_on_the_padding():
  rng = np.random.default_rng(0)
  images, texts = rng.random((4, 2, 2, 3)), rng.integers(4, 99, (4, 6)).astype(np.int32)
  texts[:, 3:] = 0
  whole, trimmed = (
    question_batches._seeded(pipeline.EvalBatch(dict(image=images, text=t), []), 6, 0)  # noqa: SLF001
    for t in (texts, texts[:, :3])
  )
  np.testing.assert_array_equal(whole.arrays["_index"], trimmed.arrays["_index"])
  assert len(set(whole.arrays["_index"].tolist())) == 4
