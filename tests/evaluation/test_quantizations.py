"""`pgjax.evaluate --quantize=none,int8,nf4`: one table with intervals and paired differences."""

import importlib.util
import json

import numpy as np
import pytest

from pgjax import cli, evaluate
from pgjax.errors import UserError
from pgjax.evaluation import quantizations
from tests import small_checkpoint


def test_the_list_of_ways():
  assert quantizations.ways("none,int8,nf4") == ["none", "int8", "nf4"]
  assert quantizations.ways("nf4, none") == ["nf4", "none"]
  assert quantizations.ways(None) == quantizations.ways("nf4") == quantizations.ways("none") == []
  for wrong in ("none,int2", "int2", "none,", "nf4,nf4"):
    with pytest.raises(UserError, match="--quantize="):
      quantizations.ways(wrong)


def test_differences_are_paired_and_have_intervals_where_rows_count_alike():
  """Of 1,000 answers, nf4 has 12 other ones wrong: the scores overlap, the difference is sure."""
  rng = np.random.default_rng(0)
  right = rng.random(1000) < 0.6
  worse = right & ~np.isin(np.arange(1000), np.flatnonzero(right)[:12])
  parts = {
    way: {"val": [dict(acc=(float(r), 1), f1=(float(r), int(i % 2))) for i, r in enumerate(rights)]}
    for way, rights in {"none": right, "nf4": worse}.items()
  }
  scores = {
    way: {"val/acc": np.mean(rights), "val/cider": 1.2, "val/num": 1000, "val/no_answer": 3}
    for way, rights in {"none": right, "nf4": worse}.items()
  }
  made = quantizations.lines(scores, parts)
  assert [(line.score, line.how) for line in made] == [
    ("val/acc", "none"), ("val/acc", "nf4"), ("val/cider", "none"), ("val/cider", "nf4"),
  ]  # fmt: skip
  before, after = made[:2]
  assert after.difference == pytest.approx(-0.012)
  assert before.interval[0] < after.value < before.interval[1]
  assert -0.02 < after.difference_interval[0] < -0.012 < after.difference_interval[1] < 0
  assert made[3].interval is made[3].difference_interval is None
  text = quantizations.table(made)
  assert f"val/acc    nf4       {after.value:.4f}" in text
  assert "-0.0120  -0.0190 to -0.00" in text


def run(*argv):
  with pytest.raises(SystemExit) as end:
    cli.run(evaluate.main, evaluate.__doc__, evaluate.FLAGS, config="optional", argv=["x", *argv])
  return end.value.code or 0


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("easy_vqa"), reason="easy-vqa is not installed")
def test_one_command_scores_a_checkpoint_in_each_way(tmp_path, root, capsys):
  checkpoint = small_checkpoint.write(tmp_path / "run", root)
  flags = [f"--ckpt={checkpoint}", "--evals=test", f"--out={tmp_path / 'out'}"]
  assert run(*flags, "--quantize=none,int8,int8") == 1
  assert run(*flags, "--quantize=none,int8,nf4") == 0
  made = json.loads((tmp_path / "out/quantization.json").read_text())
  assert [line["how"] for line in made if line["score"] == "test/acc"] == ["none", "int8", "nf4"]
  for line in made:
    metrics = json.loads((tmp_path / "out" / line["how"] / "metrics.json").read_text())
    assert metrics[line["score"]] == line["value"]
    assert metrics["about"]["flags"]["quantize"] == (None if line["how"] == "none" else line["how"])
  assert "test/acc" in capsys.readouterr().out
