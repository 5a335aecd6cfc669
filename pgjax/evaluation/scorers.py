"""What is an answer worth? Each type of evaluator has a scorer, which evaluator.py calls.

A scorer turns an example and its generated answer into fields of a row of predictions.jsonl, among
them `scores`, {name: (sum, count)}, and `score`, the number that a report sorts by. `of_split`
computes the metrics of a whole split (CIDEr, average precision) from its rows. pgjax/metrics and
docs/scores.md define the metrics.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pgjax.data import locations
from pgjax.errors import UserError
from pgjax.evaluation import instances
from pgjax.formats import seg_vae_npz
from pgjax.metrics import caption, closed, detection, segmentation, structured, text, vqa
from pgjax.models import seg_vae

GROUP_COLUMNS = (
  "question_type",
  "answer_type",
  "type",
  "label",
)  # Copied to rows if pp keeps them.
# Copied to rows if pp keeps them: what a test server, or another program, knows a row by.
ID_COLUMNS = ("question_id", "image/id")
# The names of a column in the data of big_vision's builders.
_ALSO = {"mask": ("mask", "objects/mask"), "box": ("box", "objects/bbox")}
MATCH_IOU = 0.5  # The least IoU of a matching box in a row's own score.
LEAST_LABEL_SCORE = 0.5  # Of an object that counts as one, not as noise, if its label is its score.
ScoredRow = dict[str, Any]


class Generated(NamedTuple):
  """A generated answer; tokens after the eos are 0."""

  text: str
  tokens: np.ndarray
  logp: np.ndarray


class Scorer(NamedTuple):
  """The scorer of one type; it needs `columns` in the data besides `evals.*.answer`."""

  row: Callable[..., ScoredRow]  # Of section, tokenizer, example, Generated.
  columns: tuple[str, ...] = ()
  of_split: Callable[[Any, Sequence[ScoredRow]], dict[str, float]] = lambda section, rows: {}


def of(section: Any) -> Scorer:
  """The scorer of an entry of config.evals; raises if its weights or packages are missing."""
  if section.type in ("segmentation", "instances"):
    seg_vae_npz.load(section.mask_weights)
  if section.type in ("detection", "instances"):
    detection.require()
  unknown = sorted(set(section.caption_metrics) - set(caption.METRICS))
  if section.type == "caption" and unknown:
    known = ", ".join(caption.METRICS)
    raise UserError(f"caption_metrics names {unknown[0]!r}; there are: {known}.")
  if section.type == "caption":
    caption.require(section.caption_metrics)
  return SCORERS[section.type]


def missing(scorer: Scorer, columns: Mapping[str, Any]) -> list[str]:
  """The columns that a scorer needs and an example lacks."""
  return [name for name in scorer.columns if not any(n in columns for n in _names(name))]


def _names(column: str) -> tuple[str, ...]:
  return _ALSO.get(column, (column,))


def plain(value: Any) -> Any:
  """Without numpy types, for JSON."""
  return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _reference(section, example) -> str | list[str]:
  """The true answer or a list of them; data without answers is decoded but not scored."""
  value = plain(example.get(section.answer, []))
  if isinstance(value, list | tuple):
    return [_answer_text(section, v) for v in value if v is not None]
  return [] if value is None else _answer_text(section, value)


def _answer_text(section, value) -> str:
  if isinstance(value, str | int | float):
    return str(value)
  raise UserError(
    f"the true answer in {section.answer!r} must be a text, a number, or a list of them, not"
    f" {value!r}"
  )


def _if_answered(row: Callable[..., ScoredRow], *columns: str) -> Callable[..., ScoredRow]:
  """Omits the score of an example without a true answer.

  The answer is in `columns`, none of which may be null, or else in evals.*.answer, where a list
  without a text is no answer either.
  """

  @functools.wraps(row)
  def of_example(section, tokenizer, example, generated):
    given = [name for column in columns for name in _names(column) if name in example]
    if any(example[name] is None for name in given):
      return dict(answer=None, score=None, scores={})
    if not columns and section.answer in example and _reference(section, example) == []:
      return dict(answer=[], score=None, scores={})
    return row(section, tokenizer, example, generated)

  return of_example


def has_no_answer(section: Any, row: ScoredRow) -> bool:
  """Whether a row of this evaluator could not be scored for want of a true answer."""
  return section.type != "predictions" and row.get("answer", "") in (None, [])


def _given(example, name: str) -> Any:
  """A column that may not be null."""
  if (value := plain(example[name])) is None:
    raise UserError(f"{name!r} is null; each example needs it")
  return value


def _one(section, example) -> str:
  """The true answer, which must be exactly one."""
  value = _reference(section, example)
  values = [value] if isinstance(value, str) else value
  if len(values) != 1:
    raise UserError(f"Evaluators of type {section.type!r} take one answer, not {value}.")
  return values[0]


def _row(answer: Any, scores: Mapping[str, text.Score], main: str, **more: Any) -> ScoredRow:
  value, count = scores[main]
  return dict(answer=answer, score=value / count if count else None, scores=scores, **more)


def _of_one(score: Callable[[str, str], Mapping[str, text.Score]], main: str) -> Scorer:
  """The scorer of a type with exactly one true answer and no option."""

  def row(section, tokenizer, example, generated):
    answer = _one(section, example)
    return _row(answer, score(generated.text, answer), main)

  return Scorer(_if_answered(row))


def _vqa(section, tokenizer, example, generated):
  answer = _reference(section, example)
  return _row(answer, vqa.vqa(generated.text, answer, to_lower=section.to_lower), "acc")


def _vqav2(section, tokenizer, example, generated):
  answer = _reference(section, example)
  answers = [answer] if isinstance(answer, str) else answer
  kind = example.get("answer_type") or None
  more = {} if kind is None else dict(answer_type=str(kind))
  scores = vqa.vqav2(generated.text, answers, more.get("answer_type"))
  return _row(answers, scores, "acc", **more)


def _chartqa(section, tokenizer, example, generated):
  answer = _one(section, example)
  scores = vqa.chartqa(generated.text, answer, to_lower=section.to_lower)
  return _row(answer, scores, "relaxed_acc")


def _choice(section, tokenizer, example, generated):
  answer, choices = _one(section, example), [str(c) for c in _given(example, "choices")]
  pair = {} if example.get("pair") is None else dict(pair=str(plain(example["pair"])))
  return _row(
    answer, closed.choice(generated.text, answer, choices), "acc", choices=choices, **pair
  )


def _choice_pairs(section, rows):
  """MMVP's score, of rows with a column `pair`."""
  paired = [row for row in rows if "pair" in row]
  return closed.pairs([row["pair"] for row in paired], [row["score"] == 1 for row in paired])


