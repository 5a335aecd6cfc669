"""How is one checkpoint scored? All evaluators run on it, and their results are written."""

import hashlib
import importlib.metadata
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import pgjax
from pgjax import disk
from pgjax.checkpoints import (
  checksums,
  load as load_params,
  restore,
  run_lock,
  source as source_lib,
  workdir as workdir_lib,
)
from pgjax.config import load as config_load, validate as config_validate
from pgjax.data import pipeline
from pgjax.distributed import mesh, mesh_notes, processes, sharding, signals
from pgjax.errors import UserError, naming
from pgjax.evaluation import evaluator as evaluator_lib, journal, report, report_split
from pgjax.huggingface import image_config
from pgjax.models import paligemma
from pgjax.params import tree as param_tree
from pgjax.planning import mesh_choice
from pgjax.training import attention_check, run_log

_NO_CONFIG = (
  "--ckpt={} has weights but no config that says what to score: give --config (a run.json has it in"
  " config.evals)."
)


def result_flags(args: Any) -> dict[str, Any]:
  """The flags that decide the results, as given."""
  chosen = {name: getattr(args, name, None) for name in ("base", "weights")}
  return {name: value for name, value in chosen.items() if value} | dict(
    evals=args.evals,
    ema=args.ema,
    quantize=args.quantize,
    config=args.config_spec,
    overrides=dict(args.overrides),
  )


def check_before_download(args: Any) -> None:
  """Opens the data of the config, if the checkpoint still has to be downloaded."""
  if not source_lib.needs_download(args.ckpt, getattr(args, "base", None)):
    return
  if args.config is None:
    raise UserError(_NO_CONFIG.format(args.ckpt))
  for name in evaluator_lib.matching(args.config, args.evals):
    section = args.config.evals[name]
    with naming(f"config.evals[{name!r}]"):
      pipeline.parts(section.data, check_images=False)


class Scoring:
  """What several checkpoints of a run share: data, mesh, compiled programs."""

  def __init__(self, args: Any, source: source_lib.Source):
    """Reports bad inputs, before weights load."""
    self.args, self.log = args, run_log.Log(None, main=processes.is_main())
    config = args.config or saved_config(source, args.overrides)
    if source.run and "params" in source.run.config:  # The run's own, not those of --config.
      with config.unlocked():
        config.params = source.run.config["params"]
    is_own = args.config is None and "mesh" not in (args.overrides or ())
    config, self.mesh = _on_mesh(config, args.evals, is_own, self.log)
    self.config = config
    self.tokenizer = restore.tokenizer_of(source, config)
    model = paligemma.Model(**config.model)
    self.model = attention_check.checked_forward(model, config, self.mesh, self.log.say)
    self.leaves = restore.leaves_of(source, self.model, config, args.quantize)
    self.abstract = load_params.abstract_params(self.leaves, config, self.mesh)
    places = sharding.shardings_of(self.abstract)
    every = evaluator_lib.matching(config, args.evals)
    self.evaluators = evaluator_lib.make(
      config, self.model, self.leaves, self.mesh, self.tokenizer, places, every
    )
    self.results: dict[str, evaluator_lib.Result] = {}  # Of the last `score`, by evaluator.
    self._run = _run_of(source)

  def fits(self, source: source_lib.Source) -> bool:
    """Is this another step of the same run, with the same settings?"""
    return _run_of(source) == self._run

  def score(self, source: source_lib.Source, out: pathlib.Path) -> dict[str, float]:
    """Runs all evaluators that --evals matches on one checkpoint; `out` is for this one only."""
    with disk.disk_errors(out):
      out.mkdir(exist_ok=True)
    with run_lock.held(out, self.log.say, signals.of_process(), run_lock.EVALUATION):
      return self._score(source, out)

  def _score(self, source: source_lib.Source, out: pathlib.Path) -> dict[str, float]:
    for note in [*source.notes, *self._notes_on_images(source)]:
      self.log.say(note)
    self.log.say(f"Scoring {source.path} on {self.mesh.size} x {self.mesh.devices.flat[0]}")
    with self.log.waiting("Loading the parameters"):
      params = restore.load(source, self.abstract, self.leaves)
    about = facts(self, source, params)
    results, journals = {}, []
    for evaluator in self.evaluators:
      name = evaluator.name
      same = {n: about[n] for n in ("checkpoint", "config_sha256", "tokenizer_sha256")}
      order = dict(order_sha256=evaluator.batches.order.sha256())
      journals.append(journal.Journal(out, name, same | about["evals"][name] | order))
      if done := len(journals[-1].batches):
        self.log.say(f"{name}: {done} of {len(evaluator.batches)} batches were scored before.")
      began = time.monotonic()
      with self.log.waiting(f"Evaluating {name}, {evaluator.batches.num_examples:,} examples"):
        results[name] = evaluator_lib.run(
          evaluator, params, mesh=self.mesh, tokenizer=self.tokenizer, journal=journals[-1]
        )
      about["evals"][name] |= dict(
        data_sha256=results[name].data_sha256,
        first_prompt=results[name].rows[0]["prompt"],
        seconds=round(time.monotonic() - began, 3),
      )
    self.results = results
    scores = {name: value for result in results.values() for name, value in result.scores.items()}
    self.log.say("\n".join(f"{name} = {value:.6g}" for name, value in scores.items()))
    if processes.is_main():
      self._append_to_run(source, scores)
      write(self, out, source, about, scores, results)
    for unfinished in journals:
      unfinished.close(finished=True)
    self.log.say(f"Written to {out}: metrics.json, predictions.jsonl, report.html")
    return scores

  def _notes_on_images(self, source: source_lib.Source) -> list[str]:
    """How the evaluators' images differ from those of a Hugging Face folder."""
    if source.kind not in ("hf", "peft"):
      return []
    return image_config.differences(source.images, [e.section.pp for e in self.evaluators])

  def _append_to_run(self, source: source_lib.Source, scores: Mapping[str, float]) -> None:
    """Adds the scores to the run's TensorBoard, if the checkpoint is in its workdir."""
    if source.run and source.run.path.parent.name == workdir_lib.FOLDER:
      try:
        run_log.append_scores(source.run.path.parents[1], source.run.step, scores)
      except OSError as error:
        self.log.say(f"The scores are not added to the run's TensorBoard: {error}.")


