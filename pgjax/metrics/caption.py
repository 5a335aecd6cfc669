"""How near is a caption to what people wrote of the same image? CIDEr-D, BLEU, ROUGE-L, METEOR.

The figures are those of pycocoevalcap 1.2, which the COCO leaderboard and big_vision use, to the
oddity: they are what published numbers are made of. All are scores of a whole split, since CIDEr
weighs a word by how many images have it in their references, and BLEU divides once; what one image
gets is returned too where there is such a thing. Captions are cut into words by ptb.py.

Sources: CIDEr-D arXiv:1411.5726; BLEU, Papineni et al., ACL 2002; ROUGE-L, Lin, ACL 2004 workshop;
METEOR, Denkowski and Lavie, WMT 2014.
"""

import collections
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pgjax.errors import UserError
from pgjax.metrics import ptb

MAX_N = 4  # Words in the longest n-gram, of CIDEr and of BLEU.
CIDER_SIGMA = 6.0  # Words; how fast CIDEr-D falls with the difference in length.
ROUGE_BETA = 1.2  # How much more recall weighs than precision.
METRICS = ("cider", "bleu", "rouge", "meteor")


class Captions(NamedTuple):
  """Predictions and their references, as words separated by spaces (`tokenized` makes them)."""

  predictions: list[str]
  references: list[list[str]]  # At least one for each prediction.


class Scores(NamedTuple):
  """Of the split by name, and what single images got, in the order of the predictions."""

  of_split: dict[str, float]
  of_images: dict[str, list[float]]  # Only of the metrics that have such a number.


def by_image(
  ids: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[str], list[str], list[list[str]]]:
  """Rows of the same image put together, as the reference does: (ids, predictions, references).

  The last prediction of an image stays, and its references are added up. Order is that of the
  first appearance.
  """
  last: dict[str, str] = {}
  merged: dict[str, list[str]] = {}
  for key, prediction, captions in zip(ids, predictions, references, strict=True):
    last[key] = prediction
    merged.setdefault(key, []).extend(captions)
  return list(last), list(last.values()), list(merged.values())