def _tallyqa(section, tokenizer, example, generated):
  answer, simple = _one(section, example), plain(example.get("issimple", -1))
  is_simple = None if simple in (-1, None) else bool(simple)
  return _row(answer, closed.tallyqa(generated.text, answer, is_simple=is_simple), "acc")


def _rsvqa(section, tokenizer, example, generated):
  answer, kind = _reference(section, example), str(_given(example, "question_type"))
  scores = closed.rsvqa(generated.text, answer, kind, to_lower=section.to_lower)
  return _row(answer, scores, "acc_any", question_type=kind)


def _rsvqa_averages(section, rows):
  return closed.rsvqa_averages(text.mean(row["scores"] for row in rows))


def _predictions(section, tokenizer, example, generated):
  answer = plain(example.get(section.answer))  # Whatever it is: it is not scored.
  if isinstance(answer, list):
    return dict(answer=[str(v) for v in answer] or None, score=None, scores={})
  return dict(answer=None if answer is None else str(answer) or None, score=None, scores={})


def _caption(section, tokenizer, example, generated):
  """Scored as a split; rows with the same `image_id` (else id) are of one image."""
  answers = _reference(section, example)
  answers = [answers] if isinstance(answers, str) else answers
  ids = (example.get(name) for name in ("image_id", "image/id", "id"))
  if (image := next((plain(value) for value in ids if value is not None), None)) is None:
    raise UserError(
      "captions are scored by image, and the example has neither 'image_id' nor 'id'; add one of"
      " them to keep(...)"
    )
  return dict(answer=answers, score=None, scores={}, image_id=str(image))


