"""Each row of a split once, in the order of the split, for any batches and processes."""

import json
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from pgjax.data import pipeline
from pgjax.distributed import mesh as mesh_lib, processes
from pgjax.errors import UserError
from pgjax.evaluation import evaluator as evaluator_lib, journal, scorers
from pgjax.training import run_log


class Letters:
  """A tokenizer whose id 10 + i is the i-th letter."""

  def decode(self, ids):
    ids = list(map(int, ids))
    ids = ids[: ids.index(1)] if 1 in ids else ids
    return "".join(chr(ord("a") + i - 10) for i in ids if i >= 10)


class Split(NamedTuple):
  """Answers as a split in batches of 8; the last batch is padded."""

  answers: list

  def after(self, batches):
    for start in range(8 * batches, len(self.answers), 8):
      part = self.answers[start : start + 8]
      arrays = dict(
        text=np.full((8, 3), 11, np.int32),
        _mask=np.arange(8) < len(part),
        number=np.minimum(np.arange(start, start + 8), len(self.answers) - 1).astype(np.int32),
      )
      rows = [dict(id=start + i, answer=a, _sha256=f"{start + i}") for i, a in enumerate(part)]
      yield pipeline.EvalBatch(arrays, rows)


def answer_b(params, batch):
  """The answer "b", then an eos and an arbitrary token."""
  tokens = np.tile(np.array([11, 1, 12], np.int32), (8, 1))
  logp = np.tile(np.array([-0.5, -0.25, 0], np.float32), (8, 1))
  return jax.device_put((tokens, logp), batch.arrays["number"].sharding)


def likelihood(params, batch):
  number = np.asarray(batch.arrays["number"]).astype(np.float32)
  return jax.device_put((number, np.full(8, 2, np.float32)), batch.arrays["number"].sharding)


def evaluator(answers, compute=answer_b, **fields):
  section = dict(type="vqa", answer="answer", to_lower=False, skip_first=False)
  section |= dict(out_question_key=None, out_answer_key="answer")
  section = SimpleNamespace(**(section | fields), caption_metrics=())
  scorer = None if section.type == "perplexity" else scorers.of(section)
  return evaluator_lib.Evaluator("val", section, 10, Split(answers), compute, scorer)


@pytest.fixture
def mesh():
  return mesh_lib.start([("data", -1)])


def run(opened, mesh, **more):
  return evaluator_lib.run(opened, None, mesh=mesh, tokenizer=Letters(), **more)


def test_each_row_is_scored_once_and_padding_is_not(mesh):
  answers = ["b", "c", "b"] * 7  # 21: two whole batches and five rows.
  result = run(evaluator(answers), mesh)
  assert [row["id"] for row in result.rows] == list(range(21))
  assert result.scores == {
    "val/acc": 14 / 21,
    "val/acc_any": 14 / 21,
    "val/anls": 14 / 21,
    "val/num": 21,
  }
  first = dict(id=0, prompt="bbb", answer="b", prediction="b", logp=-0.75, score=1.0)
  assert result.rows[0] == first


def test_several_answers_and_none(mesh):
  result = run(evaluator([["b", "b", "x"], []]), mesh)
  assert [row["score"] for row in result.rows] == [2 / 3, None]
  assert result.scores["val/acc"] == 2 / 3  # Not counted without an answer,
  assert result.scores["val/num"] == 2  # but it was decoded.


def test_rows_without_an_answer_are_counted_and_logged(mesh, caplog):
  result = run(evaluator(["b", None, "b", [], ["b", None]]), mesh)
  assert (result.scores["val/acc"], result.scores["val/no_answer"]) == (pytest.approx(7 / 9), 2)
  assert [row["score"] for row in result.rows] == [1, None, 1, None, 1 / 3]
  assert [r.getMessage() for r in caplog.records] == [
    "val: 2 of 5 examples have no true answer (null or an empty list) and are not scored."
  ]
  assert "val/no_answer" not in run(evaluator(["b"]), mesh).scores


