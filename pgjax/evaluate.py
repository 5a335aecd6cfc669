"""Scores a checkpoint on whole splits: predictions.jsonl, metrics.json and report.html in --out.

Config and tokenizer are those of the run. --config names another config, for other data, other
evaluators or weights without a run; --config.evals.x.y=... changes a field of either.
"""

from __future__ import annotations

if __name__ == "__main__":  # Before the imports below, which take a moment.
  from pgjax.distributed import signals

  signals.begin(
    "Stopped by {}; the same command goes on after the batches that were scored so far."
  )

import pathlib
import time
from typing import Any, TypedDict

from etils import epy

from pgjax import cache_dir, cli
from pgjax.checkpoints import resolve
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  from pgjax.checkpoints import (
    bucket_copy,
    bucket_view,
    source as source_lib,
    watchers,
    workdir as workdir_lib,
  )
  from pgjax.distributed import processes
  from pgjax.evaluation import quantizations, score_checkpoint
  from pgjax.formats import typed_json
  from pgjax.training import run_log

POLL_SECONDS = 10.0  # How often --watch looks for a new step.
FIRST_POLL_SECONDS = 0.5  # And for the workdir: a run waits only for evaluators it knows of.


def main(args: Any) -> None:
  """Scores one checkpoint, or with --watch each new step until the run has ended."""
  cache_dir.use_compilation_cache()
  args.quantize = None if args.quantize == "none" else args.quantize
  place = bucket_copy.writable(args.out, "--out")
  with place.synced():
    (watch if args.watch else once)(args, place.folder)


def once(args: Any, out: pathlib.Path) -> Any:
  """Scores one checkpoint; `args` are the flags of this command."""
  quantizations.ways(args.quantize)  # Reports a wrong one before a download.
  score_checkpoint.check_before_download(args)
  processes.join()
  source = source_lib.open_source(
    args.ckpt, args.step, args.base, ema=args.ema, weights=args.weights
  )
  source_lib.check_base(source, args.base)
  if listed := quantizations.ways(args.quantize):
    table = quantizations.compare(args, source, out, listed)
    return cli.say(table) if processes.is_main() else None
  return score_checkpoint.Scoring(args, source).score(source, out)


def watch(args: Any, out: pathlib.Path) -> None:
  """Scores each step of a workdir into OUT/step_N, once."""
  place = bucket_view.watched(args.ckpt)
  workdir = place.folder
  if args.step is not None:
    raise UserError("--watch scores each new step, so --step cannot be given with it.")
  if "," in (args.quantize or ""):
    raise UserError("--watch scores each step in one way, so --quantize takes one with it.")
  if args.base or args.weights:
    raise UserError("--watch takes the workdir of a run; --base and --weights are for other CKPTs.")
  if workdir.is_file() or (workdir / "run.json").exists():
    raise UserError(f"--watch takes the workdir of a run; --ckpt={args.ckpt} is something else.")
  processes.join()
  log, scoring = run_log.Log(None, main=processes.is_main()), None
  if not workdir.is_dir():
    log.say(f"Waiting for {workdir}")
  unreadable, refused = set(), set()
  while True:
    if reason := place.refreshed():
      if reason not in refused:
        log.say(f"{reason} It will be tried again.")
      refused.add(reason)
      time.sleep(POLL_SECONDS)
      continue
    steps = workdir_lib.steps(workdir)
    scored = {step for step in steps if is_scored(out / f"step_{step}", args)}
    if workdir.is_dir() and processes.is_main():
      _announce(place, out, scored | unreadable, log)
    todo = [step for step in steps if step not in scored | unreadable]
    todo, ended = processes.gather_objects((todo, not todo and _has_ended(workdir, steps)))[0]
    if ended:
      return
    if not todo:
      time.sleep(POLL_SECONDS if workdir.is_dir() else FIRST_POLL_SECONDS)
      continue
    source, unread, reason = _opened(args, todo[0])
    if unread:
      if unread == "for now" and todo[0] not in refused:
        log.say(f"Step {todo[0]} will be tried again: {reason}")
      if unread == "for now":
        refused.add(todo[0])
        time.sleep(POLL_SECONDS)
      else:
        log.say(f"Step {todo[0]} cannot be read and is skipped: {reason}")
        unreadable.add(todo[0])
      continue
    if scoring is None or not scoring.fits(source):
      scoring = score_checkpoint.Scoring(args, source)
    try:
      scoring.score(source, out / f"step_{todo[0]}")
    except UserError:
      if todo[0] in workdir_lib.steps(workdir):
        raise
      log.say(f"Step {todo[0]} was removed by the run before it knew of this evaluator.")


def _opened(args: Any, step: int) -> tuple[Any, str, str]:
  """(source or None, "", "for now" or "for ever", why it is unread); agreed on by all processes."""
  source, unread, reason = None, "", ""
  try:
    source = source_lib.open_source(args.ckpt, step, ema=args.ema)
  except workdir_lib.UnreadableError as error:  # Perhaps for the moment.
    unread, reason = "for now", str(error)
  except UserError as error:
    unread, reason = "for ever", str(error)
  troubles = [each for each in processes.gather_objects((unread, reason)) if each[0]]
  return (source, *(max(troubles) if troubles else ("", "")))


def _has_ended(workdir: pathlib.Path, steps: list[int]) -> bool:
  """Whether the newest checkpoint is the last of its run."""
  if not steps:
    return False
  try:
    run = workdir_lib.read(workdir / workdir_lib.FOLDER / str(steps[-1]))
  except (workdir_lib.DamagedError, UserError):
    return False
  return run.step == run.position["total_steps"]


def _announce(place: Any, out: pathlib.Path, scored: set[int], log: Any) -> None:
  try:
    place.send(watchers.announce(place.folder, out, scored))
  except OSError as error:
    log.say(f"The run may delete steps before they are scored: {error}.")


class _About(TypedDict):
  flags: dict[str, Any]


class _Metrics(TypedDict):
  about: _About


def is_scored(out: pathlib.Path, args: Any) -> bool:
  """Whether the same command has finished here: metrics.json is written last."""
  try:
    metrics = typed_json.read(out / "metrics.json", _Metrics, nan=True)
  except UserError:
    return False
  return metrics["about"]["flags"] == score_checkpoint.result_flags(args)


FLAGS = [
  cli.Flag("ckpt", str, required=True, help=f"what to score; {resolve.ALLOWED}"),
  cli.Flag(
    "out", str, required=True, help="folder for the results; created if missing; or s3://, gs://"
  ),
  cli.Flag("evals", str, ".*", help="regular expression: which of config.evals to run"),
  cli.STEP,
  cli.BASE,
  cli.WEIGHTS,
  cli.EMA,
  cli.Flag("quantize", str, help="as int8 or nf4 (docs/lora.md); none,int8,nf4 compares them"),
  cli.Flag("watch", bool, False, help="score each new step of the workdir until the run ends"),
  cli.PEER_TIMEOUT,
]
CONFIG = "optional"
EXAMPLES = [
  "python -m pgjax.evaluate --ckpt=/tmp/easyvqa --out=/tmp/easyvqa/scores",
  "python -m pgjax.evaluate --ckpt=w --evals=test --out=o --config.evals.test.batch_size=64",
]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