def _on_mesh(config: Any, evals: str, is_own: bool, log: run_log.Log) -> tuple[Any, Any]:
  """(config with its mesh, the mesh); a run's own mesh gives way where it does not fit."""
  processes.join()
  config = mesh_choice.resolved(config, jax.devices())
  try:
    devices = mesh.start(config.mesh)
    for name in evaluator_lib.matching(config, evals):
      size = config.evals[name].batch_size
      mesh.check_batch_size(size, devices, f"config.evals.{name}.batch_size")
  except UserError as error:
    if not is_own:
      raise
    log.say(f"The run's mesh does not suit this evaluation ({error}); all devices split batches.")
    default = config_load.from_dict(dict(input={}, evals={}))
    fields = {name: default[name] for name in ("mesh", "sharding_strategy")}
    config = config_load.overridden(config, fields)
    devices = mesh.start(config.mesh)
  for note in mesh_notes.notes(paligemma.Model(**config.model), config, devices):
    log.say(note)
  return config, devices


def _run_of(source: source_lib.Source) -> Any:
  return source.run and (source.run.config, source.run.shapes, source.averages)


def facts(scoring: Scoring, source: source_lib.Source, params: Any) -> dict[str, Any]:
  """What determines the scores, for metrics.json: equal facts mean equal scores."""
  config = disk.plain(scoring.config.to_dict())
  sums = jax.device_get(checksums.jitted_checksums()(param_tree.flatten(params)))
  return dict(
    flags=result_flags(scoring.args),
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
  """Versions of the software, and the kind of device."""
  names = ("jax", "jaxlib", "flax", "numpy", "pillow", "sentencepiece", "grain")
  packages = {name: importlib.metadata.version(name) for name in names}
  python, device = sys.version.split()[0], jax.devices()[0].device_kind
  return dict(packages, pgjax=pgjax.__version__, python=python, device=device)


def _sha256(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def saved_config(source: source_lib.Source, overrides: Any) -> Any:
  """The config that a checkpoint of pgjax.train was saved with, with overrides applied."""
  saved = source.run.config if source.run else {}
  if "evals" not in saved:
    raise UserError(_NO_CONFIG.format(source.name))
  with naming(source.run.path / "run.json"):
    config = config_validate.validated(config_load.from_dict(saved))
  if not overrides:
    return config
  return config_validate.validated(config_load.overridden(config, overrides))


def write(scoring: Scoring, out, source, about, scores, results) -> None:
  """Writes the files of one checkpoint; metrics.json comes last, as the sign of completeness."""
  path, step = about["checkpoint"]["path"], about["checkpoint"]["step"]
  shown = {"checkpoint": path, "step": step, "EMA weights": "yes" if source.averages else "no"}
  shown["config"] = scoring.args.config_spec or "that of the run"
  shown["scored"] = time.strftime("%Y-%m-%d %H:%M %Z")
  splits, published = [], {}
  for e in scoring.evaluators:
    result, image, weights = results[e.name], e.batches.image, e.section.mask_weights
    said = dict(data=described(e.section.data), decoding=_decoding(e, scoring.config))
    split = (e.name, result.rows, result.parts, image, weights, e.section.type, said)
    splits.append(report_split.Split(*split))
    published |= {f"{e.name}/{score}": value for score, value in e.section.published.items()}
  with disk.disk_errors(out):
    title = title_of(source, [e.name for e in scoring.evaluators])
    page = report.page(title, shown, scores, splits, paper=published)
    disk.replace(out / "report.html", page)
    disk.replace(out / "config.json", disk.dumps(scoring.config.to_dict()))
  for e in scoring.evaluators:
    folder = disk.inside(out / "submissions", e.name, "The evaluator")
    evaluator_lib.write_submission(folder, e.section, results[e.name].rows)
  rows = [dict(eval=split.name) | row for split in splits for row in split.rows]
  metrics = dict(checkpoint=path, step=step, averages=source.averages, **scores)
  evaluator_lib.write(out, dict(metrics, published=published, about=about), rows)


def title_of(source: source_lib.Source, evaluators: Sequence[str]) -> str:
  """Which evaluators scored which checkpoint."""
  names = ", ".join(evaluators[:4]) + (f" and {len(evaluators) - 4} more" if evaluators[4:] else "")
  if source.run is None:
    return f"{names}: {source.path.name}"
  folder = source.run.path
  if folder.parent.name == workdir_lib.FOLDER:
    folder = folder.parents[1]
  return f"{names}: {folder.name} at step {source.run.step:,}"


def described(data: Any) -> str:
  """A source as its config writes it: easy_vqa, split='test'."""
  fields = disk.plain(data.to_dict())
  name = str(fields.pop("name", "a mixture"))
  return ", ".join([name, *(f"{key}={value!r}" for key, value in fields.items())])


def _decoding(evaluator: Any, config: Any) -> str:
  if evaluator.section.type == "perplexity":
    return "none: the likelihood of the true answer"
  text = (
    f"{evaluator.section.decode or config.decode}, up to {evaluator.section.max_decode_len} tokens"
  )
  return f"{text}, grammar {evaluator.section.grammar}" if evaluator.section.grammar else text
