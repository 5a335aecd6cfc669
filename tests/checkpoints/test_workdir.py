"""Everything beside the arrays of a step is checked; what the disk refuses is not damage."""

import errno
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from pgjax import disk
from pgjax.checkpoints import checksums, workdir as workdir_lib
from pgjax.errors import UserError

SHAPES = {"params/w": ["float32", [4, 3]], "optimizer/n": ["int32", []]}


@pytest.fixture
def step(tmp_path):
  """The folder of step 150, with one file for each item."""
  folder = tmp_path / "checkpoints" / "150"
  for item in ("params", "optimizer"):
    (folder / item).mkdir(parents=True)
    (folder / item / "data").write_bytes(b"0123")
  position = dict(step=150, total_steps=200, evaluated=True, seed=0, examples=1200)
  run = dict(step=150, config=dict(lr=0.1, keep_best="-val/avg"), identity=dict(seed=0))
  run |= dict(position=position, shapes=SHAPES, sums=dict.fromkeys(SHAPES, 5))
  workdir_lib.add_files(folder, run | dict(scores={"val/acc": 0.5}, planned=False), b"pieces")
  return folder


def edit(folder, name="run.json", **fields):
  content = json.loads((folder / name).read_text())
  (folder / name).write_text(disk.dumps(content | fields))


def older(folder):
  """As the version before wrote it."""
  run = json.loads((folder / "run.json").read_text())
  for name in ("checksum", "scores", "planned"):
    del run[name]
  (folder / "run.json").write_text(disk.dumps(run | dict(format=1, best_value=-0.25)))
  edit(folder, "files.json", **{"run.json": (folder / "run.json").stat().st_size})


def test_a_good_step_is_read(step):
  ckpt = workdir_lib.read(step)
  assert (ckpt.step, ckpt.position["examples"], ckpt.ordered) == (150, 1200, True)
  assert not ckpt.notes
  assert workdir_lib.scores_of(step) == ({"val/acc": 0.5}, False)


@pytest.mark.parametrize(
  "fields",
  [
    dict(position=dict(step=150, total_steps=200, evaluated=True, seed=0, examples=1040)),
    dict(position=dict(step=130, total_steps=200, evaluated=True, seed=0, examples=1200)),
    dict(step=130, position=dict(step=130, total_steps=200, evaluated=True)),
    dict(config=dict(lr=0.2, keep_best="-val/avg")),
    dict(scores={"val/acc": 0.75}),
    dict(identity=dict(seed=1)),
    dict(more=1),
    dict(format=1),
    dict(format=3),
    dict(checksum=None),
    dict(checksum="0" * 64),
  ],
  ids=str,
)
def test_an_edited_run_is_damage(step, fields):
  edit(step, **fields)
  with pytest.raises(workdir_lib.DamagedError, match=r"run\.json"):
    workdir_lib.read(step)


def test_another_version_is_no_damage(step):
  run = json.loads((step / "run.json").read_text()) | dict(format=3)
  sizes = json.loads((step / "files.json").read_text())
  run["checksum"] = workdir_lib._checksum(run, sizes)  # noqa: SLF001
  (step / "run.json").write_text(json.dumps(run))
  with pytest.raises(UserError, match="has format 3; this version of pgjax reads 1 and 2"):
    workdir_lib.read(step)


def test_a_flipped_bit_of_any_byte_beside_the_arrays_is_noticed(step):
  """But for another way to write the same JSON."""
  for name in ("run.json", "files.json", "tokenizer.model"):
    whole = (step / name).read_bytes()
    before = json.loads(whole) if name.endswith("json") else None
    for i in range(len(whole)):
      data = bytearray(whole)
      data[i] ^= 1 << i % 7
      (step / name).write_bytes(data)
      try:
        workdir_lib.read(step)
      except workdir_lib.DamagedError:
        continue
      assert before is not None
      assert json.loads(data) == before, (name, i)
    (step / name).write_bytes(whole)


def test_the_folder_of_another_step_is_damage(step):
  moved = step.rename(step.with_name("130"))
  with pytest.raises(workdir_lib.DamagedError, match=r"\$\.step is 150"):
    workdir_lib.read(moved)
  elsewhere = shutil.copytree(moved, step.parents[1] / "130")  # A copy for other commands.
  assert workdir_lib.find(str(elsewhere)).step == 150


