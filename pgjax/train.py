"""Fine-tunes PaliGemma: one config, one workdir. Rerun the same command to resume.

Config, workdir, data, evaluators and weights are checked, in this order, before the step is
compiled. A signal such as SIGTERM or SIGINT saves the run and ends it with status 75.
"""

from __future__ import annotations

if __name__ == "__main__":  # Before the imports below, which take a moment.
  from pgjax.distributed import signals

  signals.begin(
    "Stopped by {} before training began; there was nothing to save. Run the same command again."
  )

import contextlib
import functools
import itertools
import shlex
import signal as signal_lib
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

from etils import epy

from pgjax import cache_dir, cli, disk
from pgjax.distributed import signals
from pgjax.distributed.signals import Stop
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  import jax

  from pgjax.checkpoints import (
    bucket_copy,
    bucket_files,
    checksums,
    first_state,
    initial,
    run_lock,
    same_run,
    saver as saver_lib,
    tokenizers,
    workdir as workdir_lib,
  )
  from pgjax.config import durations
  from pgjax.data import device_feed, pipeline, workers
  from pgjax.distributed import mesh as mesh_lib, mesh_notes, processes as processes_lib, sharding
  from pgjax.evaluation import evaluator as evaluator_lib, metric_names
  from pgjax.models import paligemma
  from pgjax.params import of_model, table as param_table
  from pgjax.planning import flops, mesh_choice, out_of_memory, remat_choice
  from pgjax.training import (
    attention_check,
    ema,
    optimizer,
    run_log,
    schedules,
    state as train_state,
    step as step_lib,
    stochastic_rounding,
    summary as summary_lib,
  )
  from pgjax.visualization import batch as draw_batch

LEARNS_NOTHING = (
  "The learning rate is 0 at every step (config.lr and config.schedule, whose warm-up begins at 0):"
  " this run learns nothing."
)


def main(args: Any) -> int:
  """Trains, or resumes; returns the exit status."""
  again = shlex.join(["python", "-m", "pgjax.train", *sys.argv[1:]])
  _, _, finished = execute(args.config, args.workdir, again)
  return 0 if finished else signals.STOPPED


def execute(
  config: Any, folder: str, again: str, *, whole_process: bool = True
) -> tuple[int, int, bool]:
  """Runs a checked config to its last checkpoint.

  again: the command to resume, for the last line. whole_process: the process is for this run only.
  Returns the last step, the total number of steps, and whether the run is finished.
  """
  cache_dir.use_compilation_cache()
  processes_lib.join()
  config = mesh_choice.resolved(config, jax.devices())
  mesh = mesh_lib.start(config.mesh)
  stop = signals.of_process() if whole_process else Stop()
  place = bucket_copy.writable(folder, "--workdir")
  workdir_lib.check_kinds(workdir := place.folder)
  log = run_log.Log(workdir, main=processes_lib.is_main(), whole_process=whole_process)
  with run_lock.held(workdir, log.say, stop) as lock:
    try:
      with place.synced():
        step, total_steps, finished = train(config, mesh, place, log, lock, stop)
    except bucket_files.NotUploadedError as error:
      if finished:
        raise
      log.say(f"{error}")  # And the exit status is still that of a stopped run.
    log.say(last_line(folder, step, finished, total_steps, stop, again))
  return step, total_steps, finished


