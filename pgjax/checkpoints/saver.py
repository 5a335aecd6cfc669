"""Saves a run's arrays with Orbax and restores them; decides when, and which steps stay.

Commands that only need the weights use orbax_params.py; workdir.py reads the other files of a step
folder and detects damage.
"""

import contextlib
import functools
import json
import logging
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from pgjax import disk
from pgjax.checkpoints import watchers, workdir as workdir_lib
from pgjax.distributed import processes
from pgjax.errors import UserError
from pgjax.formats.lazy_array import CHUNK_BYTES
from pgjax.params.names import STACKED
from pgjax.params.tree import flatten, unflatten

COMPRESSED = 0.9  # Size of Orbax's files relative to the arrays: float32 weights hardly shrink.


class Plan(NamedTuple):
  """When to save, and which steps stay; 0 or "" turns a rule off."""

  total_steps: int
  every_steps: int = 0  # ckpt_steps; the last step is always saved.
  keep_every_steps: int = 0  # keep_ckpt_steps: multiples of it are never deleted.
  keep_last: int = 2
  keep_best: str = ""  # A metric such as "eval/acc"; "-eval/avg" where less is better.


class Saver:
  """Saves a run, restores its newest undamaged state, and deletes old steps.

  All processes call all methods, and the workdir must be visible to all of them. config: the run's
  config as plain data; tokenizer: the content of its file; identity: must not change between two
  starts in one workdir; checksums: a compiled function from {name: array} to {name: uint32}.
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
  ):
    """Touches no file; `latest` comes first."""
    self._workdir, self._folder = workdir, workdir / workdir_lib.FOLDER
    self._plan, self._checksums, self._say = plan, checksums, say
    self._config, self._identity = disk.plain(config), disk.plain(identity)
    self._tokenizer = tokenizer
    self._values: dict[int, float] = {}  # keep_best's metric of evaluated steps.
    self._saving: tuple[int, dict[str, Any]] | None = None
    self._manager: ocp.CheckpointManager | None = None

  def latest(self, abstract_state: Any) -> tuple[Any, dict[str, Any] | None]:
    """(state, position in the data) of the newest undamaged step; (None, None) if there is none.

    abstract_state: a TrainState of ShapeDtypeStructs with the shardings to restore to; the mesh may
    differ from that of the save.
    """
    self._check_disk("A checkpoint", named(abstract_state))
    state, position = None, None
    available = workdir_lib.steps(self._workdir)
    while available and state is None:
      path = self._folder / str(available.pop())
      try:
        ckpt = workdir_lib.read(path)
        self._check_same_run(ckpt, abstract_state, available)
        state, position = self._restore(ckpt, abstract_state), ckpt.position
      except workdir_lib.DamagedError as error:
        self._set_aside(path, error, available)
    if processes.is_main():
      self._folder.mkdir(exist_ok=True)
      (self._workdir / "config.json").write_text(disk.dumps(self._config))
    self._manager = self._open_manager()
    return state, position

  def due(self, step: int, scores: Mapping[str, float]) -> bool:
    """Whether to save `step`; the same on all processes, as `scores` are."""
    plan, value = self._plan, self._value(scores)
    return (
      step == plan.total_steps
      or bool(plan.every_steps and step % plan.every_steps == 0)
      or bool(plan.keep_every_steps and step % plan.keep_every_steps == 0)
      or (value is not None and value > max(self._values.values(), default=-np.inf))
    )

  def save(
    self, step: int, state: Any, position: dict[str, Any], scores: Mapping[str, float]
  ) -> None:
    """Copies `state` off the devices and returns; files are written in the background.

    scores: the metrics of an evaluation of exactly this step, or empty.
    """
    self._explained(self._manager.wait_until_finished)  # Raises errors of the previous save.
    if step in self._manager.all_steps():
      return
    arrays = named(state)
    self._check_disk(f"The checkpoint of step {step}", arrays)
    sums = {name: int(value) for name, value in jax.device_get(self._checksums(arrays)).items()}
    run = dict(step=step, config=self._config, identity=self._identity, sums=sums)
    run["position"] = disk.plain(position)
    run["shapes"] = {name: _shape(leaf) for name, leaf in arrays.items()}
    self._saving = (step, run)
    if warning := watchers.warning(self._workdir, self._manager.all_steps()):
      self._say(warning)
    if (value := self._value(scores)) is not None:
      self._values[step] = run["best_value"] = value
    items = dict(
      params=ocp.args.StandardSave(state.params, in_pieces(flatten(state.params))),
      optimizer=ocp.args.StandardSave(_of_optimizer(arrays)),
    )
    if ema := under(arrays, "ema"):
      items["ema"] = ocp.args.StandardSave(unflatten(ema), in_pieces(ema))
    args = ocp.args.Composite(**items)
    self._explained(functools.partial(self._manager.save, step, args=args))

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Orbax's PreservationPolicy: asked after each save which of the steps on disk stay."""
    plan, steps = self._plan, [checkpoint.step for checkpoint in checkpoints]
    preserved = set(steps[-plan.keep_last :])
    preserved |= {s for s in steps if plan.keep_every_steps and s % plan.keep_every_steps == 0}
    preserved |= set(sorted(self._values.keys() & set(steps), key=self._values.get)[-1:])
    preserved |= watchers.waiting(self._workdir, steps).keys()
    return [step in preserved for step in steps]

  def check(self) -> None:
    """Raises if writing in the background has failed, without waiting for it."""
    self._explained(self._manager.check_for_errors)

  def close(self) -> None:
    """Waits until everything is on disk."""
    if self._manager is not None:
      self._explained(self._manager.wait_until_finished)
      self._manager.close()
      self._manager = None

  def _open_manager(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self,
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._add_files),
    )
    logging.getLogger("absl").addFilter(is_worth_logging)
    # Otherwise a replicated array is cut into one slice per device before it is written: that takes
    # device memory, and 1.5 s instead of 0.1 s a save for a small model on 8 devices.
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, arrays, override=True)
    for step in workdir_lib.steps(self._workdir):
      if (value := workdir_lib.best_value(self._folder / str(step))) is not None:
        self._values[step] = value
    return ocp.CheckpointManager(self._folder, options=options)

  def _add_files(self) -> None:
    """Called on the main process when the arrays are written, before Orbax renames the folder.

    So these files become visible together with the arrays, or never.
    """
    step, run = self._saving
    folder = next(self._folder.glob(f"{step}.*tmp*"), self._folder / str(step))
    workdir_lib.add_files(folder, run, self._tokenizer)

  def _restore(self, ckpt: workdir_lib.Checkpoint, abstract_state: Any) -> Any:
    wanted = named(abstract_state)
    params = read_item(ckpt.path / "params", abstract_state.params)
    arrays = {f"params/{name}": leaf for name, leaf in named(params).items()}
    arrays |= read_item(ckpt.path / "optimizer", _of_optimizer(wanted))
    if ema := under(wanted, "ema"):
      read = read_item(ckpt.path / "ema", unflatten(ema))
      arrays |= {f"ema/{name}": leaf for name, leaf in flatten(read).items()}
    check_sums(ckpt, self._checksums(arrays))
    return jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[n] for n in wanted])

  def _check_same_run(
    self, ckpt: workdir_lib.Checkpoint, abstract_state: Any, older: list[int]
  ) -> None:
    """The workdir must belong to this run, perhaps with other settings.

    If the step before belongs to it, then a newest step of another run is damage.
    """
    if not (other := self._other_run(ckpt, abstract_state)):
      return
    before = None
    with contextlib.suppress(workdir_lib.DamagedError):
      before = older and workdir_lib.read(self._folder / str(older[-1]))
    if before and not self._other_run(before, abstract_state):
      raise workdir_lib.DamagedError(f"{ckpt.path / 'run.json'}: this is {other}")
    advice = "Give this run a workdir of its own, or undo the change to resume the run in there."
    raise UserError(f"The workdir {self._workdir} holds {other}. {advice}")

  def _other_run(self, ckpt: workdir_lib.Checkpoint, abstract_state: Any) -> str | None:
    here = {name: _shape(leaf) for name, leaf in named(abstract_state).items()}
    names = here.keys() | ckpt.shapes.keys()
    if different := sorted(name for name in names if here.get(name) != ckpt.shapes.get(name)):
      shapes = ckpt.shapes.get(different[0]), here.get(different[0])
      before, now = ("absent" if s is None else f"{s[0]}{s[1]}" for s in shapes)
      return (
        f"another model, or other trainable parts: {different[0]} is {before} in its checkpoint and"
        f" {now} in this config; {len(different)} arrays differ"
      )
    for name in sorted(ckpt.identity.keys() | self._identity.keys()):
      before, now = ckpt.identity.get(name), self._identity.get(name)
      if before != now:
        change = f"{name} was {_short(before)} there and is {_short(now)} in this config"
        return f"a run on other data: {change}"
    return None

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

  def _set_aside(self, path: pathlib.Path, error: Exception, older: list[int]) -> None:
    if not older:
      raise UserError(
        f"No checkpoint in {self._workdir} can be read (step {path.name}: {error}). Delete "
        f"{self._folder} to start this run from the beginning, or give another --workdir."
      ) from error
    self._say(
      f"The checkpoint of step {path.name} is damaged ({error}). It was moved to the folder "
      f"{workdir_lib.DAMAGED}, and the run goes back to step {older[-1]}."
    )
    processes.gather_objects("has been read")  # No process moves what another still reads.
    if processes.is_main():
      workdir_lib.set_aside(path)
    processes.gather_objects("has been moved")

  def _value(self, scores: Mapping[str, float]) -> float | None:
    """The metric of keep_best, larger is better; None if it was not measured."""
    name = self._plan.keep_best
    value = scores.get(name.removeprefix("-"))
    if value is None or not np.isfinite(value):
      return None
    return -float(value) if name.startswith("-") else float(value)

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