def test_chartqa_takes_its_own_score(mesh):
  result = run(evaluator(["B", "c"], type="chartqa", to_lower=True), mesh)
  assert result.scores == {"val/acc": 0.5, "val/relaxed_acc": 0.5, "val/num": 2}
  with pytest.raises(UserError, match="take one answer, not"):
    run(evaluator([["a", "b"]], type="chartqa", to_lower=True), mesh)


def test_perplexity_is_a_mean_over_non_padding_rows(mesh):
  result = run(evaluator(["x"] * 10, likelihood, type="perplexity"), mesh)
  assert result.scores == {"val/sum": 4.5, "val/avg": 2.25, "val/num": 10}


def test_rows_of_several_processes_are_merged_in_the_order_of_the_split(monkeypatch, mesh):
  """Each process has its part of every batch: 0 1 | 2 3, then 4 5 | 6 7."""
  batch = lambda *ids: [dict(id=i, scores={"acc": (i % 2, 1)}, _sha256="") for i in ids]  # noqa: E731
  gathered = [[batch(0, 1), batch(4, 5)], [batch(2, 3), batch(6)]]
  monkeypatch.setattr(processes, "gather_objects", lambda value: gathered)
  result = run(evaluator(["b"]), mesh)
  assert [row["id"] for row in result.rows] == [0, 1, 2, 3, 4, 5, 6]
  assert result.scores == {"val/acc": 3 / 7, "val/num": 7}


def test_a_resumed_evaluation_skips_scored_batches(tmp_path, mesh):
  answers, decoded = ["b", "c", "b"] * 7, []

  def count(params, batch):
    decoded.append(batch.rows[0]["id"])
    return answer_b(params, batch)

  whole = run(evaluator(answers), mesh)
  asked = iter([False, False, True])
  first = journal.Journal(tmp_path, "val", dict(step=1))
  assert run(evaluator(answers, count), mesh, journal=first, stopping=lambda: next(asked)) is None
  with (tmp_path / "unfinished/val.0-of-1.jsonl").open("a") as file:
    file.write('[{"id": 8, "pro')  # The process was killed while it wrote.
  second = journal.Journal(tmp_path, "val", dict(step=1))
  assert len(second.batches) == 1  # The second batch was not scored.
  assert run(evaluator(answers, count), mesh, journal=second) == whole
  assert decoded == [0, 8, 8, 16]
  third = journal.Journal(tmp_path, "val", dict(step=1))
  assert run(evaluator(answers, count), mesh, journal=third) == whole
  assert len(decoded) == 4
  third.close(finished=True)
  assert not list(tmp_path.iterdir())


def test_a_journal_with_another_fingerprint_is_ignored(tmp_path, mesh):
  first = journal.Journal(tmp_path, "val", dict(step=1))
  run(evaluator(["b"] * 20), mesh, journal=first)
  assert len(journal.Journal(tmp_path, "val", dict(step=1)).batches) == 3
  assert journal.Journal(tmp_path, "val", dict(step=2)).batches == []


def test_the_data_s_hash_is_of_images_prompts_and_answers(mesh):
  hashes = {run(evaluator(answers), mesh).data_sha256 for answers in (["b"], ["c"], ["b", "b"])}
  assert len(hashes) == 3
  assert run(evaluator(["b"], to_lower=True), mesh).data_sha256 in hashes


def test_when_an_evaluator_runs():
  def due(every, total, *, skip_first=False):
    periodic = evaluator([], skip_first=skip_first)._replace(every_steps=every)
    return [step for step in range(total + 1) if evaluator_lib.is_due(periodic, step, total)]

  assert due(10, 30) == [0, 10, 20, 30]
  assert due(10, 30, skip_first=True) == [10, 20, 30]
  assert due(10, 32) == [0, 10, 20, 32]  # 30 is closer than a quarter interval to the end.
  assert due(10, 33) == [0, 10, 20, 30, 33]
  assert due(0, 7) == [0, 7]


