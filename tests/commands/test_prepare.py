"""`python -m pgjax.prepare` on a synthetic download, and on a public subset of ChartQA.

The subset is in the folder named by PGJAX_SHARED_DATA, or in ../shared/data beside the
repository.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pgjax import cli, prepare as command
from pgjax.data import images
from pgjax.data.sources import registry
from pgjax.datasets import base, chartqa, writing
from pgjax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("PGJAX_SHARED_DATA", ROOT.parent / "shared/data"))


def prepare(*args):
  line = [sys.executable, "-m", "pgjax.prepare", *map(str, args)]
  return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture
def raw(tmp_path):
  """A download of three splits, two charts each, with only the augmented part."""
  for number, split in enumerate(["train", "val", "test"]):
    charts = tmp_path / "raw" / split / "png"
    charts.mkdir(parents=True)
    rows = []
    for i in range(2):
      Image.fromarray(np.full((5, 7, 3), 10 * number + i, np.uint8)).save(charts / f"{i}.png")
      rows.append(dict(imgname=f"{i}.png", query=f"{split} question {i}", label=str(i)))
    (tmp_path / "raw" / split / f"{split}_augmented.json").write_text(json.dumps(rows))
  return tmp_path / "raw"


def test_prepared_data_is_read_back_unchanged(raw, tmp_path):
  done = prepare("chartqa", f"--raw={raw}", f"--out={tmp_path}", "--parts=augmented")
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("chartqa/augmented: train 2, val 2, test 2 in ")
  assert "train 2 of 20,901, val 2 of 960, test 2 of 1,250. Is the download" in done.stderr
  assert sorted(path.name for path in tmp_path.iterdir()) == ["chartqa", "raw"]
  spec = dict(name="chartqa/augmented", split="train+val", data_dir=str(tmp_path))
  source = registry.open(spec)
  rows = {source[i]["question"]: source[i] for i in range(len(source))}
  assert sorted(rows) == [f"{s} question {i}" for s in ("train", "val") for i in range(2)]
  row = rows["val question 1"]
  assert (row["answer"], row["question_id"]) == ("1", 1)
  assert row["image/filename"] == "1.png"
  assert row["image"] == (raw / "val/png/1.png").read_bytes()


def test_a_missing_part_is_named(raw, tmp_path):
  done = prepare("chartqa", f"--raw={raw}", f"--out={tmp_path / 'out'}")
  assert done.returncode == 1
  assert done.stderr.count("\n") == 1
  assert done.stderr.startswith("error: ")
  assert "lacks" in done.stderr
  assert "val_human.json" in done.stderr
  assert "--parts=augmented" in done.stderr
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["chartqa"], "needs --raw=DIR"),
    (["chartqa", "--raw=/nowhere"], "--raw=/nowhere is not a folder"),
    (["chartqq", "--raw=/nowhere"], "no data set 'chartqq'. Did you mean 'chartqa'?"),
    (["chartqa", "--raw=.", "--parts=machine"], "no part 'machine'. There are: human, augmented."),
  ],
)
def test_a_mistake_is_one_sentence(args, message):
  done = prepare(*args)
  assert done.returncode == 1
  assert message in done.stderr
  assert "Traceback" not in done.stderr


def test_splits_and_options_are_checked_before_files():
  for name, flags, message in [
    ("docvqa", ["--splits=val,tset"], "no split 'tset'. There are: train, val, test."),
    ("gqa", ["--splits=train"], "no split 'train'. There are: train_balanced, val_balanced,"),
    ("docvqa", ["--val_ids=x"], "--val_ids is not an option of docvqa."),
    ("docvqa", ["--parts=human"], "docvqa has no parts: leave --parts out."),
    ("docvqa", ["--pp=copy('a', 'b')"], "--pp is only for pgjax.prepare jsonl."),
    ("docvqa", ["--split=val"], "--split is only for pgjax.prepare jsonl. Did you mean --splits?"),
    ("jsonl", ["--data=csv('a')"], "--raw is not for pgjax.prepare jsonl."),
    ("easyvqa", ["--raw=."], "takes no --raw"),
    ("pope", [], "The download of pope_random lacks"),
  ]:
    args = cli.parse(["prepare", name, "--raw=.", *flags], command.FLAGS, "none")
    with pytest.raises(UserError, match=re.escape(message)):
      command.main(args)


def test_without_a_folder_it_prints_what_to_download():
  done = prepare("stvqa")
  assert done.stdout.startswith("stvqa: ST-VQA: ")
  assert "rrc.cvc.uab.es" in done.stdout
  assert "test (4,070 rows): test_task_3.json, test_task3_images/, train2014/" in done.stdout
  assert done.stderr == "error: pgjax.prepare stvqa needs --raw=DIR, the folder of its download.\n"
  assert done.returncode == 1


def test_without_a_data_set_the_command_line_is_wrong():
  done = prepare("--raw=.")
  assert done.returncode == 2
  assert done.stderr == "error: DATASET must be given. (--help lists the flags)\n"
  page = prepare("--help").stdout
  assert "pgjax.prepare DATASET [flags]" in page
  assert "  aokvqa           A-OKVQA: questions that need outside knowledge" in page


def test_a_missing_chart_raises_with_its_entry(raw, tmp_path):
  (raw / "test/png/1.png").unlink()
  done = prepare("chartqa", f"--raw={raw}", f"--out={tmp_path}", "--parts=augmented")
  assert done.returncode == 1
  assert "test_augmented.json, entry 1:" in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["../../../secret.png", "{root}/secret.png", "link.png"])
def test_charts_outside_of_the_download_are_not_copied(raw, tmp_path, name):
  (tmp_path / "secret.png").write_bytes(b"secret")
  (raw / "val/png/link.png").symlink_to(tmp_path / "secret.png")
  rows = [dict(imgname=name.replace("{root}", str(tmp_path)), query="q", label="l")]
  (raw / "val/val_augmented.json").write_text(json.dumps(rows))
  with pytest.raises(UserError, match=r"val_augmented.json, entry 0: imgname: image .* outside of"):
    list(chartqa.DATA.rows(base.Raw(raw), "augmented", "val"))


def test_a_chart_that_is_no_file_is_refused(raw, tmp_path):
  os.mkfifo(raw / "val/png/pipe.png")
  rows = [dict(imgname="pipe.png", query="q", label="l")]
  (raw / "val/val_augmented.json").write_text(json.dumps(rows))
  how = writing.Options(workers=1)
  with pytest.raises(UserError, match=r"pipe.png cannot be read: it is a FIFO"):
    writing.prepare(chartqa.DATA, base.Raw(raw), tmp_path, "augmented", ["val"], how)


def test_splits_and_parts_are_checked_when_read(raw, tmp_path):
  prepare("chartqa", f"--raw={raw}", f"--out={tmp_path}", "--parts=augmented")
  for name, split, message in [
    ("chartqa/augmented", "trian", "no split"),
    ("chartqa/augmented", "train[", r"has no split 'train\['"),
    ("chartqa", "train", "write 'chartqa/augmented'"),
    ("chartqa/human", "train", "is not prepared .* pgjax.prepare chartqa --raw="),
    ("docvqa", "train", "is not prepared .* pgjax.prepare docvqa --raw="),
  ]:
    with pytest.raises(ValueError, match=message):
      registry.open(dict(name=name, split=split, data_dir=str(tmp_path)))


@pytest.mark.skipif(
  not (SHARED / "chartqa").is_dir(), reason="needs the ChartQA subset (PGJAX_SHARED_DATA)"
)
def test_the_public_subset(tmp_path):
  done = prepare("chartqa", f"--raw={SHARED / 'chartqa'}", f"--out={tmp_path}", "--parts=augmented")
  assert done.returncode == 0, done.stderr
  for split, count in dict(train=260, val=60, test=60).items():
    source = registry.open(dict(name="chartqa/augmented", split=split, data_dir=str(tmp_path)))
    assert len(source) == count
    example = source[count - 1]
    assert images.decode(example["image"]).ndim == 3
    assert {type(example["question"]), type(example["answer"])} == {str}
    assert example["question"].strip()
