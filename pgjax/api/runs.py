"""Training and scoring as functions that return the results of pgjax.train and pgjax.evaluate."""

import dataclasses
import os
import pathlib
from types import SimpleNamespace
from typing import Any

from pgjax import cache_dir, evaluate, train
from pgjax.api import arguments
from pgjax.checkpoints import bucket_copy
from pgjax.formats import typed_json


@dataclasses.dataclass(frozen=True)
class Fitted:
  """The state of a run."""

  workdir: pathlib.Path
  step: int  # The last one, which is saved.
  total_steps: int
  finished: bool  # False: it was interrupted.
  metrics: dict[str, float]  # Of the last step: loss, rates, scores.

  def history(self) -> list[dict[str, float]]:
    """The rows of metrics.jsonl: one for each step, and one for each evaluation."""
    path = self.workdir / "metrics.jsonl"  # Only the main process of several writes it.
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [
      typed_json.decode(line, dict[str, Any], f"{path}, line {number}", nan=True)
      for number, line in enumerate(lines, start=1)
    ]


@dataclasses.dataclass(frozen=True)
class Scored:
  """The scores of a checkpoint, and the files with the details."""

  metrics: dict[str, float]
  report: pathlib.Path  # A page with scores and examples, in one file.
  predictions: pathlib.Path  # A JSON object for each example.


@arguments.named_as_in_python()
def fit(config: Any, workdir: str | os.PathLike, **overrides: Any) -> Fitted:
  """Trains, or resumes what is in the workdir; returns when the run ends or is interrupted.

  An interrupt (Ctrl-C, a notebook's stop button, SIGTERM) saves first; the same call resumes.

  Args:
    config: "configs/x.py:args", a dict, or a ConfigDict such as a config file's get_config returns.
    workdir: folder of the run; created if missing; or s3://, gs://, whose local copy is returned.
    overrides: fields to replace, `input__batch_size=8` for config.input.batch_size.
  """
  checked = arguments.checked_config(config, arguments.dotted(overrides))
  folder = arguments.path("workdir", workdir)
  again = f"pgjax.fit with the same config and workdir={folder!r}"
  ended = train.execute(checked, folder, again=again, whole_process=False)
  fitted = Fitted(bucket_copy.local(folder), *ended, {})
  for row in fitted.history():
    fitted.metrics.update(row if row.get("step") == fitted.step else {})
  return fitted


@arguments.named_as_in_python()
def score(
  ckpt: str | os.PathLike,
  out: str | os.PathLike,
  *,
  config: Any = None,
  evals: str = ".*",
  step: int | None = None,
  ema: bool = True,
  quantize: str | None = None,
  base: str | os.PathLike | None = None,
  weights: str | None = None,
  **overrides: Any,
) -> Scored:
  """Scores a checkpoint on whole splits and writes metrics.json, predictions.jsonl, report.html.

  Args:
    ckpt: as in `load`, and so are step, ema, quantize, base and weights.
    out: folder for the results; created if missing; or s3://, gs://.
    config: as in `fit`; without it the config of the checkpoint's run.
    evals: regular expression: which entries of config.evals to run.
    overrides: as in `fit`.
  """
  args = SimpleNamespace(evals=evals, step=step, ema=ema, quantize=quantize, weights=weights)
  args.ckpt = arguments.checkpoint(ckpt, step, ema, quantize, base, weights)
  args.base = None if base is None else os.fspath(base)
  folder = arguments.path("out", out)
  args.overrides = arguments.dotted(overrides)
  args.config = None if config is None else arguments.checked_config(config, args.overrides)
  args.config_spec = config if isinstance(config, str | None) else args.config.to_dict()
  cache_dir.use_compilation_cache()
  place = bucket_copy.writable(folder, "--out")
  with place.synced():
    scores = evaluate.once(args, out := place.folder)
  return Scored(scores, out / "report.html", out / "predictions.jsonl")
