"""How good are the parameters on a split? Whole splits, on all hosts, as exact numbers.

Each entry of config.evals becomes an Evaluator, in training and in pgjax.evaluate alike. Rows that
only fill the last batch are not scored; the rows of all processes are put back in the order of the
split, so every process has the same scores, and they do not depend on how many there are. What one
answer is worth is in pgjax.metrics.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pgjax import config as config_lib
from pgjax import decode, metric_log, sharding
from pgjax import step as step_lib
from pgjax.data import pipeline
from pgjax.errors import UserError
from pgjax.metrics import text, vqa

SCORE = {"vqa": "acc", "chartqa": "relaxed_acc"}  # What a row of predictions.jsonl is given.


class Evaluator(NamedTuple):
  """One entry of config.evals, opened and ready."""

  name: str
  section: Any  # config.evals[name]
  every_steps: int | None  # None: not while training.
  batches: pipeline.EvalBatches
  compute: Callable[[Any, Any], Any]  # Compiled once, at its first call.


class Result(NamedTuple):
  """Scores by name ("eval/acc"), and the rows of predictions.jsonl, in the order of the split."""

  scores: dict[str, float]
  rows: list[dict[str, Any]]


def of_training(config, total_steps: int, num_examples: int) -> dict[str, int]:
  """The evaluators that run while training, and every how many steps."""
  sizes = dict(batch_size=config.input.batch_size, num_examples=num_examples)
  every = {
    name: config_lib.steps(section, "log", total_steps=total_steps, **sizes)
    for name, section in config.evals.items()
  }
  return {name: steps for name, steps in every.items() if steps is not None}


def matching(config, pattern: str) -> dict[str, None]:
  """The evaluators whose whole name matches, for pgjax.evaluate."""
  names = [name for name in config.evals if re.fullmatch(pattern, name)]
  if not names:
    there = ", ".join(config.evals) or "none"
    raise UserError(f"No evaluator of this config matches {pattern!r}; there are: {there}.")
  return dict.fromkeys(names)


def make(config, model, mesh, tokenizer, param_places, every: Mapping[str, int | None]):
  """Opens the data of the evaluators named in `every`; nothing is compiled yet."""
  decoders: dict[int, Callable] = {}
  readable = step_lib.readable(step_lib.leaves_of(model, config), mesh)
  made = []
  for name, every_steps in every.items():
    section = config.evals[name]
    sharding.check_batch_size(section.batch_size, mesh, f"config.evals.{name}.batch_size")
    if section.type == "perplexity":
      compute = step_lib.jitted_nll(model, config, mesh, param_places)
    else:
      length = section.max_decode_len
      if length not in decoders:
        decoders[length] = decode.jitted(
          model, mesh, param_places, max_decode_len=length, readable=readable
        )
      compute = decoders[length]
    try:
      batches = _open(config, section, tokenizer)
    except UserError as error:
      raise UserError(f"config.evals.{name}: {error}") from None
    made.append(Evaluator(name, section, every_steps, batches, compute))
  return made


def _open(config, section, tokenizer) -> pipeline.EvalBatches:
  return pipeline.eval_batches(
    section,
    tokenizer,
    layout=pipeline.Layout(
      config.res, config.text_len, config.num_frames, for_training=section.type == "perplexity"
    ),
    num_threads=config.input.num_threads,
    allow_truncated=config.input.allow_truncated,
    seed=config.seed,
    process_index=sharding.process_index(),
    process_count=sharding.process_count(),
  )


def is_due(evaluator: Evaluator, step: int, total_steps: int) -> bool:
  """At step 0 (unless skip_first), every so often, and at the end; not just before the end."""
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
  log: metric_log.Log,
  workdir: pathlib.Path,
  stopping: Callable[[], bool],
) -> dict[str, float] | None:
  """Runs what is due after `step`, writes it, and returns all scores; None if it was cut short.

  `stopping` is asked between batches, so that a SIGTERM need not wait for a long evaluation.
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
      if sharding.is_main():
        write(workdir / "evals" / evaluator.name, dict(step=step) | result.scores, result.rows)
  return scores


