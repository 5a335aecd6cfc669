"""Is a generated answer right? The scores of visual question answering, one example at a time.

Each function takes the prediction (the text before the first <eos>), one reference or several, and
returns {name: (sum, count)}; `text.mean` turns many of them into numbers. Normalisation follows
big_vision's evaluators (evaluators/proj/paligemma/transfers/{vqa,chartqa}.py) to the letter,
because the published numbers depend on it: nothing is stripped, and only `to_lower` changes case
(`vqav2` has the official cleaning instead). Answers out of a small set are in closed.py.
"""

import math
from collections.abc import Sequence

from pgjax.errors import UserError
from pgjax.metrics import text, vqa_official

RELAXED_TOLERANCE = 0.05  # Of the target, inclusive (ChartQA, arXiv:2203.10244, section 5.1).
ANSWER_TYPES = {"yes/no": "yesno", "number": "number", "other": "other"}  # In the data: in a name.


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


def vqav2(
  prediction: str, references: Sequence[str], answer_type: str | None = None
) -> dict[str, text.Score]:
  """The official VQA accuracy (VQAv2, TextVQA): `acc`, and the same once more by type of answer.

  Each reference is left out in turn; the prediction gets min(1, matches / 3) of the others, and the
  mean of these. Answers are cleaned (`cleaned_together`) only where the references differ. The rule
  is meant for ten references and the original fails with fewer; here 3 becomes the number of the
  others if that is smaller, so that agreeing with everybody is 1, and one reference alone is
  equality. No reference: nothing is scored. `answer_type` is one of ANSWER_TYPES, or None.
  """
  if answer_type is not None and references and answer_type not in ANSWER_TYPES:
    allowed = ", ".join(map(repr, ANSWER_TYPES))
    raise UserError(
      f"The answer type is {answer_type!r}; VQAv2 has {allowed}. Mend the data's field, or leave it"
      " out of the evaluator to score without types."
    )
  if not references:
    return {"acc": (0.0, 0)}
  prediction, targets = cleaned_together(prediction, references)
  matches = [target == prediction for target in targets]
  wanted = min(3, len(matches) - 1)
  if wanted:
    left_out = [min(1.0, (sum(matches) - match) / wanted) for match in matches]
    acc = math.fsum(left_out) / len(left_out)
  else:
    acc = float(matches[0])
  by_type = {} if answer_type is None else {f"acc/{ANSWER_TYPES[answer_type]}": (acc, 1)}
  return {"acc": (acc, 1)} | by_type


def cleaned_together(prediction: str, references: Sequence[str]) -> tuple[str, list[str]]:
  """Prediction and references as `vqav2` compares them; a report shows these next to the raw ones.

  References that all agree, and their prediction, only lose newlines, tabs and outer spaces: the
  official cleaning would spoil what was copied from the image (GT-Vision-Lab/VQA issue 14).
  """
  bare, targets = vqa_official.spaces(prediction), list(map(vqa_official.spaces, references))
  if len(set(targets)) > 1:
    return vqa_official.cleaned(bare), list(map(vqa_official.cleaned, targets))
  return bare, targets


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
