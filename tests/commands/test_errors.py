"""A user's mistake is one sentence, an exit code, and as early as can be; the run is not lost."""

import json
import re
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from pgjax import cli, train
from pgjax.checkpoints import workdir as workdir_lib
from pgjax.distributed import mesh as mesh_lib

# The model, batch and optimizer of test_run.py, so that the step is compiled once for both.
TINY = dict(width=16, depth=1, mlp_dim=32, num_heads=2)
FIELDS = {
  "text_len": 16,
  "model.img": dict(TINY, variant="tiny", patch_size=16),
  "model.llm": dict(TINY, variant="tiny", num_kv_heads=1, head_dim=8, vocab_size=1792),
  "lr": 2e-3,
  "wd": 1e-4,
  "total_steps": 40,
  "log_training_steps": 4,
  "ckpt_steps": 8,
  "input.num_threads": 1,
}


@pytest.fixture
def attempt(tmp_path, root, monkeypatch, capsys):
  """attempt("batch_size=8", lr=1) -> (exit code, stdout, stderr) of a training run."""
  monkeypatch.chdir(root)

  def run(arg="batch_size=8", *, workdir=None, **settings):
    fields = FIELDS | {name.replace("__", "."): value for name, value in settings.items()}
    data = f"train={tmp_path / 'data.jsonl'},val=,variant=tiny,res=64"
    argv = [f"--config=configs/forkme.py:{data},{arg}", f"--workdir={workdir or tmp_path / 'w'}"]
    argv += [f"--config.{name}={value}" for name, value in fields.items()]
    with pytest.raises(SystemExit) as end:
      cli.run(train.main, train.__doc__, train.FLAGS, argv=["pgjax/train.py", *argv])
    out = capsys.readouterr()
    return end.value.code or 0, out.out, out.err

  return run


def rows(tmp_path, *, count=8, **broken):
  """Writes data.jsonl with `count` good lines; `line3="..."` replaces the third."""
  lines = []
  for i in range(count):
    pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    lines.append(json.dumps(dict(image=f"{i}.png", prefix=f"what is {i}?", suffix=str(i))))
  for name, line in broken.items():
    lines[int(name.removeprefix("line")) - 1] = line
  (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")


def is_one_sentence(code, out, err, *, compiled=False):
  assert code == 1
  assert err.startswith("error: "), err
  assert err.count("\n") == 1, err
  assert "Traceback" not in out + err
  assert ("Compiling" in out) == compiled


def test_a_config_typo_is_answered_with_a_guess(attempt):
  code, out, err = attempt(text_lenn=3)
  is_one_sentence(code, out, err)
  assert "text_lenn" in err
  assert "Did you mean 'text_len'?" in err


def test_a_missing_data_file(attempt):
  code, out, err = attempt()
  is_one_sentence(code, out, err)
  assert "data.jsonl cannot be read: No such file" in err


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"image": "nowhere.png", "prefix": "", "suffix": ""}', "line 3: image 'nowhere.png'"),
    ('{"image": "0.png", ', "line 3: not JSON"),
    ('{"image": "../../etc/passwd", "prefix": "", "suffix": ""}', "is outside of"),
  ],
)
def test_a_bad_line_is_named_before_anything_is_compiled(attempt, tmp_path, line, message):
  rows(tmp_path, line3=line)
  code, out, err = attempt()
  is_one_sentence(code, out, err)
  assert message in err
  assert "line 3" in err


def test_texts_longer_than_text_len(attempt, tmp_path):
  long = json.dumps(dict(image="0.png", prefix="word " * 50, suffix="x"))
  rows(tmp_path, line3=long)
  code, out, err = attempt()
  is_one_sentence(code, out, err)
  assert "1 of 8 texts" in err
  assert "text_len=16" in err


def test_a_batch_that_the_devices_do_not_divide(attempt, tmp_path):
  rows(tmp_path)
  code, out, err = attempt("batch_size=12")
  is_one_sentence(code, out, err)
  assert f"12 cannot be divided among {jax.device_count()} devices; try 8 or 16" in err


