"""How close is a caption to people's captions of the same image? CIDEr-D, BLEU, ROUGE-L, METEOR.

The figures are exactly those of pycocoevalcap 1.2, which the COCO leaderboard and big_vision use,
for a whole split, and for single images where the metric allows. ptb.py splits captions into words.
`length` describes long captions, as PaliGemma 2's DOCCI table does (arXiv:2412.03555, table 6).

Sources: CIDEr-D arXiv:1411.5726; BLEU, Papineni et al., ACL 2002; ROUGE-L, Lin, ACL 2004 workshop;
METEOR, Denkowski and Lavie, WMT 2014.
"""

import collections
import math
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from etils import epy

from pgjax.errors import UserError

with epy.lazy_imports():  # Its patterns take 40 ms to compile.
  from pgjax.metrics import ptb

MAX_N = 4  # Words in the longest n-gram, of CIDEr and of BLEU.
CIDER_SIGMA = 6.0  # In 2-grams; how fast CIDEr-D falls with the difference in length.
ROUGE_BETA = 1.2  # The weight of recall relative to precision.
METRICS = ("cider", "bleu", "rouge", "meteor", "length")
# A sentence ends with its mark, closing quotes or brackets, and a space; "3.5" does not end one.
_MARKS, _CLOSING = r".!?\u3002\uff01\uff1f", r"\"'\u201d\u2019)\]"
_SENTENCE = re.compile(rf"\S.*?(?:[{_MARKS}]+[{_CLOSING}]*(?=\s|$)|$)", re.DOTALL)


class Captions(NamedTuple):
  """Predictions and their references, as words separated by spaces."""

  predictions: list[str]
  references: list[list[str]]  # At least one for each prediction.


class CaptionScores(NamedTuple):
  """Scores of the split by name, and of its images in the order of the predictions."""

  of_split: dict[str, float]
  of_images: dict[str, list[float]]  # Only of the metrics that score single images.


def by_image(
  ids: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[str], list[str], list[list[str]]]:
  """(ids, predictions, references) of images: the last prediction and all references of each."""
  last: dict[str, str] = {}
  merged: dict[str, list[str]] = {}
  for key, prediction, captions in zip(ids, predictions, references, strict=True):
    last[key] = prediction
    merged.setdefault(key, []).extend(captions)
  return list(last), list(last.values()), list(merged.values())


