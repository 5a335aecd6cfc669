"""Scores a checkpoint on whole splits: predictions.jsonl, metrics.json and report.html in --out.

Config and tokenizer come from the checkpoint itself, where pgjax.train wrote it; --config names
another one, for other data, other evaluators or weights in another format, and
--config.evals.x.y=... changes a field of either.
"""

from __future__ import annotations

import pathlib
import time
from typing import Any

from etils import epy

from pgjax import cache_dir, cli, disk
from pgjax.checkpoints import resolve
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  import msgspec

  from pgjax.checkpoints import source as source_lib, watchers, workdir as workdir_lib
  from pgjax.distributed import processes
  from pgjax.evaluation import score_checkpoint
  from pgjax.formats import typed_json
  from pgjax.training import run_log

POLL_SECONDS = 10.0  # How often --watch looks for a new step.
FIRST_POLL_SECONDS = 0.5  # And for the workdir: the run keeps no step for somebody it has not seen.


def main(args: Any) -> None:
  """One checkpoint, or with --watch every step that appears, until the run has ended."""
  cache_dir.use_compilation_cache()
  out = disk.open_folder(args.out, "--out")
  if args.watch:
    watch(args, out)
  else:
    once(args, out)


def once(args: Any, out: pathlib.Path) -> dict[str, float]:
  """Scores one checkpoint; `args` are the flags of this command."""
  source = source_lib.open_source(args.ckpt, args.step, ema=args.ema)
  return score_checkpoint.Scoring(args, source).score(source, out)


def watch(args: Any, out: pathlib.Path) -> None:
  """Scores each step of a workdir once, in OUT/step_N; what is there already is not done again."""
  workdir = pathlib.Path(args.ckpt).expanduser().absolute()
  if args.step is not None:
    raise UserError("--watch scores every step that appears, so --step cannot be given with it.")
  if workdir.is_file() or (workdir / "run.json").exists():
    raise UserError(
      f"--watch takes the workdir of a run, and --ckpt={args.ckpt} is something else."
    )
  log, scoring = run_log.Log(None, main=True), None
  if not workdir.is_dir():
    log.say(f"Waiting for {workdir}")
  unreadable: set[int] = set()
  while True:
    steps = workdir_lib.steps(workdir)
    scored = {step for step in steps if is_scored(out / f"step_{step}", args)}
    if workdir.is_dir() and processes.is_main():
      _announce(workdir, out, scored | unreadable, log)
    todo = [step for step in steps if step not in scored | unreadable]
    todo, ended = processes.gather_objects((todo, not todo and _has_ended(workdir, steps)))[0]
    if ended:
      return
    if not todo:
      time.sleep(POLL_SECONDS if workdir.is_dir() else FIRST_POLL_SECONDS)
      continue
    try:
      source = source_lib.open_source(args.ckpt, todo[0], ema=args.ema)
    except UserError as error:
      log.say(f"Step {todo[0]} cannot be read and is left out: {error}")
      unreadable.add(todo[0])
      continue
    if scoring is None or not scoring.fits(source):
      scoring = score_checkpoint.Scoring(args, source)
    try:
      scoring.score(source, out / f"step_{todo[0]}")
    except UserError:
      if todo[0] in workdir_lib.steps(workdir):
        raise
      log.say(f"Step {todo[0]} was removed by the run before it knew that somebody waits for it.")


def _has_ended(workdir: pathlib.Path, steps: list[int]) -> bool:
  """Is the newest checkpoint the last of its run?"""
  if not steps:
    return False
  try:
    found = workdir_lib.read(workdir / workdir_lib.FOLDER / str(steps[-1]))
  except (workdir_lib.DamagedError, UserError):
    return False
  return found.step == found.position["total_steps"]


def _announce(workdir: pathlib.Path, out: pathlib.Path, scored: set[int], log: Any) -> None:
  try:
    watchers.announce(workdir, out, scored)
  except OSError as error:
    log.say(f"The run cannot be told to keep what is not scored yet: {error}.")


class _About(msgspec.Struct):
  flags: dict[str, Any]


class _Metrics(msgspec.Struct):
  about: _About


def is_scored(out: pathlib.Path, args: Any) -> bool:
  """Are there complete results of the same command? metrics.json is written last."""
  try:
    return typed_json.read(
      out / "metrics.json", _Metrics, nan=True
    ).about.flags == score_checkpoint.asked(args)
  except UserError:
    return False


FLAGS = [
  cli.Flag("ckpt", str, required=True, help=f"what to score; {resolve.ALLOWED}"),
  cli.Flag("out", str, required=True, help="folder for the results; made if it is not there"),
  cli.Flag("evals", str, ".*", help="regular expression: which of config.evals to run"),
  cli.Flag("step", int, help="which step of the workdir; without it the newest"),
  cli.Flag("ema", bool, True, help="score a run's averages, if it kept them (config.ema_decay)"),
  cli.Flag("quantize", str, help="keep the matrices in int8 or nf4: see docs/lora.md"),
  cli.Flag("watch", bool, False, help="score each new step of the workdir until the run ends"),
]
CONFIG = "optional"
EXAMPLES = [
  "python -m pgjax.evaluate --ckpt=/tmp/easyvqa --out=/tmp/easyvqa/scores",
  "python -m pgjax.evaluate --ckpt=w --evals=test --out=o --config.evals.test.batch_size=64",
]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