def train(config, mesh, place, log, lock, stop: Stop) -> tuple[int, int, bool]:
  """Checks all inputs, loads, compiles, trains; returns as `execute`."""
  workdir = place.folder
  mesh_lib.check_batch_size(config.input.batch_size, mesh, microbatches=config.microbatches)
  mesh_lib.check_opt_state_memory(config.opt_state_memory, mesh)
  model = paligemma.Model(**config.model)
  for note in mesh_notes.notes(model, config, mesh):
    log.say(note)
  attention_check.check_asked(model, config, mesh)
  if not workdir_lib.steps(workdir) and initial.needs_download(config.model_init):
    pipeline.check_opens(config)  # A mistake in the data, before a tokenizer is downloaded.
  tokenizer = tokenizers.tokenizer_of_run(config)
  rows = mesh_lib.rows_of_process(mesh)
  data = pipeline.train_batches(
    config, tokenizer, process_index=rows.index, process_count=rows.count
  )
  sizes = dict(batch_size=config.input.batch_size, num_examples=data.num_examples)
  total_steps = durations.total_steps(config, data.num_examples)
  steps = functools.partial(durations.steps, config, total_steps=total_steps, **sizes)
  log_every = steps("log_training") or max(1, total_steps // 100)
  trained = of_model.trained_shapes(model, config)
  stochastic_rounding.check(config, trained)
  tx = optimizer.make(config, total_steps, trained, num_examples=data.num_examples)
  abstract = train_state.abstract_state(model, tx, config, mesh)
  shardings = sharding.shardings_of(abstract.params)
  leaves = of_model.stored_params(model, config)
  model = attention_check.checked(model, config, mesh, log)
  every = evaluator_lib.training_intervals(config, total_steps, data.num_examples)
  metric_names.check_keep_best(config, every)
  evaluators = evaluator_lib.make(config, model, leaves, mesh, tokenizer, shardings, every)
  for name in every:
    evaluator_lib.folder_of(workdir, name)
  identity = same_run.identity_of(config, tokenizer, data.num_examples)
  saver = make_saver(config, place, tokenizer, identity, total_steps, steps, log)
  log_start(log, config, mesh, model, abstract, data, evaluators, total_steps)
  idle = schedules.learns_nothing(config, total_steps, trained, data.num_examples)
  if idle:
    log.say(LEARNS_NOTHING)
  advice = out_of_memory.Advice(config, model, abstract, mesh)
  with advice:
    beginning = first_state.begin(config, model, abstract, saver, log, stop)
  position = beginning.position
  if position["step"] > total_steps or (position["step"] == total_steps and position["evaluated"]):
    saver.close()
    return position["step"], total_steps, True
  if position["step"] == 0:
    for note in tokenizers.notes_on_start(config, tokenizer):
      log.say(note)
  first = next(data := data.at(position["step"]))
  log.say(summary_lib.example(first, tokenizer) + "\n")
  if processes_lib.is_main():
    write_start(workdir, config, position, log, first, tokenizer, model)
  with advice:
    train_step = advice.program = compile_step(config, model, tx, mesh, abstract, first, log)
    state = first_state.completed(beginning, config, model, tx, mesh, log)
  log.start(
    position["step"],
    evaluated=position["evaluated"],
    total_steps=total_steps,
    every_steps=log_every,
    work=flops.work(config, model, mesh.devices.ravel()),
  )
  feed = device_feed.to_device(itertools.chain([first], data), mesh)
  constants = (config, mesh, workdir, tokenizer, total_steps, evaluators, saver, log, lock)
  run = Run(*constants, feed, train_step)
  with closing(log), closing(saver), closing(data), closing(feed), stop, advice:
    feed.interrupted = lambda: stop.signal is not None
    try:
      step, finished = fit(run, state, position, stop)
    except run_log.NotFiniteError as error:
      saver.close()
      raise UserError(f"{error} {saver.newest()}") from error
    saver.close()
  if idle:
    log.say(LEARNS_NOTHING)
  return step, total_steps, finished


class Run(NamedTuple):
  """The constants of the training loop."""

  config: Any
  mesh: Any
  workdir: Any
  tokenizer: Any
  total_steps: int
  evaluators: list[evaluator_lib.Evaluator]
  saver: saver_lib.Saver
  log: run_log.Log
  lock: run_lock.RunLock
  feed: device_feed.DeviceFeed
  train_step: Callable

  def position(self, step: int, *, evaluated: bool) -> dict[str, Any]:
    """The position in the data after `step`, and whether the evaluations there are done."""
    examples = step * self.config.input.batch_size
    where = dict(seed=self.config.seed, step=step, examples=examples)
    return where | dict(total_steps=self.total_steps, evaluated=evaluated)

  def save(self, step: int, state: Any, scores: dict[str, float] | None) -> None:
    """Saves; raises if a metric since the last fetch is not finite."""
    self.log.fetch()
    where = self.position(step, evaluated=scores is not None)
    planned = self.saver.due(step, scores or {})
    with self.log.aside():
      self.saver.save(step, state, where, scores or {}, planned=planned)

  def evaluate(
    self, step: int, state: Any, stopping: Callable[..., bool]
  ) -> dict[str, float] | None:
    """The scores of the evaluators that are due; None if interrupted."""
    scores = evaluator_lib.run_due(
      self.evaluators,
      step,
      ema.scored(state),
      total_steps=self.total_steps,
      mesh=self.mesh,
      tokenizer=self.tokenizer,
      log=self.log,
      workdir=self.workdir,
      stopping=stopping,
    )
    metric_names.check_measured(self.config, scores or {})
    return scores


def fit(run: Run, state: Any, position: dict[str, Any], stop: Stop) -> tuple[int, bool]:
  """The loop. Returns the last step, which is saved, and whether the run is finished."""
  step, scores, measured, stopping = position["step"], {}, None, processes_lib.Agreement(stop)
  if not position["evaluated"]:
    with saved_if_broken(run, step, state):
      scores = run.evaluate(step, state, stopping)
    if scores is not None:
      run.saver.add_scores(step, scores)
  while step < run.total_steps and scores is not None and not stopping(step):
    run.lock.check()
    with saved_if_broken(run, step, state):
      waited = run.feed.wait_seconds
      batch = next_batch(run.feed, stop)
      waited = run.feed.wait_seconds - waited
    if batch is None:
      break
    if measured is not None and not measured["training_loss"].is_ready():
      waited = 0.0  # The device was still computing.
    state, measured = run.train_step(state, batch)
    step += 1
    with saved_if_broken(run, step, state):
      run.log.step(step, measured, waited_seconds=waited)
      scores = run.evaluate(step, state, stopping)
    if scores is None or run.saver.due(step, scores):
      run.save(step, state, scores)
    run.saver.check()
  if step < run.total_steps:
    run.save(step, state, scores)
  return step, step == run.total_steps and scores is not None


def next_batch(feed: device_feed.DeviceFeed, stop: Stop) -> Any:
  """The next batch on the devices; None if a signal came meanwhile, to data workers too perhaps."""
  try:
    return next(feed, None)
  except workers.WorkerError:
    if stop.signal is not None and processes_lib.process_count() == 1:
      return None
    raise


@contextlib.contextmanager
def saved_if_broken(run: Run, step: int, state: Any) -> Iterator[None]:
  """Saves the run when an example is broken or results cannot be written, then raises."""
  try:
    yield
  except run_log.NotFiniteError:
    raise
  except UserError as error:
    if not step or (processes_lib.process_count() > 1 and not error.in_all_processes):
      raise  # Other processes do not know of the error.
    with contextlib.suppress(UserError):  # The first error is the cause of the second.
      run.save(step, state, None)
      run.saver.close()
    raise UserError(f"{error} {run.saver.newest()}") from error


def make_saver(config, place, tokenizer, identity, total_steps, steps, log) -> saver_lib.Saver:
  """Saves the run every ckpt_steps."""
  every, keep = (steps(name, default=0) for name in ("ckpt", "keep_ckpt"))
  return saver_lib.Saver(
    place.folder,
    fetch=place.fetch,
    plan=saver_lib.Plan(total_steps, every, keep, config.keep_last, config.keep_best),
    config=config.to_dict(),
    tokenizer=tokenizer.source,
    identity=identity,
    checksums=checksums.jitted_checksums(),
    say=log.say,
  )


def log_start(log, config, mesh, model, abstract, data, evaluators, total_steps) -> None:
  """Logs a summary of the run and its parameters."""
  summary = summary_lib.summary(
    config,
    devices=mesh.devices.ravel(),
    mesh_shape=mesh.shape,
    attention=attention_check.described(attention_check.choices(model, config, mesh)),
    total_steps=total_steps,
    num_examples=data.num_examples,
    num_processes=processes_lib.process_count(),
  )
  log.say(summary)
  log.say(summary_lib.scanned("training", data.scans))
  for evaluator in evaluators:
    log.say(summary_lib.scanned(evaluator.name, evaluator.batches.scans))
    for line in pipeline.differing_prompts(data.scans, evaluator.batches.scans):
      log.say(f"{evaluator.name}: {line}")
  log.say("\n" + param_table.table(abstract.params, of_model.stored_params(model, config)) + "\n")


def write_start(workdir, config, position, log, first, tokenizer, model) -> None:
  """Writes config.json, and at the start of a run pictures of the first examples."""
  with disk.disk_errors(workdir):
    disk.replace(workdir / "config.json", disk.dumps(disk.plain(config.to_dict())))
    if position["step"] == 0:
      log.say(draw_batch.draw_first_batch(first, tokenizer, workdir / "check", model))


def compile_step(config, model, tx, mesh, abstract, first, log) -> Callable:
  """The training step, compiled before the loop for batches like `first`."""
  batch_sharding, count = mesh_lib.batch_sharding(mesh), mesh_lib.rows_of_process(mesh).count
  batch = {
    name: jax.ShapeDtypeStruct((count * len(a), *a.shape[1:]), a.dtype, sharding=batch_sharding)
    for name, a in first.items()
  }

  def compiled(policy):
    with_policy = model.clone(remat=policy)
    return step_lib.jitted(with_policy, tx, config, mesh).lower(abstract, batch).compile()

  with log.waiting("Compiling the training step"):
    choice = remat_choice.for_devices(config, model, abstract, batch, mesh, compiled)
  if choice.why:
    log.say(choice.why)
  return choice.compiled


def last_line(workdir, step, finished, total_steps, stop: Stop, again: str) -> str:
  """How the run ended, and how to resume it."""
  if step > total_steps:
    return (
      f"The run in {workdir} is complete: its newest checkpoint is of step {step}, and this config"
      f" asks for {total_steps} steps."
    )
  if finished:
    return f"Done: {step} steps, saved in {workdir}."
  name = signal_lib.Signals(stop.signal).name if stop.signal else "a signal to another process"
  return f"Stopped by {name} after step {step} of {total_steps}, and saved. To resume:\n  {again}"


FLAGS = [
  cli.Flag(
    "workdir", str, required=True, help="folder of the run; created if missing; or s3://, gs://"
  ),
  cli.PEER_TIMEOUT,
]
CONFIG = "required"
EXAMPLES = [
  "python -m pgjax.train --config=configs/easyvqa.py --workdir=/tmp/easyvqa",
  "python -m pgjax.train --config=configs/chartqa.py:res=448 --workdir=w --config.lr=3e-6",
]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
