"""Whole splits, each row once, in the order of the split, whatever the batches and processes."""

import json
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from pgjax import evals, metric_log, sharding
from pgjax.data import pipeline
from pgjax.errors import UserError


class Letters:
  """A tokenizer whose id 10 + i is the i-th letter."""

  def decode(self, ids):
    ids = list(map(int, ids))
    ids = ids[: ids.index(1)] if 1 in ids else ids
    return "".join(chr(ord("a") + i - 10) for i in ids if i >= 10)


class Split(NamedTuple):
  """Answers as a split in batches of 8; the last batch is filled up."""

  answers: list

  def __iter__(self):
    for start in range(0, len(self.answers), 8):
      part = self.answers[start : start + 8]
      arrays = dict(
        text=np.full((8, 3), 11, np.int32),
        _mask=np.arange(8) < len(part),
        number=np.minimum(np.arange(start, start + 8), len(self.answers) - 1).astype(np.int32),
      )
      rows = [dict(id=start + i, answer=answer) for i, answer in enumerate(part)]
      yield pipeline.EvalBatch(arrays, rows)


def says_b(params, batch):
  """The answer "b", then an eos and rubbish; likelihoods are the row's number."""
  tokens = np.tile(np.array([11, 1, 12], np.int32), (8, 1))
  return jax.device_put((tokens, np.zeros((8, 3), np.float32)), batch["number"].sharding)


def likelihood(params, batch):
  number = np.asarray(batch["number"]).astype(np.float32)
  return jax.device_put((number, np.full(8, 2, np.float32)), batch["number"].sharding)


def evaluator(answers, compute=says_b, **fields):
  section = dict(type="vqa", answer="answer", to_lower=False, skip_first=False) | fields
  return evals.Evaluator("val", SimpleNamespace(**section), 10, Split(answers), compute)


@pytest.fixture
def mesh():
  return sharding.start([("data", -1)])


def run(made, mesh, **more):
  return evals.run(made, None, mesh=mesh, tokenizer=Letters(), **more)


def test_every_row_is_scored_once_and_the_filling_is_not(mesh):
  answers = ["b", "c", "b"] * 7  # 21: two whole batches and five rows.
  result = run(evaluator(answers), mesh)
  assert [row["id"] for row in result.rows] == list(range(21))
  assert result.scores == {
    "val/acc": 14 / 21,
    "val/acc_any": 14 / 21,
    "val/anls": 14 / 21,
    "val/num": 21,
  }
  first = dict(id=0, prompt="bbb", answer="b", prediction="b", score=1.0)
  assert result.rows[0] == first


def test_several_answers_and_none(mesh):
  result = run(evaluator([["b", "b", "x"], []]), mesh)
  assert [row["score"] for row in result.rows] == [2 / 3, None]
  assert result.scores["val/acc"] == 2 / 3  # The row without an answer is not counted,
  assert result.scores["val/num"] == 2  # but it was decoded.


def test_chartqa_takes_its_own_score(mesh):
  result = run(evaluator(["B", "c"], type="chartqa", to_lower=True), mesh)
  assert result.scores == {"val/acc": 0.5, "val/relaxed_acc": 0.5, "val/num": 2}
  with pytest.raises(UserError, match="takes one answer"):
    run(evaluator([["a", "b"]], type="chartqa", to_lower=True), mesh)


def test_perplexity_is_a_mean_over_the_real_rows(mesh):
  result = run(evaluator(["x"] * 10, likelihood, type="perplexity"), mesh)
  assert result.scores == {"val/sum": 4.5, "val/avg": 2.25, "val/num": 10}


def test_rows_of_several_processes_return_to_the_order_of_the_split(monkeypatch, mesh):
  """Each process holds its part of every batch: 0 1 | 2 3, then 4 5 | 6 7."""
  batch = lambda *ids: [dict(id=i, scores={"acc": (i % 2, 1)}) for i in ids]  # noqa: E731
  gathered = [[batch(0, 1), batch(4, 5)], [batch(2, 3), batch(6)]]
  monkeypatch.setattr(sharding, "gather_objects", lambda value: gathered)
  result = run(evaluator(["b"]), mesh)
  assert [row["id"] for row in result.rows] == [0, 1, 2, 3, 4, 5, 6]
  assert result.scores == {"val/acc": 3 / 7, "val/num": 7}


def test_when_an_evaluator_runs():
  def due(every, total, *, skip_first=False):
    made = evaluator([], skip_first=skip_first)._replace(every_steps=every)
    return [step for step in range(total + 1) if evals.is_due(made, step, total)]

  assert due(10, 30) == [0, 10, 20, 30]
  assert due(10, 30, skip_first=True) == [10, 20, 30]
  assert due(10, 32) == [0, 10, 20, 32]  # 30 is closer than a quarter interval to the end.
  assert due(10, 33) == [0, 10, 20, 30, 33]
  assert due(0, 7) == [0, 7]


def test_a_stop_cuts_an_evaluation_short_and_writes_nothing(tmp_path, mesh):
  asked = []

  def stopping():
    asked.append(1)
    return len(asked) > 1

  log = metric_log.Log(None, main=True)
  where = dict(total_steps=20, mesh=mesh, tokenizer=Letters(), log=log, workdir=tmp_path)
  assert evals.run_due([evaluator(["b"] * 20)], 10, None, stopping=stopping, **where) is None
  assert not list(tmp_path.iterdir())
  done = evals.run_due([evaluator(["b"] * 20)], 10, None, stopping=lambda: False, **where)
  assert done["val/acc"] == 1
  written = (tmp_path / "evals/val/predictions.jsonl").read_text().splitlines()
  assert [json.loads(line)["id"] for line in written] == list(range(20))
  assert json.loads((tmp_path / "evals/val/metrics.json").read_text()) == {"step": 10} | done
  assert evals.run_due([evaluator(["b"])], 5, None, stopping=lambda: False, **where) == {}


def test_a_pattern_that_matches_no_evaluator():
  config = SimpleNamespace(evals=dict(val=0, test=0))
  assert list(evals.matching(config, "te.*")) == ["test"]
  with pytest.raises(UserError, match=r"No evaluator .* 'tes'; there are: val, test"):
    evals.matching(config, "tes")