def run(
  evaluator: Evaluator,
  params: Any,
  *,
  mesh: Any,
  tokenizer: Any,
  stopping: Callable[[], bool] = lambda: False,
  seen: Callable[[pipeline.EvalBatch], None] = lambda batch: None,
) -> Result | None:
  """One pass over the split. `seen` gets each batch (a report takes its pictures there)."""
  rows, waiting = [], None
  feed = pipeline.to_device(evaluator.batches, mesh)
  with contextlib.closing(feed):
    for batch in feed:
      if stopping():
        return None
      output = evaluator.compute(params, batch.arrays)
      seen(batch)
      if waiting is not None:  # The device works on this batch while the last one is read.
        rows.append(_read(evaluator, tokenizer, *waiting))
      waiting = (batch, output)
  rows.append(_read(evaluator, tokenizer, *waiting))
  rows = _in_order(sharding.gather_objects(rows))
  scores = [row.pop("scores") for row in rows]
  named = text.mean(scores) | dict(num=len(rows))
  return Result({f"{evaluator.name}/{name}": value for name, value in named.items()}, rows)


def _read(evaluator: Evaluator, tokenizer, batch: pipeline.EvalBatch, output) -> list[dict]:
  """Scores the rows that this process brought, leaving out those that only fill the batch."""
  real = np.flatnonzero(sharding.local_rows(batch.arrays["_mask"]))
  prompts, *outputs = (sharding.local_rows(a)[real] for a in (batch.arrays["text"], *output))
  make_row = _likelihood if evaluator.section.type == "perplexity" else _answer
  return [
    make_row(evaluator, tokenizer, example, prompt, *row_outputs)
    for example, prompt, *row_outputs in zip(batch.rows, prompts, *outputs, strict=True)
  ]


def _answer(evaluator: Evaluator, tokenizer, example, prompt, tokens, logp) -> dict[str, Any]:
  del logp
  section, prediction = evaluator.section, tokenizer.decode(tokens)
  answer = _reference(evaluator, example)
  if section.type == "chartqa":
    scores = vqa.chartqa(prediction, _one(answer), to_lower=section.to_lower)
  else:
    scores = vqa.vqa(prediction, answer, to_lower=section.to_lower)
  score, count = scores[SCORE[section.type]]
  return dict(
    id=_plain(example.get("id")),
    prompt=_prompt(tokenizer, example, prompt),
    answer=answer,
    prediction=prediction,
    score=score if count else None,
    scores=scores,
  )


def _likelihood(evaluator: Evaluator, tokenizer, example, prompt, nll, weight) -> dict[str, Any]:
  del evaluator
  return dict(
    id=_plain(example.get("id")),
    prompt=_prompt(tokenizer, example, prompt),
    nll=float(nll),
    scores=text.perplexity(float(nll), float(weight)),
  )


def _prompt(tokenizer, example: Mapping[str, Any], tokens) -> str:
  return example["prefix"] if "prefix" in example else tokenizer.decode(tokens)


def _reference(evaluator: Evaluator, example: Mapping[str, Any]) -> str | list[str]:
  """The true answer, or a list of them; data that has none is decoded without being scored."""
  value = _plain(example.get(evaluator.section.answer, []))
  return [str(v) for v in value] if isinstance(value, list) else str(value)


def _one(answer: str | list[str]) -> str:
  if isinstance(answer, str):
    return answer
  if len(answer) == 1:
    return answer[0]
  raise UserError(f"ChartQA's score takes one answer for a question, not {answer}.")


def _plain(value: Any) -> Any:
  """Without numpy, so that JSON can hold it."""
  return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _in_order(by_process: list[list[list[dict]]]) -> list[dict]:
  """[process][batch][row] to the order of the split: batch, then process, then row."""
  return [row for batches in zip(*by_process, strict=True) for rows in batches for row in rows]


def write(folder: pathlib.Path, scores: Mapping[str, float], rows: Sequence[Mapping]) -> None:
  """metrics.json and predictions.jsonl."""
  with metric_log.disk_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(dict(scores), indent=1) + "\n")
    lines = [json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows]
    (folder / "predictions.jsonl").write_text("".join(lines))