def test_an_interrupted_evaluation_writes_nothing(tmp_path, mesh):
  asked = []

  def stopping():
    asked.append(1)
    return len(asked) > 1

  log = run_log.Log(None, main=True)
  where = dict(total_steps=20, mesh=mesh, tokenizer=Letters(), log=log, workdir=tmp_path)
  assert (
    evaluator_lib.run_due([evaluator(["b"] * 20)], 10, None, stopping=stopping, **where) is None
  )
  assert not list(tmp_path.iterdir())
  done = evaluator_lib.run_due([evaluator(["b"] * 20)], 10, None, stopping=lambda: False, **where)
  assert done["val/acc"] == 1
  written = (tmp_path / "evals/val/predictions.jsonl").read_text().splitlines()
  assert [json.loads(line)["id"] for line in written] == list(range(20))
  assert json.loads((tmp_path / "evals/val/metrics.json").read_text()) == {"step": 10} | done
  assert evaluator_lib.run_due([evaluator(["b"])], 5, None, stopping=lambda: False, **where) == {}


def test_rows_keep_what_a_test_server_knows_them_by(tmp_path, mesh):
  log = run_log.Log(None, main=True)
  where = dict(total_steps=10, mesh=mesh, tokenizer=Letters(), log=log, workdir=tmp_path)
  opened = evaluator(["b"] * 9, out_question_key="questionId", out_answer_key="prediction")

  class Questions(Split):
    def after(self, batches):
      for batch in super().after(batches):
        for row in batch.rows:
          number = row.pop("id")
          row |= {"question_id": np.int64(900 + number), "_source_id": f"vqa:test:{number}"}
        yield batch

  opened = opened._replace(batches=Questions(["b"] * 9))
  evaluator_lib.run_due([opened], 10, None, stopping=lambda: False, **where)
  lines = (tmp_path / "evals/val/predictions.jsonl").read_text().splitlines()
  assert [json.loads(line)["id"] for line in lines] == [f"vqa:test:{i}" for i in range(9)]
  assert [json.loads(line)["question_id"] for line in lines] == list(range(900, 909))
  submission = json.loads((tmp_path / "evals/val/submission.json").read_text())
  assert submission == [dict(questionId=900 + i, prediction="b") for i in range(9)]


def test_a_pattern_that_matches_no_evaluator():
  config = SimpleNamespace(evals=dict(val=0, test=0))
  assert list(evaluator_lib.matching(config, "te.*")) == ["test"]
  with pytest.raises(UserError, match=r"No evaluator .* 'tes'; there are: val, test"):
    evaluator_lib.matching(config, "tes")


def test_the_results_of_an_evaluator_stay_in_the_workdir(tmp_path):
  assert evaluator_lib.folder_of(tmp_path, "a/b") == tmp_path / "evals/a/b"
  for name in ("/etc", "../x"):
    with pytest.raises(UserError, match="outside of"):
      evaluator_lib.folder_of(tmp_path, name)


def test_evaluators_with_similar_names_have_journals_of_their_own(tmp_path):
  opened = [journal.Journal(tmp_path, name, dict(name=name)) for name in ("a/b", "a_b", "../c")]
  for each in opened:
    each.close(finished=False)
  assert len(list((tmp_path / journal.FOLDER).iterdir())) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_an_error_not_a_score(value):
  """Of perplexity and of decoding: neither a score nor an answer comes of it."""
  rows = [dict(id="0", prefix="what?", question="what?", _sha256="")]
  arrays = dict(_mask=np.ones(1, bool), text=np.zeros((1, 4), np.int32))
  batch = pipeline.EvalBatch({n: jax.numpy.asarray(a) for n, a in arrays.items()}, rows)
  evaluator = SimpleNamespace(name="val", scorer=None, section=None)
  output = (jax.numpy.asarray([value]), jax.numpy.asarray([3.0]))
  with pytest.raises(
    UserError, match=r"val: -log p of the answer to 'what\?' is (nan|inf): the out"
  ):
    evaluator_lib._rows(evaluator, None, batch, output)  # noqa: SLF001
  tokens = jax.numpy.asarray([[5, 1]])
  evaluator.scorer = SimpleNamespace(row=lambda *_: {})
  logp = jax.numpy.asarray([[0.0, np.nan]])
  with pytest.raises(UserError, match=r"val: log p of the answer to 'what\?' is nan"):
    evaluator_lib._rows(evaluator, SimpleNamespace(decode=str), batch, (tokens, logp))  # noqa: SLF001
