"""A saved state is restored bit for bit, on any mesh, or an error explains why not."""

import errno
import json
import os
import pathlib
import shutil
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pgjax import disk
from pgjax.checkpoints import (
  checksums,
  orbax_items,
  orbax_params,
  same_run,
  saver as saver_lib,
  workdir as workdir_lib,
)
from pgjax.errors import UserError
from pgjax.params import tree as param_tree


class State(NamedTuple):
  step: Any
  params: Any
  opt_state: Any


def placed(tree, devices):
  """Each array split over its first axis where that divides."""
  mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))

  def place(x):
    split = x.ndim > 0 and x.shape[0] % devices == 0
    return NamedSharding(mesh, PartitionSpec("data") if split else PartitionSpec())

  return jax.tree.map(lambda x: jax.device_put(x, place(x)), tree)


def make_state(step, *, devices=1, width=8):
  rng = np.random.default_rng(step)
  params = {
    "llm": {
      "w": rng.normal(size=(16, width)).astype("f"),
      "scale": np.ones(3, jnp.bfloat16) * step,
    },
    "img": {"kernel": rng.normal(size=(5, 300)).astype("f")},
  }
  trained = {"llm/w": params["llm"]["w"]}
  opt_state = optax.chain(optax.scale_by_adam(), optax.scale(-1.0)).init(trained)
  opt_state = jax.tree.map(lambda x: x + step, opt_state)
  return placed(State(np.int32(step), params, opt_state), devices)


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture
def saver(tmp_path):
  opened = []

  def make(lines=None, workdir=tmp_path, identity=None, **plan):
    opened_saver = saver_lib.Saver(
      disk.open_folder(str(workdir), "--workdir"),
      plan=saver_lib.Plan(**{"total_steps": 100, **plan}),
      config=dict(lr=0.1, mesh=[("data", -1)]),
      tokenizer=b"pieces",
      identity=identity or dict(seed=0, batch_size=4),
      checksums=checksums.jitted_checksums(),
      say=(lines if lines is not None else []).append,
    )
    opened.append(opened_saver)
    return opened_saver

  yield make
  for opened_saver in opened:
    opened_saver.close()


def position(step):
  return dict(step=step, total_steps=100, evaluated=True)


def save(saver, steps, scores=None):
  """A run in a fresh workdir that saves at `steps`."""
  saver.latest(abstract(make_state(0)))
  for step in steps:
    saver.save(step, make_state(step), position(step), (scores or {}).get(step, {}))
  saver.close()


def bits(tree):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_newest_state_is_restored_bit_for_bit_on_any_mesh(saver, devices):
  save(saver(), [3, 7])
  target = abstract(make_state(7, devices=devices))
  state, where = saver().latest(target)
  assert bits(state) == bits(make_state(7))
  assert jax.tree.structure(state) == jax.tree.structure(target)
  assert where == position(7)
  assert all(
    a.sharding == b.sharding for a, b in zip(*map(jax.tree.leaves, (state, target)), strict=True)
  )


def test_a_state_donated_right_after_saving_is_saved_as_it_was(saver, tmp_path):
  """The copy off the device must not be a view of memory that the next step overwrites."""
  update = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
  first, expected = saver(), bits(make_state(5))
  first.latest(abstract(make_state(0)))
  state = make_state(5)
  first.save(5, state, position(5), {})
  jax.block_until_ready(update(state))
  first.close()
  assert bits(saver().latest(abstract(make_state(0)))[0]) == expected


def test_a_fresh_workdir_has_nothing_to_resume(saver):
  assert saver().latest(abstract(make_state(0))) == (None, None)


def test_a_step_folder_is_self_contained(saver, tmp_path):
  save(saver(), [3])
  shutil.copytree(tmp_path / "checkpoints/3", tmp_path / "elsewhere/3")
  ckpt = workdir_lib.find(str(tmp_path / "elsewhere/3"))
  assert ckpt.config == {"lr": 0.1, "mesh": [["data", -1]]}
  assert pathlib.Path(ckpt.tokenizer).read_bytes() == b"pieces"
  leaves = orbax_params.leaves(ckpt)
  arrays = param_tree.unflatten({name: leaf.whole() for name, leaf in leaves.items()})
  assert bits(arrays) == bits(make_state(3).params)


