"""Eight real charts are learned by heart: data, training, checkpoint and decoding agree end to end.

Masks, labels or prompts that differ between training and decoding fail here. The charts are looked
for as in tests/test_prepare.py.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = pathlib.Path(os.environ.get("PGJAX_SHARED_DATA", ROOT.parent / "shared/data"))


def run(module, *args):
  """A command as a user types it; its output."""
  command = [sys.executable, "-m", f"pgjax.{module}", *map(str, args)]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
  not (SHARED / "chartqa").is_dir(), reason=f"{SHARED} has no ChartQA charts (PGJAX_SHARED_DATA)"
)
def test_eight_charts_are_answered_exactly(tmp_path):
  run("prepare", "chartqa", f"--raw={SHARED / 'chartqa'}", f"--out={tmp_path}", "--parts=augmented")
  eight = dict(name="chartqa/augmented", split="train[:8]", data_dir=str(tmp_path))
  recipe = f"variant=tiny,parts=augmented,data_dir={tmp_path},batch_size=8"
  settings = {
    "input.data": eight,
    "total_steps": 150,
    "lr": 3e-3,
    "label_smoothing": 0.0,
    "model.llm.dropout": 0.0,
    "evals.chartqa/augmented/minitrain.data": eight,
  }
  run(
    "train",
    f"--config=configs/chartqa.py:{recipe}",
    f"--workdir={tmp_path / 'run'}",
    *(f"--config.{name}={value}" for name, value in settings.items()),
  )
  out = tmp_path / "scores"
  run(
    "evaluate", f"--ckpt={tmp_path / 'run'}", "--evals=chartqa/augmented/minitrain", f"--out={out}"
  )
  rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
  assert len(rows) == 8
  assert [row["prediction"] for row in rows] == [row["answer"] for row in rows]
  assert len({row["answer"] for row in rows}) > 4  # One answer for all would prove nothing.
