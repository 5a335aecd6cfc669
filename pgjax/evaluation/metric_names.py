"""Which metrics does an evaluator measure? So that config.keep_best can be checked."""

import re
from collections.abc import Mapping
from typing import Any

from pgjax.errors import UserError, did_you_mean
from pgjax.metrics.detection import COCO_NAMES

_COUNTED = ("f1", "precision", "recall")
# {type: names}; a `*` stands for what only the data knows, such as the name of a class.
NAMES = {
  "vqa": ("acc", "acc_any", "anls"),
  "vqav2": ("acc", "acc/yesno", "acc/number", "acc/other"),
  "chartqa": ("acc", "relaxed_acc"),
  "choice": ("acc", "valid", "acc_pair"),
  "science_qa": ("acc", "parsefail"),
  "pope": ("acc", "valid_percent", "accuracy", *_COUNTED, "yes_rate"),
  "tallyqa": ("acc", "acc/simple", "acc/complex", "acc/count_*"),
  "rsvqa": ("acc", "acc_any", "anls", "acc_*"),
  "json": ("valid", "exact", "field_precision", "field_recall", "field_f1", "similarity"),
  "detection": (
    *(*_COUNTED, "malformed", "duplicates", "repeated", "unknown_class"),
    *(*COCO_NAMES, "AP/*"),
  ),
  "segmentation": ("miou", "ciou", "boxacc/0.5", "boxacc/0.75", "invalid_share"),
  "instances": ("miou", "best_miou", *_COUNTED, "malformed", *COCO_NAMES, "AP/*"),
  "predictions": (),
  "perplexity": ("sum", "avg"),
}
_CAPTION = {"bleu": ("bleu-1", "bleu-2", "bleu-3", "bleu-4"), "length": ("chars", "sents")}


def of(section: Any) -> tuple[str, ...]:
  """The metrics of an entry of config.evals."""
  if section.type == "caption":
    return tuple(m for name in section.caption_metrics for m in _CAPTION.get(name, (name,)))
  return NAMES[section.type]


def check_keep_best(config: Any, during_training: Mapping[str, Any]) -> None:
  """Raises if config.keep_best names a metric that no evaluator of the run measures.

  during_training: the names of the evaluators that run while training.
  """
  if not (best := config.keep_best.removeprefix("-")):
    return
  where = f"config.keep_best={config.keep_best!r}"
  name, metric = _split(best, config.evals)
  if name not in during_training:
    raise UserError(
      f"{where}: the evaluator {name!r} does not run while training; set how often it does, such as"
      f" config.evals.{name}.log_steps."
    )
  known = of(config.evals[name])
  if not any(_matches(metric, pattern) for pattern in known):
    listed = ", ".join(f"{name}/{pattern}" for pattern in known) or "none"
    hint = did_you_mean(metric, known) if len(known) > 30 else ""
    raise UserError(f"{where}: {name!r} has no metric {metric!r}; its metrics are {listed}.{hint}")


def check_measured(config: Any, scores: Mapping[str, float]) -> None:
  """Raises if the evaluator of config.keep_best has run, and has no such metric on this data."""
  if not (best := config.keep_best.removeprefix("-")):
    return
  name, metric = _split(best, config.evals)
  measured = sorted(score for score in scores if score.startswith(f"{name}/"))
  # One with a fixed name may be undefined for now, as the precision of no "yes".
  if measured and best not in measured and metric not in of(config.evals[name]):
    raise UserError(
      f"config.keep_best={config.keep_best!r} was not measured; the evaluation of {name!r} has"
      f" {', '.join(measured)}."
    )


def _split(best: str, evals: Mapping[str, Any]) -> tuple[str, str]:
  """(evaluator, metric); names of evaluators may have slashes."""
  names = [name for name in evals if best.startswith(f"{name}/")]
  name = max(names, key=len, default=best.partition("/")[0])
  return name, best[len(name) + 1 :]


def _matches(metric: str, pattern: str) -> bool:
  return re.fullmatch(re.escape(pattern).replace(r"\*", ".+"), metric) is not None
