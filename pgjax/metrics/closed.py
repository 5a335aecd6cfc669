"""Is an answer out of a small set right? Multiple choice, yes or no, counts, land cover.

One example at a time, as in vqa.py: {name: (sum, count)} for `text.mean`. Precision, recall and F1
are such pairs too: what is counted is not the example but the "yes" of one side or the other. The
rules are big_vision's (evaluators/proj/paligemma/transfers/), mended where it fails or logs one
name twice; POPE's other figures follow its authors' program.
"""

import re
from collections.abc import Mapping, Sequence

from pgjax.errors import UserError
from pgjax.metrics import text, vqa

# Of RSVQA: the types whose answers are no numbers, for the two resolutions (arXiv:2003.07333).
RSVQA_NON_NUMERIC = {"lr": ("comp", "presence", "rural_urban"), "hr": ("comp", "presence")}
NUMBER_WORDS = (
  *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
  *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
  *("nineteen", "twenty"),
)


def choice(prediction: str, answer: str, choices: Sequence[str]) -> dict[str, text.Score]:
  """Multiple choice: `acc`, and `valid` for a prediction that names any of the choices.

  `answer` is the text of the right choice, or its letter if no choice has that text. A prediction
  names a choice by its text, or by its letter as in "B", "b", "(B)", "B." or "B: text"; case and
  outer spaces are ignored, and text goes before letters (a choice may be called "A").
  """
  right = chosen(answer, choices)
  if right is None:
    raise UserError(
      f"The right answer {answer!r} is none of the choices {list(choices)}, nor the letter of one."
      " Mend the data."
    )
  predicted = chosen(prediction, choices)
  return {"acc": (float(predicted == right), 1), "valid": (float(predicted is not None), 1)}


def chosen(answer: str, choices: Sequence[str]) -> int | None:
  """Which choice an answer names, None if no one; the first of two choices that read the same."""
  bare = answer.strip().lower()
  texts = [each.strip().lower() for each in choices]
  if bare in texts:
    return texts.index(bare)
  named = re.fullmatch(r"\(?([a-z])\)?(?:[.:)]?|[.:)]\s*(?P<text>\S.*))", bare, re.DOTALL)
  if named is None:
    return None
  place = ord(named[1]) - ord("a")
  fits = place < len(texts) and named["text"] in (None, texts[place])
  return place if fits else None


def science_qa(prediction: str, answer: str) -> dict[str, text.Score]:
  """ScienceQA: both texts begin "The answer is B."; `acc` compares the letters.

  `parsefail` is the share of predictions that do not begin so. An answer that does not is a
  mistake in the data, here an error: the original lets it agree with every unreadable prediction.
  """
  wanted, letter = _science_letter(answer), _science_letter(prediction)
  if wanted is None:
    raise UserError(
      f"The true answer {answer!r} does not begin with 'The answer is X.' (X a letter), as those of"
      " science_qa do. Build the suffix with that sentence."
    )
  return {"acc": (float(letter == wanted), 1), "parsefail": (float(letter is None), 1)}


def _science_letter(answer: str) -> str | None:
  found = re.match(r"the answer is ([a-z])\.", answer.lower())
  return found and found[1]


def pope(prediction: str, answer: str) -> dict[str, text.Score]:
  """POPE, is the object there: big_vision's two figures, then those of POPE's authors.

  `acc` compares the lower-cased prediction, `valid_percent` asks whether it is "yes" or "no". The
  others take any prediction for a "no" whose first sentence has the word no or not, and for a "yes"
  otherwise (arXiv:2305.10355): `accuracy`, `precision` and `recall` of "yes", `f1`, `yes_rate`.
  Nobody predicted "yes": there is no precision (the original divides by zero).
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


def tallyqa(
  prediction: str, answer: str, *, is_simple: bool | None = None
) -> dict[str, text.Score]:
  """Counting (TallyQA, CountBenchQA): `acc`, by kind of question, and `acc/count_<n>` by answer.

  Number words up to twenty count as digits, "none" as 0; beyond that the strings must be the same.
  `is_simple`: of the data's field issimple 1, 0 and -1 are True, False and None.
  """
  wanted = _counted(answer)
  acc = (float(_counted(prediction) == wanted), 1)
  scores = {"acc": acc}
  if is_simple is not None:
    scores["acc/simple" if is_simple else "acc/complex"] = acc
  if re.fullmatch(r"-?[0-9]+", wanted):
    scores[f"acc/count_{int(wanted)}"] = acc
  return scores


def _counted(answer: str) -> str:
  lower = answer.lower()
  if lower == "none":
    return "0"
  return str(NUMBER_WORDS.index(lower)) if lower in NUMBER_WORDS else answer


def rsvqa(
  prediction: str, references: str | Sequence[str], question_type: str, *, to_lower: bool = True
) -> dict[str, text.Score]:
  """The scores of `vqa.vqa`, and `acc_<type>`, which is `acc_any` among questions of that type."""
  scores = vqa.vqa(prediction, references, to_lower=to_lower)
  return scores | {f"acc_{question_type}": scores["acc_any"]}


def rsvqa_averages(means: Mapping[str, float]) -> dict[str, float]:
  """From the means of `rsvqa` over a split: plain means over the question types that occurred.

  `acc_avg` takes all; `acc_avg_nonum_lr` and `_hr` take the types with no number for an answer,
  where all of them occurred. big_vision calls both of these acc_avg_nonum, and on low-resolution
  data logs the second over the first.
  """
  types = ("comp", "count", "presence", "rural_urban", "area")
  found = {kind: means[f"acc_{kind}"] for kind in types if f"acc_{kind}" in means}
  averages = {"acc_avg": sum(found.values()) / len(found)} if found else {}
  for resolution, kinds in RSVQA_NON_NUMERIC.items():
    if all(kind in found for kind in kinds):
      averages[f"acc_avg_nonum_{resolution}"] = sum(found[kind] for kind in kinds) / len(kinds)
  return averages
