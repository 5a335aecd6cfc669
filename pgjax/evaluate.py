"""Scores a checkpoint on whole splits: predictions.jsonl, metrics.json and report.html in --out.

Config and tokenizer come from the checkpoint itself, where pgjax.train wrote it; --config names
another one, for other data, other evaluators or weights in another format, and
--config.evals.x.y=... changes a field of either.
"""

import hashlib
import importlib.metadata
import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import optax

import pgjax
from pgjax import cache_dir, cli, disk, evals, journal, report
from pgjax.checkpoints import checksums as checksums_lib
from pgjax.checkpoints import frozen_spec, orbax_params, resolve, watchers
from pgjax.checkpoints import load as load_params
from pgjax.checkpoints import source as source_lib
from pgjax.checkpoints import workdir as workdir_lib
from pgjax.config import load as config_load
from pgjax.config import validate as config_validate
from pgjax.data import tokenizer as tokenizer_lib
from pgjax.distributed import mesh as mesh_lib
from pgjax.distributed import processes, sharding
from pgjax.errors import UserError
from pgjax.models import paligemma
from pgjax.params import of_model
from pgjax.params import tree as param_tree
from pgjax.training import run_log
from pgjax.training import state as train_state

POLL_SECONDS = 10.0  # How often --watch looks for a new step.
FIRST_POLL_SECONDS = 0.5  # And for the workdir: the run keeps no step for somebody it has not seen.


def main(args: Any) -> None:
  """One checkpoint, or with --watch every step that appears, until the run has ended."""
  out = disk.open_folder(args.out, "--out")
  if args.watch:
    watch(args, out)
  else:
    source = source_lib.open_source(args.ckpt, args.step, ema=args.ema)
    Scoring(args, source).score(source, out)


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
      scoring = Scoring(args, source)
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
  except workdir_lib.DamagedError:
    return False
  return found.step == found.position["total_steps"]


def _announce(workdir: pathlib.Path, out: pathlib.Path, scored: set[int], log: Any) -> None:
  try:
    watchers.announce(workdir, out, scored)
  except OSError as error:
    log.say(f"The run cannot be told to keep what is not scored yet: {error}.")


def is_scored(out: pathlib.Path, args: Any) -> bool:
  """Are there complete results of the same command? metrics.json is written last."""
  try:
    return json.loads((out / "metrics.json").read_text())["about"]["flags"] == asked(args)
  except (OSError, ValueError, KeyError, TypeError):
    return False


def asked(args: Any) -> dict[str, Any]:
  """What decides the results of a checkpoint, as it was written."""
  return dict(
    evals=args.evals,
    ema=args.ema,
    quantize=args.quantize,
    config=args.config_spec,
    overrides=dict(args.overrides),
  )


class Scoring:
  """All that several checkpoints of a run have in common: data, mesh, compiled programs."""

  def __init__(self, args: Any, source: source_lib.Source):
    """Everything that can be wrong is told here, before parameters are read."""
    self.args, self.log = args, run_log.Log(None, main=processes.is_main())
    self.config = config = args.config or saved_config(source, args.overrides)
    as_run = source.run and "params" in source.run.config
    with config.unlocked():
      if args.quantize:
        config.params = frozen_spec.frozen_rules(source, args.quantize)
      elif as_run:  # How its leaves are kept the run says.
        config.params = source.run.config["params"]
    self.mesh = mesh_lib.start(config.mesh)
    self.tokenizer = (
      tokenizer_lib.Tokenizer(source.tokenizer, str(source.path))
      if source.tokenizer is not None
      else tokenizer_lib.load(config.tokenizer)
    )
    self.model = paligemma.Model(**config.model)
    self.abstract = (
      train_state.abstract_state(self.model, optax.identity(), config, self.mesh).params
      if args.quantize
      else abstract_params(self.model, config, self.mesh, source)
    )
    self.evaluators = evals.make(
      config,
      self.model,
      self.mesh,
      self.tokenizer,
      sharding.shardings_of(self.abstract),
      evals.matching(config, args.evals),
    )
    self._of = _what_matters(source)

  def fits(self, source: source_lib.Source) -> bool:
    """Is this another step of the same run, with the same settings?"""
    return _what_matters(source) == self._of

  def score(self, source: source_lib.Source, out: pathlib.Path) -> None:
    """All evaluators that --evals matches, on the parameters of one checkpoint."""
    out.mkdir(exist_ok=True)
    for note in source.notes:
      self.log.say(note)
    self.log.say(f"Scoring {source.path} on {self.mesh.size} x {self.mesh.devices.flat[0]}")
    with self.log.waiting("Loading the parameters"):
      leaves = of_model.stored_params(self.model, self.config)
      params = restored(source, self.abstract, leaves, converted=self.args.quantize)
    about = facts(self, source, params)
    results, journals = {}, []
    for evaluator in self.evaluators:
      name = evaluator.name
      same = {n: about[n] for n in ("checkpoint", "config_sha256", "tokenizer_sha256")}
      journals.append(journal.Journal(out, name, same | about["evals"][name]))
      if done := len(journals[-1].batches):
        self.log.say(f"{name}: {done} of {len(evaluator.batches)} batches were scored before.")
      began = time.monotonic()
      with self.log.waiting(f"Evaluating {name}, {evaluator.batches.num_examples:,} examples"):
        results[name] = evals.run(
          evaluator,
          params,
          mesh=self.mesh,
          tokenizer=self.tokenizer,
          journal=journals[-1],
        )
      about["evals"][name] |= dict(
        data_sha256=results[name].data_sha256,
        first_prompt=results[name].rows[0]["prompt"],
        seconds=round(time.monotonic() - began, 3),
      )
    scores = {name: value for result in results.values() for name, value in result.scores.items()}
    self.log.say("\n".join(f"{name} = {value:.6g}" for name, value in scores.items()))
    if processes.is_main():
      self._append_to_run(source, scores)
      write(self, out, source, about, scores, results)
    for each in journals:
      each.close(finished=True)
    self.log.say(f"Written to {out}: metrics.json, predictions.jsonl, report.html")

  def _append_to_run(self, source: source_lib.Source, scores: Mapping[str, float]) -> None:
    """To the TensorBoard of the run, if this is a checkpoint in its workdir."""
    if source.run and source.run.path.parent.name == workdir_lib.FOLDER:
      try:
        run_log.append_scores(source.run.path.parents[1], source.run.step, scores)
      except OSError as error:
        self.log.say(f"The run's TensorBoard does not get the scores: {error}.")


