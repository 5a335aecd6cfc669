"""Is a generated answer right? The scores of visual question answering, one example at a time.

Each function takes the prediction (the text before the first <eos>), one reference or several, and
returns {name: (sum, count)}; `text.mean` turns many of them into numbers. Normalisation follows
big_vision's evaluators (evaluators/proj/paligemma/transfers/{vqa,chartqa}.py) to the letter,
because the published numbers depend on it: nothing is stripped, and only `to_lower` changes case.
"""

from collections.abc import Sequence

from pgjax.metrics import text

RELAXED_TOLERANCE = 0.05  # Of the target, inclusive (ChartQA, arXiv:2203.10244, section 5.1).


def vqa(
  prediction: str, references: str | Sequence[str], *, to_lower: bool = False
) -> dict[str, text.Score]:
  """Exact match, soft VQA accuracy and ANLS.

  One string: all of `acc`, `acc_any` are equality. Several: `acc` = min(1, matches / 3), without
  leave-one-out and without the official cleaning of punctuation and articles; `acc_any` asks for
  one match; `anls` takes the nearest reference. No reference: nothing is scored (count 0).
  """
  single = isinstance(references, str)
  targets = [references] if single else list(references)
  if to_lower:
    prediction, targets = prediction.lower(), [target.lower() for target in targets]
  if not targets:
    return {"acc": (0.0, 0), "acc_any": (0.0, 0), "anls": (0.0, 0)}
  matches = sum(text.exact_match(prediction, target) for target in targets)
  return {
    "acc": (matches if single else min(1.0, matches / 3), 1),
    "acc_any": (min(1.0, matches), 1),
    "anls": (max(text.anls(prediction, target) for target in targets), 1),
  }


def chartqa(prediction: str, target: str, *, to_lower: bool = True) -> dict[str, text.Score]:
  """Exact match and ChartQA's relaxed accuracy; big_vision's config lower-cases both sides."""
  if to_lower:
    prediction, target = prediction.lower(), target.lower()
  return {
    "acc": (text.exact_match(prediction, target), 1),
    "relaxed_acc": (float(relaxed_match(prediction, target)), 1),
  }


def relaxed_match(prediction: str, target: str) -> bool:
  """Numbers may be 5% off; everything else, and a target of zero, must be the same string.

  Years get no special treatment: 2010 for 2015 counts, as it does in the published figures.
  """
  predicted, wanted = to_number(prediction), to_number(target)
  if predicted is not None and wanted:
    return abs(predicted - wanted) / abs(wanted) <= RELAXED_TOLERANCE
  return prediction == target


def to_number(answer: str) -> float | None:
  """What Python's `float` reads, and percentages as fractions; "1,000" and "$5" are no numbers."""
  try:
    return float(answer.rstrip("%")) / 100.0 if answer.endswith("%") else float(answer)
  except ValueError:
    return None
