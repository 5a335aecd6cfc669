"""Is an answer from a small set right? Multiple choice, yes or no, counts, land cover.

Each function scores one example, {name: (sum, count)} for `text.mean`, by big_vision's rules
(evaluators/proj/paligemma/transfers/), fixed where it fails or logs one name twice.
"""

import re
from collections.abc import Mapping, Sequence

from pgjax.errors import UserError
from pgjax.metrics import text, vqa

# RSVQA's question types without numeric answers, for both resolutions (arXiv:2003.07333).
RSVQA_NON_NUMERIC = {"lr": ("comp", "presence", "rural_urban"), "hr": ("comp", "presence")}
NUMBER_WORDS = (
  *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
  *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
  *("nineteen", "twenty"),
)


def choice(prediction: str, answer: str, choices: Sequence[str]) -> text.Scores:
  """Multiple choice: `acc`, and `valid` for a prediction that names any of the choices.

  A prediction, or `answer`, names a choice by its text or by its letter, as in "B", "b", "(B)",
  "B." or "B: text"; case and outer spaces are ignored, and text has priority over letters.
  """
  right = chosen(answer, choices)
  if right is None:
    raise UserError(
      f"The right answer {answer!r} is none of the choices {list(choices)}, nor the letter of one."
      " Fix the data."
    )
  predicted = chosen(prediction, choices)
  return {"acc": (float(predicted == right), 1), "valid": (float(predicted is not None), 1)}


def pairs(keys: Sequence[str], right: Sequence[bool]) -> dict[str, float]:
  """`acc_pair`: the share of groups of examples with all answers right (MMVP, arXiv:2401.06209).

  keys: the group of each example.
  """
  groups: dict[str, bool] = {}
  for key, is_right in zip(keys, right, strict=True):
    groups[key] = groups.get(key, True) and is_right
  return {"acc_pair": sum(groups.values()) / len(groups)} if groups else {}


def chosen(answer: str, choices: Sequence[str]) -> int | None:
  """The index of the choice that an answer names, or None; the first of equal choices."""
  bare = answer.strip().lower()
  texts = [each.strip().lower() for each in choices]
  if bare in texts:
    return texts.index(bare)
  named = re.fullmatch(r"\(?([a-z])\)?(?:[.:)]?|[.:)]\s*(?P<text>\S.*))", bare, re.DOTALL)
  if named is None:
    return None
  i = ord(named[1]) - ord("a")
  return i if i < len(texts) and named["text"] in (None, texts[i]) else None


def science_qa(prediction: str, answer: str) -> text.Scores:
  """ScienceQA: both texts begin "The answer is B."; `acc` compares the letters.

  `parsefail`: the prediction has no such sentence. Raises if the answer has none.
  """
  expected, letter = _science_letter(answer), _science_letter(prediction)
  if expected is None:
    raise UserError(
      f"The true answer {answer!r} does not begin with 'The answer is X.' (X a letter), as those of"
      " science_qa do. Build the suffix with that sentence."
    )
  return {"acc": (float(letter == expected), 1), "parsefail": (float(letter is None), 1)}


def _science_letter(answer: str) -> str | None:
  match = re.match(r"the answer is ([a-z])\.", answer.lower())
  return match and match[1]


def pope(prediction: str, answer: str) -> text.Scores:
  """POPE, is an object in the image: big_vision's two figures, then those of POPE's authors.

  `acc` compares the lower-cased prediction; `valid_percent`: it is "yes" or "no". The others read a
  prediction as "no" if its first sentence has the word no or not, else as "yes" (arXiv:2305.10355):
  `accuracy`, `precision` and `recall` of "yes" (of none if nothing is), `f1`, `yes_rate`.
  """
  if answer not in ("yes", "no"):
    raise UserError(f"The true answer of a pope example is {answer!r}; it must be 'yes' or 'no'.")
  lower = prediction.lower()
  words = prediction.split(".", maxsplit=1)[0].replace(",", "").split(" ")
  predicted, true = not {"No", "not", "no"} & set(words), answer == "yes"
  hit = predicted and true
  return {
    "acc": (float(lower == answer), 1),
    "valid_percent": (float(lower in ("yes", "no")), 1),
    "accuracy": (float(predicted == true), 1),
    "precision": (float(hit), int(predicted)),
    "recall": (float(hit), int(true)),
    "f1": (2.0 * hit, predicted + true),
    "yes_rate": (float(predicted), 1),
  }


def tallyqa(prediction: str, answer: str, *, is_simple: bool | None = None) -> text.Scores:
  """Counting (TallyQA, CountBenchQA): `acc`, by kind of question, and `acc/count_<n>` by answer.

  Number words up to twenty equal digits, "none" equals 0; other strings must be identical.
  `is_simple`: the data's field issimple, 1, 0 and -1, as True, False and None.
  """
  expected = _digits(answer)
  acc = (float(_digits(prediction) == expected), 1)
  scores = {"acc": acc}
  if is_simple is not None:
    scores["acc/simple" if is_simple else "acc/complex"] = acc
  if re.fullmatch(r"-?[0-9]+", expected):
    scores[f"acc/count_{int(expected)}"] = acc
  return scores


def _digits(answer: str) -> str:
  lower = answer.lower()
  if lower == "none":
    return "0"
  return str(NUMBER_WORDS.index(lower)) if lower in NUMBER_WORDS else answer


def rsvqa(
  prediction: str, references: str | Sequence[str], question_type: str, *, to_lower: bool = True
) -> text.Scores:
  """The scores of `vqa.vqa`, and `acc_<type>`, the `acc_any` of questions of that type."""
  scores = vqa.vqa(prediction, references, to_lower=to_lower)
  return scores | {f"acc_{question_type}": scores["acc_any"]}


def rsvqa_averages(means: Mapping[str, float]) -> dict[str, float]:
  """Means over the question types of a split, from its means of `rsvqa`.

  `acc_avg`: of all types; `acc_avg_nonum_lr` and `_hr` (both acc_avg_nonum in big_vision): of the
  types without numeric answers, if the split has them all.
  """
  types = ("comp", "count", "presence", "rural_urban", "area")
  accuracies = {kind: means[f"acc_{kind}"] for kind in types if f"acc_{kind}" in means}
  averages = {"acc_avg": sum(accuracies.values()) / len(accuracies)} if accuracies else {}
  for resolution, kinds in RSVQA_NON_NUMERIC.items():
    if all(kind in accuracies for kind in kinds):
      averages[f"acc_avg_nonum_{resolution}"] = sum(accuracies[k] for k in kinds) / len(kinds)
  return averages
