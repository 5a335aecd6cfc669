"""Fine-tunes PaliGemma: one config, one workdir. Rerun the same command to resume.

Config, workdir, data, evaluators and weights are checked, in this order, before the step is
compiled. SIGTERM and SIGINT save the run and end it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

from etils import epy

from pgjax import cache_dir, cli, disk
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  import jax

  from pgjax.checkpoints import checksums, initial, saver as saver_lib, tokenizers
  from pgjax.config import durations
  from pgjax.data import device_feed, pipeline
  from pgjax.distributed import mesh as mesh_lib, processes as processes_lib, sharding
  from pgjax.evaluation import evaluator as evaluator_lib
  from pgjax.models import paligemma
  from pgjax.params import of_model, table as param_table
  from pgjax.planning import flops, gpus, out_of_memory
  from pgjax.training import (
    ema,
    optimizer,
    run_log,
    state as train_state,
    step as step_lib,
    stochastic_rounding,
    summary as summary_lib,
  )
  from pgjax.visualization import batch as draw_batch

AGREE_STEPS = 10  # How often several processes agree on whether to stop.


def main(args: Any) -> None:
  """Trains, or resumes."""
  execute(args.config, args.workdir, shlex.join(["python", "-m", "pgjax.train", *sys.argv[1:]]))


def execute(
  config: Any, folder: str, again: str, *, whole_process: bool = True
) -> tuple[int, int, bool]:
  """Runs a checked config to its last checkpoint.

  again: the command to resume, for the last line. whole_process: the process is for this run only.
  Returns the last step, the total number of steps, and whether the run is finished.
  """
  cache_dir.use_compilation_cache()
  mesh = mesh_lib.start(config.mesh)
  workdir = disk.open_folder(folder, "--workdir", process_index=processes_lib.process_index())
  log = run_log.Log(workdir, main=processes_lib.is_main(), whole_process=whole_process)
  mesh_lib.check_batch_size(config.input.batch_size, mesh)
  mesh_lib.check_opt_state_memory(config.opt_state_memory, mesh)
  tokenizer = tokenizers.tokenizer_of_run(config)
  data = pipeline.train_batches(
    config,
    tokenizer,
    process_index=processes_lib.process_index(),
    process_count=processes_lib.process_count(),
  )
  sizes = dict(batch_size=config.input.batch_size, num_examples=data.num_examples)
  total_steps = durations.total_steps(config, data.num_examples)
  steps = functools.partial(durations.steps, config, total_steps=total_steps, **sizes)
  log_every = steps("log_training") or max(1, total_steps // 100)
  model = paligemma.Model(**config.model)
  trained = of_model.trained_shapes(model, config)
  stochastic_rounding.check(config, trained)
  tx = optimizer.make(config, total_steps, trained, num_examples=data.num_examples)
  abstract = train_state.abstract_state(model, tx, config, mesh)
  shardings = sharding.shardings_of(abstract.params)
  leaves = of_model.stored_params(model, config)
  every = evaluator_lib.training_intervals(config, total_steps, data.num_examples)
  evaluators = evaluator_lib.make(config, model, leaves, mesh, tokenizer, shardings, every)
  identity = identity_of(config, tokenizer, data.num_examples)
  saver = make_saver(config, workdir, tokenizer, identity, total_steps, steps, log)
  log_start(log, config, mesh, model, abstract, data, evaluators, total_steps)
  advice = out_of_memory.Advice(config, model, abstract, mesh)
  with advice:
    state, position = resume_or_init(config, model, tx, mesh, abstract, saver, log)
  first = next(data := data.at(position["step"]))
  log.say(summary_lib.example(first, tokenizer) + "\n")
  if position["step"] == 0 and processes_lib.is_main():
    log.say(draw_batch.draw_first_batch(first, tokenizer, workdir / "check", model))
  with advice:
    train_step = advice.program = compile_step(config, model, tx, mesh, abstract, first, log)
  log.start(
    position["step"],
    evaluated=position["evaluated"],
    total_steps=total_steps,
    every_steps=log_every,
    work=work_of(config, model, mesh),
  )
  feed = device_feed.to_device(itertools.chain([first], data), mesh)
  run = Run(config, mesh, workdir, tokenizer, total_steps, evaluators, saver, log, feed, train_step)
  with closing(log), closing(saver), closing(feed), Stop() as stop, advice:
    step, finished = fit(run, state, position, stop)
    saver.close()
    log.say(last_line(folder, step, finished, total_steps, stop, again))
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
    with self.log.aside():
      self.saver.save(step, state, self.position(step, evaluated=scores is not None), scores or {})

  def evaluate(self, step: int, state: Any, stop: Stop) -> dict[str, float] | None:
    """The scores of the evaluators that are due; None if interrupted."""
    return evaluator_lib.run_due(
      self.evaluators,
      step,
      ema.scored(state),
      total_steps=self.total_steps,
      mesh=self.mesh,
      tokenizer=self.tokenizer,
      log=self.log,
      workdir=self.workdir,
      stopping=stop.agreed,
    )


def fit(run: Run, state: Any, position: dict[str, Any], stop: Stop) -> tuple[int, bool]:
  """The loop. Returns the last step, which is saved, and whether the run is finished."""
  step, scores, measured = position["step"], {}, None
  if not position["evaluated"]:
    scores = run.evaluate(step, state, stop)
  while step < run.total_steps and not stop.agreed(step):
    with saved_if_broken(run, step, state):
      waited = run.feed.wait_seconds
      batch = next(run.feed)
      waited = run.feed.wait_seconds - waited
    if measured is not None and not measured["training_loss"].is_ready():
      waited = 0.0  # The device was still computing.
    state, measured = run.train_step(state, batch)
    step += 1
    run.log.step(step, measured, waited_seconds=waited)
    with saved_if_broken(run, step, state):
      scores = run.evaluate(step, state, stop)
    if scores is None or run.saver.due(step, scores):
      run.save(step, state, scores)
    run.saver.check()
  if step < run.total_steps:
    run.save(step, state, scores)
  return step, step == run.total_steps and scores is not None


@contextlib.contextmanager
def saved_if_broken(run: Run, step: int, state: Any) -> Iterator[None]:
  """Saves the run when an example is broken or an evaluation cannot be written, then raises."""
  try:
    yield
  except UserError:
    if step and processes_lib.process_count() == 1:  # Other processes do not know of the error.
      run.save(step, state, None)
    raise


class Stop:
  """Whether a SIGTERM or SIGINT (Ctrl-C) asked this run to end."""

  def __init__(self):
    self.signal: int | None = None
    self._agreed = False

  def __enter__(self):
    """Installs the handlers, which Python allows only in the main thread."""
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if main else ()
    self._before = {number: signal.signal(number, self._take) for number in numbers}
    return self

  def __exit__(self, *_):
    """Restores the previous handlers."""
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _take(self, number, frame):
    if self.signal is not None:  # The second signal ends the run at once.
      raise KeyboardInterrupt
    self.signal = number

  def agreed(self, step: int = 0) -> bool:
    """The same answer on all processes; all of them must call it at the same steps."""
    if processes_lib.process_count() == 1:
      return self.signal is not None
    if not self._agreed and step % AGREE_STEPS == 0:
      self._agreed = any(processes_lib.gather_objects(self.signal is not None))
    return self._agreed


def make_saver(config, workdir, tokenizer, identity, total_steps, steps, log) -> saver_lib.Saver:
  """Saves the run every ckpt_steps."""
  every, keep = (steps(name, default=0) for name in ("ckpt", "keep_ckpt"))
  return saver_lib.Saver(
    workdir,
    plan=saver_lib.Plan(total_steps, every, keep, config.keep_last, config.keep_best),
    config=config.to_dict(),
    tokenizer=tokenizer.source,
    identity=identity,
    checksums=checksums.jitted_checksums(),
    say=log.say,
  )


def identity_of(config: Any, tokenizer: Any, num_examples: int) -> dict[str, Any]:
  """Everything that must be equal for a resumed run to get the same batches."""
  section = config.input.to_dict()
  identity = {f"config.input.{name}": section[name] for name in ("pp", "batch_size")}
  identity["config.input.data"] = _without_folders(section["data"])
  identity |= {f"config.{name}": config[name] for name in ("seed", "res", "text_len", "num_frames")}
  return identity | {"the number of examples": num_examples, "the tokenizer": tokenizer.sha256}


def _without_folders(data: Any) -> Any:
  """Without the locations of files, which may have been moved."""
  if not isinstance(data, dict):
    return data
  fields = {k: _without_folders(v) for k, v in data.items() if k not in ("root", "data_dir")}
  if "fname" in fields:
    fields["fname"] = pathlib.PurePath(fields["fname"]).name
  return fields


def log_start(log, config, mesh, model, abstract, data, evaluators, total_steps) -> None:
  """Logs a summary of the run and its parameters."""
  summary = summary_lib.summary(
    config,
    devices=mesh.devices.ravel(),
    mesh_shape=mesh.shape,
    total_steps=total_steps,
    num_examples=data.num_examples,
    num_processes=processes_lib.process_count(),
  )
  log.say(summary)
  log.say(summary_lib.scanned("training", data.scans))
  for evaluator in evaluators:
    log.say(summary_lib.scanned(evaluator.name, evaluator.batches.scans))
  log.say("\n" + param_table.table(abstract.params, of_model.stored_params(model, config)) + "\n")


def resume_or_init(config, model, tx, mesh, abstract, saver, log) -> tuple[Any, dict[str, Any]]:
  """The newest state in the workdir or an initial one, and the position in the data."""
  state, position = saver.latest(abstract)
  if state is not None:
    log.say(f"Resuming from step {position['step']}.")
    return state, position
  loaded = None
  if config.model_init:
    with log.waiting(f"Loading {config.model_init}"):
      leaves = of_model.stored_params(model, config)
      loaded = initial.load_initial(config.model_init, abstract.params, leaves)
  with log.waiting("Initializing the state"):
    state = jax.block_until_ready(train_state.init(model, tx, config, mesh, loaded))
  return state, dict(seed=config.seed, step=0, examples=0, evaluated=False)


def compile_step(config, model, tx, mesh, abstract, first, log) -> Callable:
  """The training step, compiled before the loop for batches like `first`."""
  batch_sharding, count = mesh_lib.batch_sharding(mesh), processes_lib.process_count()
  batch = {
    name: jax.ShapeDtypeStruct((count * len(a), *a.shape[1:]), a.dtype, sharding=batch_sharding)
    for name, a in first.items()
  }
  with log.waiting("Compiling the training step"):
    return step_lib.jitted(model, tx, config, mesh).lower(abstract, batch).compile()


def work_of(config: Any, model: Any, mesh: Any) -> run_log.Work:
  """Examples, tokens (of image and text) and FLOPs of a step."""
  images, batch_size = max(config.num_frames, 1), config.input.batch_size
  patch = model.img_config.patch_size
  tokens = images * (config.res // patch[0]) * (config.res // patch[1]) + config.text_len
  work = flops.of_step(config, model, of_model.stored_params(model, config))
  peak = gpus.peak_flops(list(mesh.devices.ravel()))
  return run_log.Work(batch_size, batch_size * tokens, work, peak)


def last_line(workdir, step, finished, total_steps, stop: Stop, again: str) -> str:
  """How the run ended, and how to resume it."""
  if finished:
    return f"Done: {step} steps, saved in {workdir}."
  name = signal.Signals(stop.signal).name if stop.signal else "a signal to another process"
  return f"Stopped by {name} after step {step} of {total_steps}, and saved. To resume:\n  {again}"


FLAGS = [cli.Flag("workdir", str, required=True, help="folder of the run; created if missing")]
CONFIG = "required"
EXAMPLES = [
  "python -m pgjax.train --config=configs/easyvqa.py --workdir=/tmp/easyvqa",
  "python -m pgjax.train --config=configs/chartqa.py:res=448 --workdir=w --config.lr=3e-6",
]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