def _caption_scores(section, rows):
  rows = [row for row in rows if row["answer"]]  # Test splits may have no references.
  first: dict[str, ScoredRow] = {}
  for row in rows:
    other = first.setdefault(row["image_id"], row)
    if other.get("_sha256") != row.get("_sha256"):
      raise UserError(
        f"The examples {other.get('id')!r} and {row.get('id')!r} have the same image id"
        f" {row['image_id']!r} and different images or prompts, so that only one of their captions"
        " would be scored; give each its own image_id."
      )
  columns = ([row[name] for row in rows] for name in ("image_id", "prediction", "answer"))
  ids, predictions, references = caption.by_image(*columns)
  scores = caption.scores(predictions, references, section.caption_metrics)
  for values in list(scores.of_images.values())[:1]:  # The first metric is a row's own score.
    of_image = dict(zip(ids, values, strict=True))
    for row in rows:
      row["score"] = of_image[row["image_id"]]
  return scores.of_split


def _detection(section, tokenizer, example, generated):
  """The true boxes are in the columns boxes (y0 x0 y1 x1, relative to the image) and labels.

  With confidence="label" all but average precision takes objects whose label is likelier than not.
  """
  parsed = locations.parse_tokens(generated.tokens, generated.logp, tokenizer)
  boxes = [[float(c) for c in box] for box in plain(example["boxes"])]
  labels = [str(label) for label in plain(example["labels"])]
  if any(label is None for label in plain(example["labels"])):
    raise UserError("a label in 'labels' is null; each box needs one")
  by_label = section.confidence == "label"
  objects = [
    dict(box=list(o.box), label=o.label, score=o.label_score if by_label else o.score)
    for o in parsed.objects
  ]
  least = LEAST_LABEL_SCORE if by_label else 0.0
  likely = [o for o in objects if o["score"] >= least]
  hits = _hits(likely, boxes, labels)
  duplicates = locations.num_duplicates([o for o in parsed.objects if o.label_score >= least])
  scores = {
    "f1": (2.0 * hits, len(likely) + len(boxes)),
    "precision": (float(hits), len(likely)),
    "recall": (float(hits), len(boxes)),
    "malformed": (float(parsed.malformed), 1),
    "duplicates": (float(duplicates), 1),
    "repeated": (float(detection.num_repeated(_boxes_of(likely))), 1),
  }
  size = [int(_given(example, name)) for name in ("height", "width")]
  more = dict(objects=objects, truth=dict(boxes=boxes, labels=labels), size=size)
  row = _row(locations.detection_suffix(boxes, labels), scores, "f1", **more)
  return row | dict(score=1.0 if row["score"] is None else row["score"])  # No box, none predicted.


def _hits(objects, boxes, labels) -> int:
  """Objects that match a true box of their label; the most confident match first, each box once."""
  unmatched = list(range(len(boxes)))
  for o in sorted(objects, key=lambda o: -o["score"]):
    candidates = [i for i in unmatched if labels[i] == o["label"]]
    best = max(candidates, key=lambda i: locations.iou(o["box"], boxes[i]), default=None)
    if best is not None and locations.iou(o["box"], boxes[best]) >= MATCH_IOU:
      unmatched.remove(best)
  return len(boxes) - len(unmatched)


