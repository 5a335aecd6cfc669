"""config.keep_best names a metric that is measured, or the run does not start."""

import types

import pytest

from pgjax.config import schema
from pgjax.errors import UserError
from pgjax.evaluation import metric_names, scorers
from pgjax.metrics import caption, closed, segmentation, structured, vqa


def config(keep_best, **evals):
  sections = {
    name: types.SimpleNamespace(type=kind, caption_metrics=["cider", "bleu"])
    for name, kind in evals.items()
  }
  return types.SimpleNamespace(keep_best=keep_best, evals=sections)


def test_every_type_has_names():
  named = {*metric_names.NAMES, "caption"}
  assert named == set(schema.EVAL_TYPES)
  assert named == {*scorers.SCORERS, "perplexity"}


def test_the_names_are_those_that_are_measured():
  """Of the types whose functions need one example only."""
  measured = dict(
    vqa=vqa.vqa("a", "a"),
    vqav2=vqa.vqav2("a", ["a"], "yes/no"),
    chartqa=vqa.chartqa("1", "1"),
    choice=closed.choice("A", "a", ["a", "b"]),
    science_qa=closed.science_qa("The answer is A.", "The answer is A."),
    pope=closed.pope("yes", "yes"),
    tallyqa=closed.tallyqa("1", "1", is_simple=True),
    rsvqa=closed.rsvqa("a", "a", "comp") | closed.rsvqa_averages({"acc_comp": 1.0}),
    json=structured.scores("{}", "{}"),
  )
  for kind, scores in measured.items():
    names = metric_names.NAMES[kind]
    for score in scores:
      assert any(metric_names._matches(score, name) for name in names), (kind, score)  # noqa: SLF001
    assert len({n for n in names if "*" not in n} - scores.keys()) <= 3
  assert set(metric_names.of(config("", a="caption").evals["a"])) == {
    "cider", "bleu-1", "bleu-2", "bleu-3", "bleu-4"
  }  # fmt: skip
  assert set(caption.METRICS) == {"cider", "bleu", "rouge", "meteor", "length"}
  assert segmentation.BOX_THRESHOLDS == (0.5, 0.75)


@pytest.mark.parametrize(
  "best", ["", "val/acc", "-val/anls", "a/b/sum", "boxes/AP/cat", "boxes/f1"]
)
def test_metrics_that_exist_are_accepted(best):
  evals = {"val": "vqa", "a": "vqa", "a/b": "perplexity", "boxes": "detection"}
  metric_names.check_keep_best(config(best, **evals), evals)


@pytest.mark.parametrize(
  ("best", "message"),
  [
    ("val/accuracy", r"'val' has no metric 'accuracy'; its metrics are val/acc, val/acc_any"),
    ("-val/acc2", r"has no metric 'acc2'"),
    ("val/", r"has no metric ''"),
    ("boxes/AP/", r"has no metric 'AP/'"),
    ("words/perplexity", r"its metrics are words/sum, words/avg"),
    ("shown/acc", r"its metrics are none"),
    ("late/acc", r"'late' does not run while training; set .* config\.evals\.late\.log_steps"),
  ],
)
def test_others_are_refused_before_the_run(best, message):
  evals = dict(val="vqa", boxes="detection", words="perplexity", shown="predictions", late="vqa")
  during = [name for name in evals if name != "late"]
  with pytest.raises(UserError, match=message):
    metric_names.check_keep_best(config(best, **evals), during)


def test_what_only_the_data_decides_is_checked_at_the_first_evaluation():
  scores = {"boxes/AP": 0.5, "boxes/AP/cat": 0.25, "boxes/num": 3}
  metric_names.check_measured(config("boxes/AP/cat", boxes="detection"), scores)
  metric_names.check_measured(config("boxes/AP/dog", boxes="detection"), {})
  metric_names.check_measured(config("boxes/precision", boxes="detection"), scores)  # Of no box.
  with pytest.raises(UserError, match=r"was not measured.* boxes/AP, boxes/AP/cat, boxes/num"):
    metric_names.check_measured(config("boxes/AP/dog", boxes="detection"), scores)