def tokenized(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Captions:
  """Both sides cut into words alike."""
  for i, captions in enumerate(references):
    if isinstance(captions, str) or not captions:
      raise UserError(
        f"Caption {i} has the references {captions!r}; it needs a list of at least one text. Leave"
        " images without references out of the split."
      )
  if len(predictions) != len(references):
    raise UserError(f"{len(predictions)} captions cannot be scored with {len(references)} lists.")
  return Captions(
    [ptb.words(prediction) for prediction in predictions],
    [[ptb.words(caption) for caption in captions] for captions in references],
  )


def scores(
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  metrics: Iterable[str] = ("cider",),
) -> Scores:
  """The named METRICS of raw captions, one prediction for each image (see `by_image`).

  Names of the split: cider, bleu-1 ... bleu-4, rouge, meteor. Papers print CIDEr times 100.
  """
  metrics = list(metrics)
  for name in metrics:
    if name not in METRICS:
      raise UserError(f"There is no caption metric {name!r}; there are: {', '.join(METRICS)}.")
  if not predictions:
    return Scores({}, {})
  captions = tokenized(predictions, references)
  of_split: dict[str, float] = {}
  of_images: dict[str, list[float]] = {}
  if "bleu" in metrics:
    of_split |= bleu(captions)
  for name, of_each in (("cider", cider), ("rouge", rouge), ("meteor", meteor)):
    if name in metrics:
      of_split[name], of_images[name] = of_each(captions)
  return Scores(of_split, of_images)


def _ngrams(words: Sequence[str]) -> list[collections.Counter]:
  """Counts of the runs of 1, 2, ... MAX_N words."""
  return [
    collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    for n in range(1, MAX_N + 1)
  ]


def cider(captions: Captions) -> tuple[float, list[float]]:
  """CIDEr-D: ten times the mean over n of a clipped cosine of tf-idf vectors, mean over references.

  With g(w) = count of w times log(images / images whose references have w, at least 1):
  sum over w of min(g_prediction, g_reference) g_reference / (|g_prediction| |g_reference|), times
  exp(-(length difference)^2 / (2 sigma^2)). The length is the number of 2-grams, as in the original
  program, not of words. A split of one image scores 0: every logarithm is 0.
  """
  seen: collections.Counter = collections.Counter()
  cooked = []
  for prediction, references in zip(*captions, strict=True):
    counted = [_ngrams(reference.split()) for reference in references]
    seen.update({gram for each in counted for of_n in each for gram in of_n})
    cooked.append((_ngrams(prediction.split()), counted))
  log_images = math.log(len(cooked))
  weight = {gram: log_images - math.log(count) for gram, count in seen.items()}

  def vectors(counted):
    vector = [{g: c * weight.get(g, log_images) for g, c in of_n.items()} for of_n in counted]
    norms = [math.sqrt(sum(value * value for value in of_n.values())) for of_n in vector]
    return vector, norms, sum(counted[1].values())

  of_images = []
  for prediction, references in cooked:
    mine = vectors(prediction)
    total = math.fsum(_clipped_cosines(mine, vectors(reference)) for reference in references)
    of_images.append(10.0 * total / MAX_N / len(references))
  return math.fsum(of_images) / len(of_images), of_images


def _clipped_cosines(mine, theirs) -> float:
  """Sum over n; `mine` and `theirs` are (vectors, norms, length)."""
  (vector, norms, length), (other, other_norms, other_length) = mine, theirs
  total = 0.0
  for n in range(MAX_N):
    if norms[n] and other_norms[n]:
      shared = sum(min(v, other[n][g]) * other[n][g] for g, v in vector[n].items() if g in other[n])
      total += shared / (norms[n] * other_norms[n])
  return total * math.exp(-((length - other_length) ** 2) / (2 * CIDER_SIGMA**2))


def bleu(captions: Captions) -> dict[str, float]:
  """BLEU-1 to BLEU-4 of the corpus: geometric mean of clipped precisions, brevity penalty.

  The reference length of an image is the one nearest to the prediction's, the shorter of two. The
  tiny constants of the original program keep 0/0 at 0.
  """
  tiny, small = 1e-15, 1e-9
  right, guessed, length, reference_length = [0] * MAX_N, [0] * MAX_N, 0, 0
  for prediction, references in zip(*captions, strict=True):
    words, others = prediction.split(), [reference.split() for reference in references]
    length += len(words)
    reference_length += min((abs(len(r) - len(words)), len(r)) for r in others)[1]
    counted = [_ngrams(other) for other in others]
    for n, grams in enumerate(_ngrams(words)):
      most = collections.Counter()
      for each in counted:
        most |= each[n]
      right[n] += (grams & most).total()
      guessed[n] += max(0, len(words) - n)
  ratio = (length + tiny) / (reference_length + small)
  penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
  product, values = 1.0, {}
  for n in range(MAX_N):
    product *= (right[n] + tiny) / (guessed[n] + small)
    values[f"bleu-{n + 1}"] = product ** (1 / (n + 1)) * penalty
  return values


def rouge(captions: Captions) -> tuple[float, list[float]]:
  """ROUGE-L: F of the longest common subsequence, beta 1.2, mean over images.

  Precision and recall are each the best over the references, so they may come from different ones.
  """
  of_images = []
  for prediction, references in zip(*captions, strict=True):
    words, others = prediction.split(" "), [reference.split(" ") for reference in references]
    common = [_longest_common(words, other) for other in others]
    precision = max(common) / len(words)
    recall = max(c / len(other) for c, other in zip(common, others, strict=True))
    weighted = recall + ROUGE_BETA**2 * precision
    of_images.append((1 + ROUGE_BETA**2) * precision * recall / weighted if weighted else 0.0)
  return math.fsum(of_images) / len(of_images), of_images


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
  above = [0] * (len(b) + 1)
  for word in a:
    row = [0]
    for j, other in enumerate(b):
      row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    above = row
  return above[-1]


def meteor(captions: Captions) -> tuple[float, list[float]]:
  """METEOR 1.5 in English, by the Java program that pycocoevalcap brings; both must be there."""
  if shutil.which("java") is None:
    raise UserError(
      "METEOR is a Java program, and there is no `java` on the PATH. Install a Java runtime, or"
      " leave meteor out of the metrics."
    )
  try:
    from pycocoevalcap.meteor import meteor as program
  except ImportError as error:
    raise UserError(
      "METEOR needs the package pycocoevalcap, which is not installed. Run `pip install"
      " pycocoevalcap==1.2` (104 MB), or leave meteor out of the metrics."
    ) from error
  truths: Mapping[int, list[str]] = dict(enumerate(captions.references))
  answers = {i: [prediction] for i, prediction in enumerate(captions.predictions)}
  of_split, of_images = program.Meteor().compute_score(truths, answers)
  return of_split, list(of_images)