def _average_precision(section, rows):
  rows = [row for row in rows if row["answer"] is not None]
  if not rows:
    return {}
  predictions = [_boxes_of(row["objects"]) for row in rows]
  truths = [_boxes(**row["truth"]) for row in rows]
  sizes = [tuple(row["size"]) for row in rows]
  unknown = dict(unknown_class=detection.num_unknown(predictions, truths) / len(rows))
  return detection.average_precision(predictions, truths, sizes) | unknown


def _boxes_of(objects) -> detection.Boxes:
  return _boxes(*([o[name] for o in objects] for name in ("box", "label", "score")))


def _boxes(boxes, labels, scores=None) -> detection.Boxes:
  boxes = np.array(boxes, np.float64).reshape(-1, 4)
  scores = np.ones(len(boxes)) if scores is None else np.array(scores, np.float64)
  return detection.Boxes(boxes, list(labels), scores)


def _segmentation(section, tokenizer, example, generated):
  """Compares the answer's first object to the columns mask [H, W] and box (y0 x0 y1 x1).

  Or to those of RefCOCO's builder, objects/mask [H, W, C] and objects/bbox.
  """
  mask, box = (next(example[n] for n in _names(c) if n in example) for c in ("mask", "box"))
  truth, true_box = np.asarray(mask), [float(c) for c in plain(box)]
  truth = truth[..., 0] if truth.ndim == 3 else truth
  codes, box = _first_mask(generated.tokens, tokenizer)
  mask = None
  if codes is not None:
    params = seg_vae_npz.load(section.mask_weights)
    mask = np.asarray(seg_vae.decode(params, np.array([codes])))[0, :, :, 0]
  scores = segmentation.referring(mask, box, truth > 0, true_box)
  objects = [] if box is None else [dict(box=list(box), codes=list(codes), label="")]
  return _row(locations.loc_string(true_box), scores, "miou", objects=objects)


def _first_mask(tokens, tokenizer):
  """(codes, box) of the first twenty tokens, as in the reference, or (None, None)."""
  first_loc, first_seg = (tokenizer.encode(piece)[0] for piece in ("<loc0000>", "<seg000>"))
  locs = [int(token) - first_loc for token in tokens[:4]]
  segs = [int(token) - first_seg for token in tokens[4:20]]
  in_range = all(0 <= i < locations.BINS for i in locs)
  in_range = in_range and all(0 <= i < locations.CODEBOOK for i in segs)
  complete = in_range and len(segs) == locations.NUM_CODES
  if not complete or locs[2] <= locs[0] or locs[3] <= locs[1]:
    return None, None
  return segs, [i / (locations.BINS - 1) for i in locs]


SCORERS = {
  "vqa": Scorer(_if_answered(_vqa)),
  "vqav2": Scorer(_if_answered(_vqav2)),
  "chartqa": Scorer(_if_answered(_chartqa)),
  "choice": Scorer(_if_answered(_choice), ("choices",), _choice_pairs),
  "science_qa": _of_one(closed.science_qa, "acc"),
  "pope": _of_one(closed.pope, "acc"),
  "tallyqa": Scorer(_if_answered(_tallyqa)),
  "rsvqa": Scorer(_if_answered(_rsvqa), ("question_type",), _rsvqa_averages),
  "json": _of_one(structured.scores, "field_f1"),
  "caption": Scorer(_caption, (), _caption_scores),
  "detection": Scorer(
    _if_answered(_detection, "boxes", "labels"),
    ("boxes", "labels", "height", "width"),
    _average_precision,
  ),
  "segmentation": Scorer(_if_answered(_segmentation, "mask", "box"), ("mask", "box")),
  "instances": Scorer(
    _if_answered(instances.row, *instances.COLUMNS[:3]),
    instances.COLUMNS,
    instances.average_precision,
  ),
  "predictions": Scorer(_predictions),
}
