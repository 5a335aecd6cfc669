"""Saves a run's arrays with Orbax and restores them.

retention.py decides when, and which steps stay. Commands that only need the weights use
orbax_params.py; workdir.py reads the other files of a step folder and detects damage.
"""

import contextlib
import functools
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pgjax import disk
from pgjax.checkpoints import (
  checksums as checksums_lib,
  orbax_items,
  retention as retention_lib,
  same_run,
  watchers,
  workdir as workdir_lib,
)
from pgjax.checkpoints.retention import Plan as Plan
from pgjax.distributed import processes
from pgjax.errors import UserError
from pgjax.params.tree import flatten, unflatten

COMPRESSED = 0.9  # Size of Orbax's files relative to the arrays: float32 weights hardly shrink.


class Saver:
  """Saves a run, restores its newest undamaged state, and deletes old steps.

  All processes call all methods, and the workdir must be visible to all of them. config: the run's
  config as plain data; tokenizer: the content of its file; identity: must not change between two
  starts in one workdir; checksums: a compiled function from {name: array} to {name: uint32}; fetch:
  completes a step folder before it is read (bucket_copy.py).
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    plan: Plan,
    config: dict[str, Any],
    tokenizer: bytes,
    identity: dict[str, Any],
    checksums: Callable[[Any], Any],
    say: Callable[[str], None],
    fetch: Callable[[pathlib.Path], None] = lambda path: None,
  ):
    """Touches no file; `latest` comes first."""
    self._workdir, self._folder = workdir, workdir / workdir_lib.FOLDER
    self._checksums, self._say, self._fetch = checksums, say, fetch
    self._config, self._identity = disk.plain(config), disk.plain(identity)
    self._tokenizer = tokenizer
    self._retention = retention_lib.Retention(plan)
    self._saving: tuple[int, dict[str, Any]] | None = None
    self._manager: ocp.CheckpointManager | None = None

  def latest(self, abstract_state: Any) -> tuple[Any, dict[str, Any] | None]:
    """(state, position in the data) of the newest undamaged step; (None, None) if there is none.

    abstract_state: a TrainState of ShapeDtypeStructs with the shardings to restore to; the mesh may
    differ from that of the save.
    """
    workdir_lib.check_kinds(self._workdir)
    orbax_items.drop_traces_of_other_arrays()
    self._check_disk("A checkpoint", orbax_items.named(abstract_state))
    state, ckpt = None, None
    available = workdir_lib.steps(self._workdir)
    while available and state is None:
      path = self._folder / str(available.pop())
      open_step = functools.partial(self._open_step, path, abstract_state, available)
      if (ckpt := self._agreed(path, available, open_step)) is not None:
        restore = functools.partial(self._restore, ckpt, abstract_state)
        state = self._agreed(path, available, restore)
    with disk.disk_errors(self._folder):
      self._folder.mkdir(exist_ok=True)
    self._manager = self._open_manager()
    if state is None:
      return None, None
    self._report(ckpt)
    return state, ckpt.position

  def due(self, step: int, scores: Mapping[str, float]) -> bool:
    """Whether to save `step`; the same on all processes, as `scores` are."""
    return self._retention.due(step, scores)

  def save(
    self,
    step: int,
    state: Any,
    position: dict[str, Any],
    scores: Mapping[str, float],
    *,
    planned: bool = True,
  ) -> None:
    """Copies `state` off the devices and returns; files are written in the background.

    scores: the metrics of an evaluation of exactly this step, or empty. planned: it was due.
    """
    self._explained(self._manager.wait_until_finished)  # Raises errors of the previous save.
    if step in self._manager.all_steps():
      return
    arrays = orbax_items.named(state)
    self._check_disk(f"The checkpoint of step {step}", arrays)
    sums = {name: int(value) for name, value in jax.device_get(self._checksums(arrays)).items()}
    run = dict(step=step, config=self._config, identity=self._identity, sums=sums)
    run |= dict(scores=workdir_lib.finite(scores), planned=planned)
    run["position"] = disk.plain(position)
    run["shapes"] = {name: _shape(leaf) for name, leaf in arrays.items()}
    self._saving = (step, run)
    if warning := watchers.warning(self._workdir, self._manager.all_steps()):
      self._say(warning)
    self._retention.add(step, scores, planned=planned)
    items = dict(
      params=ocp.args.StandardSave(state.params, orbax_items.in_pieces(flatten(state.params))),
      optimizer=ocp.args.StandardSave(_of_optimizer(arrays)),
    )
    if ema := orbax_items.under(arrays, "ema"):
      items["ema"] = ocp.args.StandardSave(unflatten(ema), orbax_items.in_pieces(ema))
    args = ocp.args.Composite(**items)
    self._explained(functools.partial(self._manager.save, step, args=args))

  def add_scores(self, step: int, scores: Mapping[str, float]) -> None:
    """Adds the scores of a step that was saved without them, when its evaluation was stopped."""
    path = self._folder / str(step)
    if step not in self._manager.all_steps():
      return
    _, planned = workdir_lib.scores_of(path)
    planned = planned or self.due(step, scores)
    self._retention.add(step, scores, planned=planned)
    if processes.is_main():
      with disk.disk_errors(path):
        workdir_lib.add_scores(path, scores, planned=planned)

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Orbax's PreservationPolicy: asked after each save which of the steps on disk stay."""
    steps = [checkpoint.step for checkpoint in checkpoints]
    preserved = self._retention.preserved(steps)
    preserved |= watchers.waiting(self._workdir, steps).keys()
    return [step in preserved for step in steps]

  def check(self) -> None:
    """Raises if writing in the background has failed, without waiting for it."""
    self._explained(self._manager.check_for_errors)

  def newest(self) -> str:
    """What a stop finds, as a sentence."""
    complete = workdir_lib.steps(self._workdir)
    return f"The newest checkpoint is of step {complete[-1]}." if complete else "Nothing was saved."

  def close(self) -> None:
    """Waits until everything is on disk."""
    if self._manager is not None:
      manager, self._manager = self._manager, None
      try:
        self._explained(manager.wait_until_finished)
      finally:
        with contextlib.suppress(Exception):  # After an error of the disk, which is raised.
          manager.close()

  def _open_manager(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self,
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._add_files),
    )
    logging.getLogger("absl").addFilter(orbax_items.is_worth_logging)
    # Otherwise a replicated array is cut into one slice per device before it is written: that takes
    # device memory, and 1.5 s instead of 0.1 s a save for a small model on 8 devices.
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, arrays, override=True)
    for step in workdir_lib.steps(self._workdir):
      scores, planned = workdir_lib.scores_of(self._folder / str(step))
      self._retention.add(step, scores, planned=planned)
    return ocp.CheckpointManager(self._folder, options=options)

  def _add_files(self) -> None:
    """Called on the main process when the arrays are written, before Orbax renames the folder.

    So these files become visible together with the arrays, or never.
    """
    step, run = self._saving
    folder = next(self._folder.glob(f"{step}.*tmp*"), self._folder / str(step))
    workdir_lib.add_files(folder, run, self._tokenizer)

  def _restore(self, ckpt: workdir_lib.Checkpoint, abstract_state: Any) -> Any:
    wanted = orbax_items.named(abstract_state)
    params = orbax_items.read_item(ckpt.path / "params", abstract_state.params)
    arrays = {f"params/{name}": leaf for name, leaf in orbax_items.named(params).items()}
    arrays |= orbax_items.read_item(ckpt.path / "optimizer", _of_optimizer(wanted))
    if ema := orbax_items.under(wanted, "ema"):
      read = orbax_items.read_item(ckpt.path / "ema", unflatten(ema))
      arrays |= {f"ema/{name}": leaf for name, leaf in flatten(read).items()}
    sums_of = self._checksums if ckpt.ordered else checksums_lib.jitted_checksums(ordered=False)
    orbax_items.check_sums(ckpt, sums_of(arrays))
    return jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[n] for n in wanted])

  def _agreed(self, path: pathlib.Path, older: list[int], attempt: Callable[[], Any]) -> Any:
    """What `attempt` returns; None, and the step is set aside, if a process found it damaged."""
    result, trouble = None, None
    try:
      result = attempt()
    except workdir_lib.DamagedError as error:
      trouble = ("damaged", str(error))
    except workdir_lib.UnreadableError as error:
      trouble = ("unreadable", str(error))
    troubles = [each for each in processes.gather_objects(trouble) if each]
    if unreadable := [text for kind, text in troubles if kind == "unreadable"]:
      raise UserError(
        f"The checkpoint of step {path.name} may be whole, but {unreadable[0]} Nothing was changed:"
        " make it readable and rerun the same command."
      )
    if troubles:
      self._set_aside(path, troubles[0][1], older)
      return None
    return result

  def _open_step(
    self, path: pathlib.Path, abstract_state: Any, older: list[int]
  ) -> workdir_lib.Checkpoint:
    """The workdir must belong to this run, perhaps with other settings.

    If the step before belongs to it, then a newest step of another run is damage.
    """
    self._fetch(path)
    ckpt, before = workdir_lib.read(path), None
    shapes = {name: _shape(leaf) for name, leaf in orbax_items.named(abstract_state).items()}
    if not (other := same_run.difference(ckpt, shapes, self._identity)):
      return ckpt
    with contextlib.suppress(workdir_lib.DamagedError):
      before = older and workdir_lib.read(self._folder / str(older[-1]))
    if before and not same_run.difference(before, shapes, self._identity):
      raise workdir_lib.DamagedError(f"{path / 'run.json'}: this is {other}")
    advice = "Give this run a workdir of its own, or undo the change to resume the run in there."
    raise UserError(f"The workdir {self._workdir} holds {other}. {advice}")

  def _report(self, ckpt: workdir_lib.Checkpoint) -> None:
    """Logs what the user should know about the checkpoint from which the run goes on."""
    for note in ckpt.notes:
      self._say(note)
    if changed := same_run.changes(ckpt.config, self._config):
      lines = "\n".join(f"  {change}" for change in changed)
      self._say(f"The config has changed since step {ckpt.step} was saved:\n{lines}")

  def _check_disk(self, what: str, arrays: Mapping[str, Any]) -> None:
    """Raises in time for most full disks: Orbax's threads would each log it in their own way."""
    needed_bytes = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in arrays.values())
    free_bytes = shutil.disk_usage(self._workdir).free
    if free_bytes < COMPRESSED * needed_bytes:
      raise UserError(
        f"{what} takes up to {_size(needed_bytes)}, and the disk of {self._workdir} has "
        f"{_size(free_bytes)} free; {self._how_to_resume()}"
      )

  def _how_to_resume(self) -> str:
    complete = workdir_lib.steps(self._workdir)
    newest = f"the one of step {complete[-1]} is complete" if complete else "there is none before"
    return f"{newest}. Free some space and rerun the same command to resume from the newest one."

  def _set_aside(self, path: pathlib.Path, why: str, older: list[int]) -> None:
    if not older:
      raise UserError(
        f"No checkpoint in {self._workdir} can be read (step {path.name}: {why}). Move "
        f"{self._folder} away to start this run from the beginning, or give another --workdir."
      )
    self._say(
      f"The checkpoint of step {path.name} is damaged ({why}). It was moved to the folder "
      f"{workdir_lib.DAMAGED}, and the run goes back to step {older[-1]}."
    )
    processes.gather_objects("has been read")  # No process moves what another still reads.
    if processes.is_main():
      workdir_lib.set_aside(path)
    processes.gather_objects("has been moved")

  def _explained(self, call: Callable[[], Any]) -> Any:
    """Turns errors of the disk into a UserError; others are bugs."""
    try:
      return call()
    except Exception as error:
      reason = disk.disk_trouble(error)
      if reason is None:
        raise
      step = self._saving[0] if self._saving else 0
      for folder in self._folder.glob(f"{step}.*tmp*"):
        shutil.rmtree(folder, ignore_errors=True)
      raise UserError(
        f"The checkpoint of step {step} could not be written to {self._workdir} ({reason}); "
        f"{self._how_to_resume()}"
      ) from error


def _of_optimizer(named: Mapping[str, Any]) -> dict[str, Any]:
  return {name: leaf for name, leaf in named.items() if not name.startswith(("params/", "ema/"))}


def _shape(leaf: Any) -> workdir_lib.Shape:
  return np.dtype(leaf.dtype).name, list(leaf.shape)


def _size(num_bytes: int) -> str:
  return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"
