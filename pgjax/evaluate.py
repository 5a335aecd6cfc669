"""Scores a checkpoint on whole splits: predictions.jsonl, metrics.json and report.html in --out.

Config and tokenizer come from the checkpoint itself, where pgjax.train wrote it; --config names
another one, for other data, other evaluators or weights in another format, and
--config.evals.x.y=... changes a field of either.
"""

import json
import pathlib
import time
from typing import Any

import jax
import optax

from pgjax import (
  checkpoint_params,
  ckpt,
  cli,
  evals,
  loading,
  metric_log,
  named,
  report,
  runs,
  sharding,
)
from pgjax import config as config_lib
from pgjax import step as step_lib
from pgjax.data import tokenizer as tokenizer_lib
from pgjax.errors import UserError
from pgjax.models import paligemma

POLL_SECONDS = 10.0  # How often --watch looks for a new step.


def main(args: Any) -> None:
  """One checkpoint, or with --watch every step that appears, until the run has ended."""
  out = runs.open_folder(args.out, "--out")
  if not args.watch:
    score(args, ckpt.open_source(args.ckpt, args.step, ema=args.ema), out)
    return
  if args.step is not None:
    raise UserError("--watch scores every step that appears, so --step cannot be given with it.")
  done: set[int] = set()
  while True:
    for step in [s for s in runs.steps(args.ckpt) if s not in done]:
      source = ckpt.open_source(args.ckpt, step, ema=args.ema)
      score(args, source, out / f"step_{step}")
      done.add(step)
      if step == source.run.position["total_steps"]:
        return
    time.sleep(POLL_SECONDS)


def score(args: Any, source: ckpt.Source, out: pathlib.Path) -> None:
  """All evaluators that --evals matches, on the parameters of one checkpoint."""
  config = args.config or saved_config(source, args.overrides)
  if source.run and "params" in source.run.config:  # How its leaves are kept is the run's to say.
    with config.unlocked():
      config.params = source.run.config["params"]
  mesh = sharding.start(config.mesh)
  log = metric_log.Log(None, main=sharding.is_main())
  tokenizer = (
    tokenizer_lib.Tokenizer(source.tokenizer, str(source.path))
    if source.tokenizer is not None
    else tokenizer_lib.load(config.tokenizer)
  )
  model = paligemma.Model(**config.model)
  abstract = abstract_params(model, config, mesh, source)
  places = step_lib.shardings_of(abstract)
  evaluators = evals.make(
    config, model, mesh, tokenizer, places, evals.matching(config, args.evals)
  )
  for note in source.notes:
    log.say(note)
  log.say(f"Scoring {source.path} on {mesh.size} x {mesh.devices.flat[0]}")
  with log.waiting("Loading the parameters"):
    params = restored(source, abstract, step_lib.leaves_of(model, config))
  scores, rows, pictures = {}, {}, {}
  for evaluator in evaluators:
    pictures[evaluator.name] = album = Album(evaluator)
    with log.waiting(f"Evaluating {evaluator.name}, {evaluator.batches.num_examples:,} examples"):
      result = evals.run(evaluator, params, mesh=mesh, tokenizer=tokenizer, seen=album.take)
    scores, rows[evaluator.name] = scores | result.scores, result.rows
  log.say("\n".join(f"{name} = {value:.6g}" for name, value in scores.items()))
  if sharding.is_main():
    write(
      out, source, config, scores, rows, {name: album.pictures for name, album in pictures.items()}
    )
  log.say(f"Written to {out}: metrics.json, predictions.jsonl, report.html")


def saved_config(source: ckpt.Source, overrides: Any) -> Any:
  """The config that a checkpoint of pgjax.train was saved with."""
  saved = source.run.config if source.run else {}
  if "evals" not in saved:
    raise UserError(
      f"--ckpt={source.name} holds weights without a config that says what to score: give --config."
    )
  return config_lib.validated(config_lib.overridden(config_lib.from_dict(saved), overrides))


def restored(source: ckpt.Source, abstract: Any, leaves: Any) -> Any:
  """The parameters on the mesh."""
  if source.run:
    checksums = step_lib.jitted_checksums()
    return checkpoint_params.restore_params(
      source.run, abstract, checksums, averages=source.averages
    )
  return loading.load(source.leaves, abstract, leaves, source.name, source.adapters)


class Album:
  """Small pictures of the first examples of a split, by their position in it."""

  def __init__(self, evaluator: evals.Evaluator):
    """Empty."""
    self.pictures: dict[int, str] = {}
    self._start, self._batch_size = 0, evaluator.section.batch_size

  def take(self, batch: Any) -> None:
    """Process 0 holds the first rows of each batch."""
    if self._start < report.EXAMPLES and sharding.is_main():
      images = sharding.local_rows(batch.arrays["image"])
      for i in range(min(len(batch.rows), report.EXAMPLES - self._start)):
        self.pictures[self._start + i] = report.picture(images[i])
    self._start += self._batch_size


def abstract_params(model: Any, config: Any, mesh: Any, source: ckpt.Source) -> Any:
  """Shapes and shardings for this mesh, with the dtypes that the checkpoint has.

  A leaf into which an adapter is folded is float32, as the sum is.
  """
  params = step_lib.abstract_state(model, optax.identity(), config, mesh).params
  rules = step_lib.rules(model, config)
  folded = {name for name in source.adapters if rules[name].kind != "lora"}

  def as_stored(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    dtype = "float32" if name in folded else source.leaves.get(name, leaf).dtype
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

  return jax.tree_util.tree_map_with_path(as_stored, params)


def write(out: pathlib.Path, source: ckpt.Source, config, scores, rows, pictures) -> None:
  """The three files; a row of predictions.jsonl also says which evaluator it is of."""
  step = source.run.step if source.run else 0
  facts = dict(checkpoint=str(source.path), step=step, averages=source.averages)
  together = [dict(eval=name) | row for name, of_one in rows.items() for row in of_one]
  evals.write(out, facts | scores, together)
  with metric_log.disk_errors(out):
    title = f"pgjax: step {step}" if step else f"pgjax: {source.path.name}"
    (out / "report.html").write_text(report.page(title, facts, scores, rows, pictures))
    (out / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")


FLAGS = [
  cli.Flag("ckpt", str, required=True, help=f"what to score; {named.ALLOWED}"),
  cli.Flag("out", str, required=True, help="folder for the results; made if it is not there"),
  cli.Flag("evals", str, ".*", help="regular expression: which of config.evals to run"),
  cli.Flag("step", int, help="which step of the workdir; without it the newest"),
  cli.Flag("ema", bool, True, help="score a run's averages, if it kept them (config.ema_decay)"),
  cli.Flag("watch", bool, False, help="score each new step of the workdir until the run ends"),
]
CONFIG = "optional"
EXAMPLES = [
  "python -m pgjax.evaluate --ckpt=/tmp/easyvqa --out=/tmp/easyvqa/scores",
  "python -m pgjax.evaluate --ckpt=w --evals=test --out=o --config.evals.test.batch_size=64",
]

if __name__ == "__main__":
  metric_log.use_compilation_cache()
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