def test_an_unwritable_workdir(attempt, tmp_path):
  rows(tmp_path)
  code, out, err = attempt(workdir=tmp_path / "0.png" / "w")
  is_one_sentence(code, out, err)
  assert "cannot be written (Not a directory)" in err


def huge_png(width, height):
  """A PNG whose header promises more pixels than there are."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


BROKEN = dict(huge=huge_png(100_000, 100_000), broken=b"\x89PNG\r\n\x1a\n broken", empty=b"")


@pytest.mark.parametrize(
  "content",
  [pytest.param(c, id=n, marks=[pytest.mark.slow] * (n == "huge")) for n, c in BROKEN.items()],
)
def test_an_image_that_cannot_be_read_in_the_first_batch(attempt, tmp_path, content):
  rows(tmp_path)
  (tmp_path / "2.png").write_bytes(content)
  code, out, err = attempt()
  is_one_sentence(code, out, err)
  assert "data.jsonl, line 3 (image 2.png)" in err


@pytest.mark.slow
def test_an_image_that_cannot_be_read_later_does_not_cost_the_run(attempt, tmp_path, monkeypatch):
  rows(tmp_path)
  log_step = train.run_log.Log.step

  def spoil(log, step, *args, **kwargs):
    log_step(log, step, *args, **kwargs)
    if step == 10:
      (tmp_path / "2.png").write_bytes(b"not an image any more")

  monkeypatch.setattr(train.run_log.Log, "step", spoil)
  code, out, err = attempt()
  is_one_sentence(code, out, err, compiled=True)
  assert "data.jsonl, line 3 (image 2.png)" in err
  step = workdir_lib.steps(tmp_path / "w")[-1]
  assert 10 <= step < 40
  assert (tmp_path / "w/metrics.jsonl").read_text().count("training_loss") == step


@pytest.mark.slow
def test_a_value_that_is_not_finite_stops_the_run_and_keeps_the_last_good_step(
  attempt, tmp_path, monkeypatch
):
  rows(tmp_path)
  global_batch, batches = mesh_lib.global_batch, []

  def poisoned(batch, mesh):
    batches.append(1)
    image = batch["image"] * (np.float32("nan") if len(batches) == 22 else 1)
    return global_batch(dict(batch, image=image), mesh)

  monkeypatch.setattr(mesh_lib, "global_batch", poisoned)
  code, out, err = attempt(ckpt_steps=10)
  is_one_sentence(code, out, err, compiled=True)
  assert re.search(r"training_loss became nan \(and .* with it\) at step 22", err)
  assert workdir_lib.steps(tmp_path / "w") == [10, 20]
  assert (tmp_path / "w/metrics.jsonl").read_text().count("training_loss") == 21


@pytest.mark.slow
def test_another_run_in_the_same_workdir(attempt, tmp_path):
  rows(tmp_path)
  assert attempt()[0] == 0
  code, out, err = attempt(seed=5)
  is_one_sentence(code, out, err)
  assert "holds a run on other data: config.seed was 0 there and is 5" in err
  narrow = dict(FIELDS["model.img"], mlp_dim=8)
  code, out, err = attempt(**{"model.img": narrow})
  is_one_sentence(code, out, err)
  assert "holds another model" in err


@pytest.mark.slow
def test_a_full_disk_while_saving(attempt, tmp_path, monkeypatch):
  rows(tmp_path)
  add_files = workdir_lib.add_files

  def full(folder, run, tokenizer):
    if run["step"] > 8:
      raise OSError(28, "No space left on device")
    add_files(folder, run, tokenizer)

  monkeypatch.setattr(workdir_lib, "add_files", full)
  code, out, err = attempt()
  is_one_sentence(code, out, err, compiled=True)
  assert "step 16 could not be written" in err
  assert "No space left on device" in err
  assert "step 8 is complete" in err
  assert workdir_lib.steps(tmp_path / "w") == [8]
  monkeypatch.setattr(workdir_lib, "add_files", add_files)
  code, out, _ = attempt()
  assert code == 0
  assert "Resuming from step 8." in out