def _what_matters(source: source_lib.Source) -> Any:
  return source.run and (source.run.config, source.run.shapes, source.averages)


def facts(scoring: Scoring, source: source_lib.Source, params: Any) -> dict[str, Any]:
  """What the scores were made of, for metrics.json; the same facts, the same scores."""
  config = disk.plain(scoring.config.to_dict())
  sums = jax.device_get(checksums_lib.jitted_checksums()(param_tree.flatten(params)))
  return dict(
    flags=asked(scoring.args),
    checkpoint=dict(
      path=str(source.path),
      step=source.run.step if source.run else 0,
      averages=source.averages,
      sha256=_sha256({name: int(value) for name, value in sums.items()}),
    ),
    config_sha256=_sha256(config),
    tokenizer_sha256=scoring.tokenizer.sha256,
    evals={
      evaluator.name: dict(
        decode=evaluator.section.decode or scoring.config.decode,
        grammar=evaluator.section.grammar,
        max_decode_len=evaluator.section.max_decode_len,
        dtype=scoring.config.dtype,
        cache_dtype=scoring.model.llm_config.cache_dtype or scoring.config.dtype,
        seed=scoring.config.seed,
        config_sha256=_sha256(config["evals"][evaluator.name]),
        examples=evaluator.batches.num_examples,
        batch_size=evaluator.section.batch_size,
      )
      for evaluator in scoring.evaluators
    },
    versions=versions(),
  )


def versions() -> dict[str, str]:
  """Of the software, and what it ran on."""
  names = ("jax", "jaxlib", "flax", "numpy", "pillow", "sentencepiece", "grain")
  found = {name: importlib.metadata.version(name) for name in names}
  return dict(
    found,
    pgjax=pgjax.__version__,
    python=sys.version.split()[0],
    device=jax.devices()[0].device_kind,
  )


def _sha256(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def saved_config(source: source_lib.Source, overrides: Any) -> Any:
  """The config that a checkpoint of pgjax.train was saved with."""
  saved = source.run.config if source.run else {}
  if "evals" not in saved:
    raise UserError(
      f"--ckpt={source.name} holds weights without a config that says what to score: give --config."
    )
  return config_validate.validated(config_load.overridden(config_load.from_dict(saved), overrides))


def restored(
  source: source_lib.Source, abstract: Any, leaves: Any, *, converted: Any = None
) -> Any:
  """The parameters on the mesh; `converted`: not kept as in the checkpoint."""
  if source.run and not converted:
    checksums = checksums_lib.jitted_checksums()
    return orbax_params.restore_params(source.run, abstract, checksums, averages=source.averages)
  return load_params.load(source.leaves, abstract, leaves, source.name, source.adapters)


def abstract_params(model: Any, config: Any, mesh: Any, source: source_lib.Source) -> Any:
  """Shapes and shardings for this mesh, with the dtypes that the checkpoint has.

  A leaf into which an adapter is folded is float32, as the sum is.
  """
  params = train_state.abstract_state(model, optax.identity(), config, mesh).params
  rules = of_model.rules(model, config)
  folded = {name for name in source.adapters if rules[name].kind != "lora"}

  def as_stored(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    dtype = "float32" if name in folded else source.leaves.get(name, leaf).dtype
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

  return jax.tree_util.tree_map_with_path(as_stored, params)


def write(scoring: Scoring, out, source, about, scores, results) -> None:
  """The files of one checkpoint; metrics.json, which says that all is there, comes last."""
  step = about["checkpoint"]["step"]
  seen = dict(checkpoint=about["checkpoint"]["path"], step=step, averages=source.averages)
  splits = [
    report.Split(
      e.name,
      results[e.name].rows,
      results[e.name].parts,
      e.batches.image,
      e.section.mask_weights,
    )
    for e in scoring.evaluators
  ]
  published = {
    f"{e.name}/{score}": mean
    for e in scoring.evaluators
    for score, mean in e.section.published.items()
  }
  with disk.disk_errors(out):
    title = f"pgjax: step {step}" if step else f"pgjax: {source.path.name}"
    (out / "report.html").write_text(report.page(title, seen, scores, splits, paper=published))
    (out / "config.json").write_text(json.dumps(scoring.config.to_dict(), indent=1) + "\n")
  together = [dict(eval=split.name) | row for split in splits for row in split.rows]
  evals.write(out, seen | scores | dict(published=published, about=about), together)


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
  cache_dir.use_compilation_cache()
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