def in_pieces(params: Mapping[str, Any]) -> Any:
  """Orbax's save_args, nested: stores large arrays by layer or by blocks of rows.

  Then a conversion holds only one layer in memory, and another mesh reads little in vain.
  """

  def pieces(name, leaf):
    if leaf.nbytes <= CHUNK_BYTES:
      return ocp.SaveArgs()
    by_layer = name.startswith(STACKED)
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if by_layer else ())

  return unflatten({name: pieces(name, leaf) for name, leaf in params.items()})


def read_item(path: pathlib.Path, abstract: Any) -> Any:
  """One Orbax item of a step folder, restored to the shardings of `abstract`."""
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(path, abstract)
  except Exception as error:
    if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
      raise  # Too little memory is not damage.
    raise workdir_lib.DamagedError(f"{path.name}: {str(error).splitlines()[0]}") from error


def check_sums(ckpt: workdir_lib.Checkpoint, sums: Mapping[str, jax.Array]) -> None:
  """Raises DamagedError if an array is not the one that was saved."""
  for name, value in jax.device_get(sums).items():
    if int(value) != ckpt.sums[name]:
      raise workdir_lib.DamagedError(f"the content of {name} has changed since it was written")


def named(tree: Any) -> dict[str, Any]:
  """{"params/llm/layers/attn/q_einsum/w": leaf}, in the order of the tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def under(leaves: Mapping[str, Any], folder: str) -> dict[str, Any]:
  """{"a/b": leaf} of each leaf named "folder/a/b"."""
  start = f"{folder}/"
  return {n.removeprefix(start): leaf for n, leaf in leaves.items() if n.startswith(start)}


def _of_optimizer(named: Mapping[str, Any]) -> dict[str, Any]:
  return {name: leaf for name, leaf in named.items() if not name.startswith(("params/", "ema/"))}


def _shape(leaf: Any) -> workdir_lib.Shape:
  return np.dtype(leaf.dtype).name, list(leaf.shape)


def _size(num_bytes: int) -> str:
  return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 120 else text[:117] + "..."


def is_worth_logging(record: logging.LogRecord) -> bool:
  """False for tracebacks of Orbax's threads, which raise here, and for replaced handlers."""
  overriding = re.search("Type handler registry|TypeHandlerRegistry", record.getMessage())
  return "orbax" not in record.pathname or not (record.exc_info or overriding)
