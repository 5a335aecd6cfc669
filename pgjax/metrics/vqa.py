"""Is a generated answer right? The scores of visual question answering, one example at a time.

Normalisation is exactly big_vision's (evaluators/proj/paligemma/transfers/{vqa,chartqa}.py), as in
published numbers: nothing is stripped, and only `to_lower` changes case. Each function returns
{name: (sum, count)} for `text.mean`.
"""

import math
from collections.abc import Sequence

from pgjax.errors import UserError
from pgjax.metrics import text, vqa_official

RELAXED_TOLERANCE = 0.05  # Of the target, inclusive (ChartQA, arXiv:2203.10244, section 5.1).
ANSWER_TYPES = {"yes/no": "yesno", "number": "number", "other": "other"}  # Data: score name.


def vqa(prediction: str, references: str | Sequence[str], *, to_lower: bool = False) -> text.Scores:
  """Exact match, soft VQA accuracy and ANLS.

  One string: `acc` and `acc_any` are equality. Several: `acc` = min(1, matches / 3), without the
  official leave-one-out and cleaning; `acc_any`: at least one match; `anls`: of the nearest
  reference. No reference: nothing is scored (count 0).
  """
  single = isinstance(references, str)
  targets = [references] if single else list(references)
  if to_lower:
    prediction, targets = prediction.lower(), [target.lower() for target in targets]
  if not targets:
    return {"acc": (0.0, 0), "acc_any": (0.0, 0), "anls": (0.0, 0)}
  matches = float(targets.count(prediction))
  return {
    "acc": (matches if single else min(1.0, matches / 3), 1),
    "acc_any": (min(1.0, matches), 1),
    "anls": (max(text.anls(prediction, target) for target in targets), 1),
  }


def vqav2(
  prediction: str, references: Sequence[str], answer_type: str | None = None
) -> text.Scores:
  """The official VQA accuracy (VQAv2, TextVQA): `acc`, and `acc/<type>` of the answer's type.

  The mean, over leaving each reference out, of min(1, matches / 3) with the others. Answers are
  cleaned (`cleaned_together`) only where the references differ. The original needs ten references;
  with fewer than three others, their number replaces 3, and a single reference means equality. No
  reference: nothing is scored. `answer_type` is one of ANSWER_TYPES, or None.
  """
  if answer_type is not None and references and answer_type not in ANSWER_TYPES:
    allowed = ", ".join(map(repr, ANSWER_TYPES))
    raise UserError(
      f"The answer type is {answer_type!r}; VQAv2 has {allowed}. Fix the data's field, or remove it"
      " from the evaluator to score without types."
    )
  if not references:
    return {"acc": (0.0, 0)}
  prediction, targets = cleaned_together(prediction, references)
  matches = [target == prediction for target in targets]
  acc, needed = float(matches[0]), min(3, len(matches) - 1)
  if needed:
    left_out = [min(1.0, (sum(matches) - match) / needed) for match in matches]
    acc = math.fsum(left_out) / len(left_out)
  by_type = {} if answer_type is None else {f"acc/{ANSWER_TYPES[answer_type]}": (acc, 1)}
  return {"acc": (acc, 1)} | by_type


def cleaned_together(prediction: str, references: Sequence[str]) -> tuple[str, list[str]]:
  """Prediction and references as `vqav2` compares them.

  References that all agree, and their prediction, only lose newlines, tabs and outer spaces: the
  official cleaning would damage text copied from the image (GT-Vision-Lab/VQA issue 14).
  """
  bare, targets = vqa_official.spaces(prediction), list(map(vqa_official.spaces, references))
  if len(set(targets)) > 1:
    return vqa_official.cleaned(bare), list(map(vqa_official.cleaned, targets))
  return bare, targets


def chartqa(prediction: str, target: str, *, to_lower: bool = True) -> text.Scores:
  """Exact match and ChartQA's relaxed accuracy; big_vision's config lower-cases both sides."""
  if to_lower:
    prediction, target = prediction.lower(), target.lower()
  return {
    "acc": (float(prediction == target), 1),
    "relaxed_acc": (float(relaxed_match(prediction, target)), 1),
  }


def relaxed_match(prediction: str, target: str) -> bool:
  """Numbers, years too, may be 5% off; anything else, and a target of zero, must be identical."""
  predicted, expected = to_number(prediction), to_number(target)
  if predicted is not None and expected:
    return abs(predicted - expected) / abs(expected) <= RELAXED_TOLERANCE
  return prediction == target


def to_number(answer: str) -> float | None:
  """The number by Python's `float`, a percentage as a fraction; None for "1,000" or "$5"."""
  try:
    return float(answer.rstrip("%")) / 100.0 if answer.endswith("%") else float(answer)
  except ValueError:
    return None
