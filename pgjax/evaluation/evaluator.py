"""How good are the parameters on a split? Evaluators score the whole split, on all hosts.

Each entry of config.evals becomes an Evaluator, in training and in pgjax.evaluate. Padding rows are
not scored. The rows of all processes are merged in the order of the split, so every process has the
same scores, for any number of processes. scorers.py scores one answer.
"""

import contextlib
import hashlib
import json
import logging
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pgjax import disk
from pgjax.config import durations
from pgjax.data import device_feed, loader, pipeline
from pgjax.distributed import mesh as mesh_lib, processes
from pgjax.errors import UserError, naming, not_finite
from pgjax.evaluation import journal as journal_lib, likelihood, scorers
from pgjax.inference.decoder_cache import Decoders, Settings
from pgjax.metrics import text
from pgjax.params import names as param_names
from pgjax.training import run_log

log = logging.getLogger("pgjax")


class Evaluator(NamedTuple):
  """One entry of config.evals, opened and ready."""

  name: str
  section: Any  # config.evals[name]
  every_steps: int | None  # None: not during training.
  batches: pipeline.EvalBatches
  compute: Callable[[Any, pipeline.EvalBatch], Any]  # Compiled at its first call.
  scorer: scorers.Scorer | None  # None for perplexity.


class Result(NamedTuple):
  """Scores by name ("eval/acc"), and the rows of predictions.jsonl in the order of the split."""

  scores: dict[str, float]
  rows: list[dict[str, Any]]
  data_sha256: str  # Of the scored images, prompts and answers.
  parts: list[dict[str, tuple[float, float]]]  # Each row's contribution: {score: (sum, count)}.


def training_intervals(config, total_steps: int, num_examples: int) -> dict[str, int]:
  """{evaluator: its interval in steps} of those that run during training."""
  sizes = dict(batch_size=config.input.batch_size, num_examples=num_examples)
  every = {
    name: durations.steps(section, "log", total_steps=total_steps, **sizes)
    for name, section in config.evals.items()
  }
  return {name: steps for name, steps in every.items() if steps is not None}


def matching(config, pattern: str) -> dict[str, None]:
  """The evaluators whose full name matches, for pgjax.evaluate."""
  compiled = param_names.compile_pattern(pattern, "--evals")
  names = [name for name in config.evals if compiled.fullmatch(name)]
  if not names:
    known = ", ".join(config.evals) or "none"
    raise UserError(f"No evaluator of this config matches {pattern!r}; there are: {known}.")
  return dict.fromkeys(names)


def make(config, model, leaves, mesh, tokenizer, param_places, every: Mapping[str, int | None]):
  """Opens the data of the evaluators named in `every`; nothing is compiled yet."""
  decoders = Decoders(model, leaves, mesh, param_places, tokenizer)
  evaluators = []
  for name, every_steps in every.items():
    section, scorer = config.evals[name], None
    mesh_lib.check_batch_size(section.batch_size, mesh, f"config.evals.{name}.batch_size")
    with naming(f"config.evals.{name}"):
      if section.type == "perplexity":
        compute = _likelihoods(likelihood.jitted_nll(model, leaves, mesh, param_places))
      else:
        compute, scorer = _answers(decoders, section, config), scorers.of(section)
      batches = open_batches(config, section, tokenizer, mesh)
      if scorer and scorer.columns:
        columns = batches.first_columns()
        if missing := scorers.missing(scorer, columns):
          raise UserError(
            f"type {section.type!r} needs {', '.join(map(repr, missing))} of each example, and"
            f" after pp there are only {', '.join(sorted(columns))}; add them to keep(...)."
          )
    evaluators.append(Evaluator(name, section, every_steps, batches, compute, scorer))
  return evaluators


def _likelihoods(nll):
  return lambda params, batch: nll(params, batch.arrays)


def _answers(decoders, section, config):
  decode, length = section.decode or config.decode, section.max_decode_len
  run = decoders.of(Settings(decode, length, section.grammar, config.seed))
  return lambda params, batch: run(params, batch.arrays, batch.rows)