def test_an_older_step_is_read_with_a_note(step):
  older(step)
  ckpt = workdir_lib.read(step)
  assert not ckpt.ordered
  assert "older version of pgjax" in ckpt.notes[0]
  assert workdir_lib.scores_of(step) == ({"val/avg": 0.25}, True)
  workdir_lib.add_scores(step, {"val/avg": 1.0}, planned=True)  # Its files.json would be wrong.
  assert workdir_lib.read(step) == ckpt


def test_scores_are_added_to_a_step(step):
  edit(step, "files.json")
  workdir_lib.add_scores(step, {"val/acc": 0.75, "val/loss": float("nan")}, planned=True)
  assert workdir_lib.read(step).position["evaluated"]
  assert workdir_lib.scores_of(step) == ({"val/acc": 0.75}, True)


CODES = (errno.EACCES, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["run.json", "files.json", "tokenizer.model", "data"])
def test_what_the_disk_refuses_is_not_damage(step, monkeypatch, code, name):
  read_bytes, stat = pathlib.Path.read_bytes, pathlib.Path.stat

  def refused(call, names):
    def instead(path, *args, **kwargs):
      if path.name in names:
        raise OSError(code, os.strerror(code), str(path))
      return call(path, *args, **kwargs)

    return instead

  monkeypatch.setattr(pathlib.Path, "read_bytes", refused(read_bytes, {name}))
  monkeypatch.setattr(pathlib.Path, "stat", refused(stat, {name} & {"data"}))
  with pytest.raises(workdir_lib.UnreadableError, match=os.strerror(code)):
    workdir_lib.read(step)


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    *(("checkpoints", "file"), ("check", "file"), ("evals", "file"), ("damaged", "link")),
    *(("config.json", "folder"), ("metrics.jsonl", "folder"), ("metrics.jsonl", "fifo")),
    *(("running.json", "folder"), ("checkpoints/²", "folder"), ("checkpoints/007", "folder")),
    *(("checkpoints/7", "file"), ("checkpoints/7", "link"), ("checkpoints/7", "loop")),
  ],
)
def test_files_and_folders_of_another_kind_are_named(tmp_path, name, kind):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  make = dict(
    file=lambda: path.write_bytes(b""),
    folder=path.mkdir,
    fifo=lambda: os.mkfifo(path),
    link=lambda: path.symlink_to("nowhere"),
    loop=lambda: path.symlink_to(path),
  )
  make[kind]()
  with pytest.raises(UserError, match=rf"{path.name} is not .*; ?|{path.name} is not"):
    workdir_lib.check_kinds(tmp_path)
  assert workdir_lib.steps(tmp_path) == []


def test_what_a_run_writes_is_of_the_right_kind(step):
  workdir = step.parents[1]
  for name in ("check", "evals", "tensorboard", "checkpoints/7.orbax-checkpoint-tmp"):
    (workdir / name).mkdir()
  for name in ("config.json", "metrics.jsonl"):
    (workdir / name).write_bytes(b"")
  workdir_lib.check_kinds(workdir)
  assert workdir_lib.steps(workdir) == [150]


def test_damaged_steps_of_one_number_stay_beside_each_other(step):
  again = shutil.copytree(step, step.with_name("copy"))
  assert workdir_lib.set_aside(step).name == "150"
  assert workdir_lib.set_aside(again.rename(step)).name == "150-2"


def test_a_name_stays_inside_its_folder(tmp_path):
  for name in ("/etc", "../up", "a/../../up", "..", ".", "", "a\0b"):
    with pytest.raises(UserError, match="would be written outside of"):
      disk.inside(tmp_path, name, "The evaluator")
  for name in ("val", "a/b", "...", "a..b"):
    assert disk.inside(tmp_path, name, "The evaluator") == tmp_path / name
  assert disk.inside(tmp_path / "x" / "..", "val", "The evaluator")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "a.json"
  disk.replace(path, "before")

  def full(self, data):
    self.touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  with pytest.raises(OSError, match="No space left"):
    disk.replace(path, "after")
  assert path.read_text() == "before"
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_sums_of_older_steps_are_plain():
  rows = np.arange(6, dtype=np.float32).reshape(3, 2)
  assert checksums.checksum([rows], ordered=False) == checksums.checksum(
    [rows[::-1]], ordered=False
  )