def test_the_last_the_best_and_multiples_are_preserved(saver, tmp_path):
  scores = {2: {"eval/acc": 0.9}, 3: {"eval/acc": 0.5}, 6: {"other": 1.0}}
  save(saver(keep_last=2, keep_every_steps=4, keep_best="eval/acc"), range(1, 8), scores)
  assert workdir_lib.steps(tmp_path) == [2, 4, 6, 7]
  again = saver(keep_last=1, keep_best="eval/acc")  # A second start knows the best one.
  again.latest(abstract(make_state(0)))
  assert not again.due(9, {"eval/acc": 0.8})
  assert again.due(9, {"eval/acc": 0.95})
  again.save(9, make_state(9), position(9), {"eval/acc": 0.8})
  again.close()
  assert workdir_lib.steps(tmp_path) == [2, 9]


def test_a_minus_means_less_is_better(saver, tmp_path):
  scores = {
    1: {"eval/avg": 2.0},
    2: {"eval/avg": 1.0},
    3: {"eval/avg": 3.0},
    4: {"eval/avg": np.nan},
  }
  save(saver(keep_last=1, keep_best="-eval/avg"), range(1, 5), scores)
  assert workdir_lib.steps(tmp_path) == [2, 4]


def test_due_at_multiples_and_at_the_end(saver):
  plan = saver(total_steps=10, every_steps=4)
  assert [step for step in range(1, 11) if plan.due(step, {})] == [4, 8, 10]