def open_batches(config: Any, section: Any, tokenizer: Any, mesh: Any) -> pipeline.EvalBatches:
  """The batches of one section of config.evals for this process."""
  scored, rows = section.type == "perplexity", mesh_lib.rows_of_process(mesh)
  sizes = (config.res, config.text_len, config.num_frames)
  return pipeline.eval_batches(
    section,
    tokenizer,
    layout=loader.Layout(*sizes, for_training=scored, for_perplexity=scored),
    num_threads=config.input.num_threads,
    allow_truncated=config.input.allow_truncated,
    seed=config.seed,
    process_index=rows.index,
    process_count=rows.count,
  )


def is_due(evaluator: Evaluator, step: int, total_steps: int) -> bool:
  """At step 0 (unless skip_first), every `every_steps`, and at the end; not just before the end."""
  every = evaluator.every_steps
  if step in (0, total_steps):
    return step > 0 or not evaluator.section.skip_first
  return bool(every) and step % every == 0 and total_steps - step >= every / 4


def run_due(
  evaluators: Sequence[Evaluator],
  step: int,
  params: Any,
  *,
  total_steps: int,
  mesh: Any,
  tokenizer: Any,
  log: run_log.Log,
  workdir: pathlib.Path,
  stopping: Callable[[], bool],
) -> dict[str, float] | None:
  """Runs what is due after `step`, writes the results, and returns all scores; None if interrupted.

  `stopping` is called between batches, so that SIGTERM need not wait for a long evaluation.
  """
  scores = {}
  for evaluator in evaluators:
    if is_due(evaluator, step, total_steps):
      with log.aside(), log.waiting(f"Evaluating {evaluator.name} at step {step}"):
        result = run(evaluator, params, mesh=mesh, tokenizer=tokenizer, stopping=stopping)
      if result is None:
        return None
      log.scores(step, result.scores)
      scores |= result.scores
      if processes.is_main():
        folder = folder_of(workdir, evaluator.name)
        write_submission(folder, evaluator.section, result.rows)
        write(folder, dict(step=step) | result.scores, result.rows)
  return scores


def run(
  evaluator: Evaluator,
  params: Any,
  *,
  mesh: Any,
  tokenizer: Any,
  stopping: Callable[[], bool] = lambda: False,
  journal: journal_lib.Journal | None = None,
) -> Result | None:
  """One pass over the split; None if interrupted.

  Batches in the journal are not decoded again; the others are added to it.
  """
  rows, previous = list(journal.batches) if journal else [], None

  def score_previous():
    if previous is not None:
      rows.append(_rows(evaluator, tokenizer, *previous))
      if journal:
        journal.add(rows[-1])

  feed = device_feed.to_device(evaluator.batches.after(len(rows)), mesh)
  feed.interrupted = getattr(stopping, "here", stopping)  # Also while it waits for a batch.
  with contextlib.closing(feed):
    for batch in feed:
      if stopping():
        return None
      output = evaluator.compute(params, batch)
      score_previous()  # While the device computes this batch.
      previous = (batch, output)
    if feed.was_interrupted:
      return None
  score_previous()
  rows = _in_order(mesh_lib.gather_parts(mesh, rows))
  of_split = evaluator.scorer.of_split(evaluator.section, rows) if evaluator.scorer else {}
  if unanswered := _unanswered(evaluator, rows):
    of_split = dict(of_split, no_answer=unanswered)
  # Rows of a journal or another process come from JSON, which has no tuples.
  scores = [{name: tuple(part) for name, part in row.pop("scores").items()} for row in rows]
  digest = hashlib.sha256("".join(row.pop("_sha256") for row in rows).encode())
  digest.update(json.dumps([row.get("answer") for row in rows]).encode())
  named = text.mean(scores) | of_split | dict(num=len(rows))
  named = {f"{evaluator.name}/{name}": value for name, value in named.items()}
  return Result(named, rows, digest.hexdigest(), scores)