def _tokenized(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Captions:
  for i, captions in enumerate(references):
    if isinstance(captions, str) or not captions:
      raise UserError(
        f"Caption {i} has the references {captions!r}; it needs a list of at least one text. Remove"
        " images without references from the split."
      )
  if len(predictions) != len(references):
    raise UserError(f"{len(predictions)} captions cannot be scored with {len(references)} lists.")
  tokenized = [[ptb.words(caption) for caption in captions] for captions in references]
  return Captions([ptb.words(prediction) for prediction in predictions], tokenized)


def scores(
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  metrics: Iterable[str] = ("cider",),
) -> CaptionScores:
  """The named METRICS of raw captions, one prediction for each image (see `by_image`).

  Names of the split: cider, bleu-1 ... bleu-4, rouge, meteor; of `length`, chars and sents. Papers
  print CIDEr times 100.
  """
  metrics = list(metrics)
  if unknown := [name for name in metrics if name not in METRICS]:
    raise UserError(f"There is no caption metric {unknown[0]!r}; there are: {', '.join(METRICS)}.")
  if not predictions:
    return CaptionScores({}, {})
  captions = _tokenized(predictions, references)
  of_split = bleu(captions) if "bleu" in metrics else {}
  of_images: dict[str, list[float]] = {}
  for name, of_each in (("cider", cider), ("rouge", rouge), ("meteor", meteor)):
    if name in metrics:
      of_split[name], of_images[name] = of_each(captions)
  if "length" in metrics:
    of_split |= length(predictions)
  return CaptionScores(of_split, of_images)


def _ngrams(words: Sequence[str]) -> list[collections.Counter]:
  """Counts of n-grams of 1, 2, ... MAX_N words."""
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
  frequency: collections.Counter = collections.Counter()
  images = []
  for prediction, references in zip(*captions, strict=True):
    counted = [_ngrams(reference.split()) for reference in references]
    frequency.update({gram for each in counted for of_n in each for gram in of_n})
    images.append((_ngrams(prediction.split()), counted))
  log_images = math.log(len(images))
  weight = {gram: log_images - math.log(count) for gram, count in frequency.items()}

  def vectors(counted):
    vector = [{g: c * weight.get(g, log_images) for g, c in of_n.items()} for of_n in counted]
    norms = [math.sqrt(sum(value * value for value in of_n.values())) for of_n in vector]
    return vector, norms, sum(counted[1].values())

  of_images = []
  for prediction, references in images:
    predicted = vectors(prediction)
    total = math.fsum(_clipped_cosines(predicted, vectors(reference)) for reference in references)
    of_images.append(10.0 * total / MAX_N / len(references))
  return math.fsum(of_images) / len(of_images), of_images


def _clipped_cosines(predicted, reference) -> float:
  """Sum over n; both arguments are (vectors, norms, length)."""
  (vector, norms, length), (other, other_norms, other_length) = predicted, reference
  total = 0.0
  for n in range(MAX_N):
    if norms[n] and other_norms[n]:
      shared = sum(min(v, other[n][g]) * other[n][g] for g, v in vector[n].items() if g in other[n])
      total += shared / (norms[n] * other_norms[n])
  return total * math.exp(-((length - other_length) ** 2) / (2 * CIDER_SIGMA**2))


def bleu(captions: Captions) -> dict[str, float]:
  """BLEU-1 to BLEU-4 of the corpus: geometric mean of clipped precisions, brevity penalty.

  An image's reference length is the one nearest to the prediction's, the shorter of two. The
  original program's tiny constants make 0/0 equal 0.
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
  """ROUGE-L: F of the longest common subsequence, beta 1.2, mean over images."""
  of_images = []
  for prediction, references in zip(*captions, strict=True):
    words, others = prediction.split(" "), [reference.split(" ") for reference in references]
    common = [_longest_common(words, other) for other in others]
    precision = max(common) / len(words)  # The best references of precision and recall may differ.
    recall = max(c / len(other) for c, other in zip(common, others, strict=True))
    weighted = recall + ROUGE_BETA**2 * precision
    of_images.append((1 + ROUGE_BETA**2) * precision * recall / weighted if weighted else 0.0)
  return math.fsum(of_images) / len(of_images), of_images


def length(predictions: Sequence[str]) -> dict[str, float]:
  """Mean characters and sentences of the captions as generated; the papers' #char and #sent.

  A text without an end mark is one sentence; an abbreviation's full stop counts as an end.
  """
  count = max(1, len(predictions))
  return dict(
    chars=sum(map(len, predictions)) / count,
    sents=sum(len(_SENTENCE.findall(text)) for text in predictions) / count,
  )


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
  above = [0] * (len(b) + 1)
  for word in a:
    row = [0]
    for j, other in enumerate(b):
      row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    above = row
  return above[-1]


def require(metrics: Iterable[str]) -> Any:
  """METEOR's module if it is among the metrics; raises UserError if it or Java is missing."""
  if "meteor" not in metrics:
    return None
  if shutil.which("java") is None:
    raise UserError(
      "METEOR is a Java program, and there is no `java` on the PATH. Install a Java runtime, or"
      " remove meteor from the metrics."
    )
  try:
    from pycocoevalcap.meteor import meteor as program
  except ImportError as error:
    raise UserError(
      "METEOR needs the package pycocoevalcap, which is not installed. Run `pip install"
      " pycocoevalcap==1.2` (104 MB), or remove meteor from the metrics."
    ) from error
  return program


def meteor(captions: Captions) -> tuple[float, list[float]]:
  """METEOR 1.5 in English, by the Java program in pycocoevalcap; both must be installed."""
  program = require(["meteor"])
  answers = {i: [prediction] for i, prediction in enumerate(captions.predictions)}
  references = dict(enumerate(captions.references))
  of_split, of_images = program.Meteor().compute_score(references, answers)
  return of_split, list(of_images)