def damage(path, how):
  data = path.read_bytes()
  if how == "missing":
    path.unlink()
  elif how == "truncated":
    path.write_bytes(data[: len(data) // 2])
  elif how == "flipped":  # Many bits: a single one may be in a byte that is never read.
    start, stop = len(data) // 4, 3 * len(data) // 4
    path.write_bytes(data[:start] + bytes(byte ^ 64 for byte in data[start:stop]) + data[stop:])


def largest(folder):
  """The arrays; some of the other files are never read."""
  return max(folder.rglob("d/*"), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("item", ["params", "optimizer"])
def test_a_damaged_newest_step_is_reported_and_the_one_before_used(saver, tmp_path, item, how):
  save(saver(), [3, 7])
  for path in list((tmp_path / "checkpoints/7" / item).rglob("d/*")):  # Not all of them are read.
    damage(path, how)
  lines = []
  again = saver(lines)
  state, _ = again.latest(abstract(make_state(0)))
  assert bits(state) == bits(make_state(3))
  assert len(lines) == 1
  assert "step 7 is damaged" in lines[0]
  assert "goes back to step 3" in lines[0]
  assert (tmp_path / "damaged/7").is_dir()
  again.save(7, make_state(7), position(7), {})  # The same step can be written again.
  again.close()
  assert bits(saver().latest(abstract(make_state(0)))[0]) == bits(make_state(7))


def flipped(saver, tmp_path, files, bits_of):
  """What a flipped bit does: {path in the step: "noticed", "equal" or "both"}; silence raises.

  bits_of: from the size of a file to the bits, one of which is flipped at a time.
  """
  found = {}
  whole = shutil.copytree(tmp_path / "checkpoints/7", tmp_path / "whole")
  for path in files(whole):
    name, results = path.relative_to(whole).as_posix(), set()
    for bit in bits_of(path.stat().st_size):
      shutil.rmtree(tmp_path / "checkpoints/7", ignore_errors=True)
      shutil.copytree(whole, tmp_path / "checkpoints/7")
      content = bytearray(path.read_bytes())
      content[bit // 8] ^= 1 << bit % 8
      (tmp_path / "checkpoints/7" / name).write_bytes(content)
      lines = []
      again = saver(lines)
      state, where = again.latest(abstract(random_state(0)))
      again.close()
      step = where["step"]
      assert bits(state) == bits(random_state(step)), f"{name}, bit {bit}, is not noticed"
      assert bool(lines) == (step == 3)
      results.add({3: "noticed", 7: "equal"}[step])
    found[name] = results.pop() if len(results) == 1 else "both"
  return found


def random_state(step):
  """Arrays that do not shrink: large ones are stored in files of their own."""
  state, rng = make_state(step), np.random.default_rng(step + 100)
  params = state.params | {
    "codes": rng.integers(0, 256, (40, 9), np.uint8),
    "int8": rng.integers(-128, 128, (5, 8), np.int8),
  }
  moments = {name: rng.normal(size=(70, 33)).astype("f") for name in ("mu", "nu")}
  return placed(State(np.int32(step), params, moments | dict(count=np.int32(step))), 1)


def saved_random(saver):
  first = saver()
  first.latest(abstract(random_state(0)))
  for step in (3, 7):
    first.save(step, random_state(step), position(step), {})
  first.close()


def test_a_flipped_bit_in_any_data_file_is_noticed_or_in_a_file_that_is_not_read(saver, tmp_path):
  saved_random(saver)
  in_the_middle = lambda size: [4 * size]  # noqa: E731
  found = flipped(saver, tmp_path, lambda step: sorted(step.rglob("d/*")), in_the_middle)
  for item in ("params", "optimizer"):
    assert "noticed" in {result for name, result in found.items() if name.startswith(item)}
  assert {result for name, result in found.items() if "ocdbt.process" not in name} == {"noticed"}


@pytest.mark.long
def test_a_flipped_bit_anywhere_in_a_step_is_noticed_or_changes_nothing(saver, tmp_path):
  saved_random(saver)
  rng = np.random.default_rng(0)

  def bits_of(size):
    return [*range(8), *rng.integers(0, 8 * size, 8).tolist()]

  everything = lambda step: sorted(p for p in step.rglob("*") if p.is_file())  # noqa: E731
  found = flipped(saver, tmp_path, everything, bits_of)
  for name in ("run.json", "files.json", "tokenizer.model"):
    assert found[name] == "noticed"


@pytest.mark.parametrize("name", ["run.json", "tokenizer.model", "files.json"])
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_files_beside_the_arrays_are_checked_too(saver, tmp_path, name, how):
  save(saver(), [3, 7])
  damage(tmp_path / "checkpoints/7" / name, how)
  state, _ = saver().latest(abstract(make_state(0)))
  assert bits(state) == bits(make_state(3))


def test_no_good_step_left_is_an_error_and_touches_nothing(saver, tmp_path):
  save(saver(), [3])
  damage(largest(tmp_path / "checkpoints/3"), "truncated")
  with pytest.raises(UserError, match=r"No checkpoint in .* can be read .*bytes instead of"):
    saver().latest(abstract(make_state(0)))
  assert workdir_lib.steps(tmp_path) == [3]
  with pytest.raises(UserError, match=r"damaged: .* bytes instead of"):
    workdir_lib.find(str(tmp_path))


def test_an_unfinished_save_is_ignored(saver, tmp_path):
  save(saver(), [3])
  shutil.copytree(tmp_path / "checkpoints/3", tmp_path / "checkpoints/7.orbax-checkpoint-tmp")
  state, _ = saver().latest(abstract(make_state(0)))
  assert int(state.step) == 3


def test_another_model_in_the_same_workdir_is_refused(saver):
  save(saver(), [3])
  with pytest.raises(
    UserError, match=r"another model.*w is float32\[16, 8\] in its checkpoint and float32\[16, 4\]"
  ):
    saver().latest(abstract(make_state(0, width=4)))


def test_other_data_in_the_same_workdir_is_refused(saver):
  save(saver(), [3])
  with pytest.raises(UserError, match="other data: batch_size was 4 there and is 8"):
    saver(identity=dict(seed=0, batch_size=8)).latest(abstract(make_state(0)))


def test_a_disk_that_is_too_small_raises_before_anything_is_written(saver, tmp_path, monkeypatch):
  first = saver()
  first.latest(abstract(make_state(0)))
  monkeypatch.setattr(saver_lib.shutil, "disk_usage", lambda _: SimpleNamespace(free=4))
  with pytest.raises(UserError, match=r"step 3 takes up to .* MB, and the disk .* has 4e-06 MB"):
    first.save(3, make_state(3), position(3), {})
  with pytest.raises(UserError, match=r"A checkpoint takes up to .* there is none before"):
    saver().latest(abstract(make_state(0)))
  assert not list((tmp_path / "checkpoints").iterdir())


def test_a_full_disk_raises_and_leaves_earlier_steps(saver, tmp_path, monkeypatch):
  save(saver(), [3])
  first = saver()
  first.latest(abstract(make_state(0)))

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(workdir_lib, "add_files", full)
  first.save(7, make_state(7), position(7), {})  # The error comes from the background,
  with pytest.raises(
    UserError, match=r"step 7 .* \(No space left on device\); .* step 3 is complete"
  ):
    first.close()  # and is not lost.
  monkeypatch.undo()
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
  assert int(saver().latest(abstract(make_state(0)))[0].step) == 3


@pytest.mark.parametrize("workdir", ["a_file/inside", "/proc/nowhere"])
def test_an_unwritable_workdir_raises_at_once(tmp_path, workdir):
  (tmp_path / "a_file").write_bytes(b"a file")
  with pytest.raises(UserError, match=r"--workdir=.* cannot be written"):
    disk.open_folder(str(tmp_path / workdir), "--workdir")


def test_missing_checkpoints_raise(saver, tmp_path):
  with pytest.raises(UserError, match="no such file or folder"):
    workdir_lib.find(str(tmp_path / "nothing"))
  with pytest.raises(UserError, match="no complete checkpoint"):
    workdir_lib.find(str(tmp_path))
  save(saver(), [3])
  with pytest.raises(UserError, match=r"no checkpoint of step 4; there are \[3\]"):
    workdir_lib.find(str(tmp_path), 4)


def test_a_step_that_cannot_be_read_for_the_moment_is_not_moved(saver, tmp_path, monkeypatch):
  save(saver(), [3, 7])
  read_item = orbax_items.read_item

  def refused(path, *args):
    if path.parent.name == "7" and path.name == "optimizer":
      raise workdir_lib.UnreadableError(f"{path} cannot be read (Stale file handle).")
    return read_item(path, *args)

  monkeypatch.setattr(orbax_items, "read_item", refused)
  with pytest.raises(UserError, match=r"step 7 may be whole, but .*Stale.* Nothing was changed"):
    saver().latest(abstract(make_state(0)))
  assert workdir_lib.steps(tmp_path) == [3, 7]
  assert not (tmp_path / "damaged").exists()
  monkeypatch.undo()
  assert bits(saver().latest(abstract(make_state(0)))[0]) == bits(make_state(7))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_orbax_may_not_read_is_not_damage(saver, tmp_path, monkeypatch, code):
  save(saver(), [3])

  def restore(*_):
    raise ValueError(f"PERMISSION_DENIED: Error reading local file: {os.strerror(code)}")

  monkeypatch.setattr(orbax_items.ocp.StandardCheckpointer, "restore", restore)
  with pytest.raises(workdir_lib.UnreadableError, match=os.strerror(code)):
    orbax_items.read_item(tmp_path / "checkpoints/3/params", {})


def test_an_older_step_resumes_with_a_note_and_is_still_checked(saver, tmp_path):
  save(saver(), [3, 7])
  plain, lines = checksums.jitted_checksums(ordered=False), []
  for step in (3, 7):
    folder = tmp_path / "checkpoints" / str(step)
    run = json.loads((folder / "run.json").read_text())
    sums = plain(orbax_items.named(make_state(step)))
    run |= dict(format=1, sums={name: int(value) for name, value in sums.items()})
    for name in ("checksum", "scores", "planned"):
      del run[name]
    if step == 7:
      run["sums"]["params/llm/w"] ^= 1
    (folder / "run.json").write_text(json.dumps(run))
  state, where = saver(lines).latest(abstract(make_state(0)))
  assert (bits(state), where) == (bits(make_state(3)), position(3))
  assert "step 7 is damaged" in lines[0]
  assert "older version of pgjax" in lines[1]


def test_swapped_rows_are_damage(saver, tmp_path, monkeypatch):
  save(saver(), [3, 7])
  read_item = orbax_items.read_item

  def swapped(path, *args):
    tree = read_item(path, *args)
    if path.parent.name == "7" and path.name == "params":
      tree["llm"]["w"] = tree["llm"]["w"][::-1]
    return tree

  monkeypatch.setattr(orbax_items, "read_item", swapped)
  lines = []
  assert bits(saver(lines).latest(abstract(make_state(0)))[0]) == bits(make_state(3))
  assert "the content of params/llm/w has changed" in lines[0]


def test_scores_of_a_resumed_evaluation_are_stored_with_their_step(saver, tmp_path):
  first = saver(keep_last=1, keep_best="eval/acc")
  first.latest(abstract(make_state(0)))
  first.save(3, make_state(3), position(3) | dict(evaluated=False), {}, planned=False)
  first.close()
  for step, scores in ((None, {"eval/acc": 0.9}), (4, {"eval/acc": 0.5})):
    again = saver(keep_last=1, keep_best="eval/acc")
    again.latest(abstract(make_state(0)))
    if step is None:
      again.add_scores(3, scores)
      again.add_scores(2, scores)  # There is no such step.
    else:
      assert not again.due(step, scores)
      again.save(step, make_state(step), position(step), scores)
    again.close()
  assert workdir_lib.steps(tmp_path) == [3, 4]
  assert workdir_lib.read(tmp_path / "checkpoints/3").position["evaluated"]


def test_changed_settings_are_listed(saver, tmp_path):
  save(saver(), [3])
  lines = []
  assert saver(lines).latest(abstract(make_state(0)))[1] == position(3)
  assert not lines
  before = dict(lr=0.1, evals=dict(val=dict(batch_size=8)), mesh=[["data", -1]])
  now = dict(lr=0.2, evals=dict(val=dict(batch_size=4), test=dict(data=1)), mesh=[["data", -1]])
  changes = same_run.changes(before, now)
  assert changes[0] == "evals.test.data is 1, and was absent" or "evals.test is" in changes[0]
  assert "evals.val.batch_size was 8 and is 4" in changes
  assert "lr was 0.1 and is 0.2" in changes
  assert not [c for c in changes if not c.startswith(("evals.", "lr "))]