def _unanswered(evaluator: Evaluator, rows: Sequence[Mapping]) -> int:
  """The number of rows without a true answer, which are logged and not scored."""
  if evaluator.scorer is None:
    return 0
  count = sum(scorers.has_no_answer(evaluator.section, row) for row in rows)
  if count and processes.is_main():
    text = "%s: %d of %d examples have no true answer (null or an empty list) and are not scored."
    log.warning(text, evaluator.name, count, len(rows))
  return count


def _rows(evaluator: Evaluator, tokenizer, batch: pipeline.EvalBatch, output) -> list[dict]:
  """Scores this process's rows of a batch, except padding rows."""
  real = np.flatnonzero(mesh_lib.local_rows(batch.arrays["_mask"]))
  prompts, *outputs = (mesh_lib.local_rows(a)[real] for a in (batch.arrays["text"], *output))
  rows = []
  for example, prompt, *row_outputs in zip(batch.rows, prompts, *outputs, strict=True):
    text_of_prompt = example["prefix"] if "prefix" in example else tokenizer.decode(prompt)
    row = dict(id=_id(example), prompt=text_of_prompt)
    row |= {n: scorers.plain(example[n]) for n in scorers.ID_COLUMNS if n in example}
    groups = {n: scorers.plain(example[n]) for n in scorers.GROUP_COLUMNS if n in example}
    if evaluator.scorer is None:
      nll, weight = map(float, row_outputs)
      if not math.isfinite(nll):
        raise not_finite(f"{evaluator.name}: -log p of the answer to {text_of_prompt!r}", nll)
      row |= dict(nll=nll, scores=text.perplexity(nll, weight), **groups)
    else:
      tokens, logp = row_outputs
      if np.isnan(logp).any():
        raise not_finite(f"{evaluator.name}: log p of the answer to {text_of_prompt!r}", np.nan)
      answer = scorers.Generated(tokenizer.decode(tokens), tokens, logp)
      row |= dict(prediction=answer.text, logp=float(logp.sum()), **groups)
      row |= evaluator.scorer.row(evaluator.section, tokenizer, example, answer)
    rows.append(dict(row, **{n: example[n] for n in ("_sha256", "_index") if n in example}))
  return rows


def _id(example: Mapping[str, Any]) -> Any:
  """What names the row: its column `id`, or that of the source where pp drops it."""
  own = scorers.plain(example.get("id"))
  return scorers.plain(example.get("_source_id")) if own is None else own


def _in_order(by_process: list[list[list[dict]]]) -> list[dict]:
  """[part][batch][row] to the order of the split: batch, then part (of a process), then row.

  If batches are sorted by length, `_index` is a row's place in the split.
  """
  merged = (row for batches in zip(*by_process, strict=True) for rows in batches for row in rows)
  rows = [dict(row) for row in merged]
  return sorted(rows, key=lambda row: row.pop("_index", 0))


def folder_of(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """The folder in a workdir with the results of an evaluator."""
  return disk.inside(workdir / "evals", name, "The evaluator")


def write(folder: pathlib.Path, scores: Mapping[str, Any], rows: Sequence[Mapping]) -> None:
  """Writes predictions.jsonl, then metrics.json, each atomically."""
  with disk.disk_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows]
    disk.replace(folder / "predictions.jsonl", "".join(lines))
    disk.replace(folder / "metrics.json", disk.dumps(dict(scores)))


def write_submission(folder: pathlib.Path, section: Any, rows: Sequence[Mapping]) -> None:
  """Writes submission.json, [{"question_id": ..., "answer": ...}], if the config names the keys."""
  if section.out_question_key is None or section.type == "perplexity":
    return
  names = (*scorers.ID_COLUMNS, "image_id", "id")
  name = next((n for n in names if all(row.get(n) is not None for row in rows)), "id")
  keys = section.out_question_key, section.out_answer_key
  answers = [{keys[0]: row.get(name), keys[1]: row["prediction"]} for row in rows]
  with disk.disk_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
    disk.replace(folder / "submission.json", json.dumps(answers, ensure_ascii=False) + "\n")
