"""How much faster is scoring a split in batches than example by example?

  python benchmarks/evaluate.py --ckpt=WORKDIR [--evals=test] [--examples=300]

Both sides run the evaluator of a run's own config with the same compiled decode, warmed up. The
loop takes the first examples one at a time and waits for each answer, as programs around
model.generate do; the whole split is scored as in pgjax.evaluate. Answers of both must be equal.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pgjax.checkpoints import restore, source as source_lib
from pgjax.distributed import mesh as mesh_lib
from pgjax.evaluation import evaluator as evaluator_lib, score_checkpoint


def opened(args: argparse.Namespace, batch_size: int | None):
  """(scoring, its one evaluator, parameters)."""
  overrides = {} if batch_size is None else {f"evals.{args.evals}.batch_size": batch_size}
  flags = dict(evals=args.evals, ema=True, quantize=None, config=None, overrides=overrides)
  source = source_lib.open_source(args.ckpt)
  scoring = score_checkpoint.Scoring(argparse.Namespace(**flags, config_spec=None), source)
  params = restore.load(source, scoring.abstract, scoring.leaves)
  [evaluator] = scoring.evaluators
  return scoring, evaluator, params


def whole_split(args: argparse.Namespace) -> tuple[float, int, list[str]]:
  """(seconds, examples, answers)."""
  scoring, evaluator, params = opened(args, None)
  run = lambda: evaluator_lib.run(evaluator, params, mesh=scoring.mesh, tokenizer=scoring.tokenizer)  # noqa: E731
  first = next(iter(evaluator.batches))
  evaluator.compute(params, _on_device(first, scoring.mesh))
  began = time.perf_counter()
  result = run()
  seconds = time.perf_counter() - began
  return seconds, len(result.rows), [row["prediction"] for row in result.rows]


def one_by_one(args: argparse.Namespace) -> tuple[float, list[str]]:
  """(seconds of --examples, answers)."""
  scoring, evaluator, params = opened(args, 1)
  batches, answers, began = iter(evaluator.batches), [], None
  for batch in batches:
    tokens = evaluator.compute(params, _on_device(batch, scoring.mesh)).tokens
    answers.append(scoring.tokenizer.decode(np.asarray(tokens)[0]))
    if began is None:  # The first one was compiled.
      began = time.perf_counter()
    elif len(answers) > args.examples:
      return time.perf_counter() - began, answers
  return time.perf_counter() - began, answers


def _on_device(batch, mesh):
  return batch._replace(arrays=mesh_lib.global_batch(batch.arrays, mesh))


def main() -> None:
  """Prints both times and their ratio."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--ckpt", required=True)
  parser.add_argument("--evals", default="test")
  parser.add_argument("--examples", type=int, default=300, help="how many the loop takes")
  args = parser.parse_args()
  some_seconds, some = one_by_one(args)
  seconds, count, answers = whole_split(args)
  if some != answers[: len(some)]:
    raise SystemExit("The answers of the two differ.")
  loop = some_seconds / (len(some) - 1) * count
  result = dict(examples=count, seconds=seconds, loop_seconds=loop, times_faster=loop / seconds)
  print(json.dumps({name: round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
  main()
