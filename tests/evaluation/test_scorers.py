"""How each type of evaluator scores an answer and a split."""

import math
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pgjax.config import schema
from pgjax.data import locations, masks, pipeline, tokenizer as tokenizer_lib
from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.evaluation import evaluator, report, report_split, scorers
from pgjax.formats import seg_vae_npz
from pgjax.metrics import detection, text
from pgjax.models import seg_vae


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.load("tiny")


def scored(kind, answer, example, tokenizer, *, logp=-0.1, **fields):
  """The row of an answer given as text."""
  defaults = dict(answer="answer", to_lower=False, caption_metrics=("cider",), mask_weights="oi")
  defaults["confidence"] = "box_and_label"
  section = SimpleNamespace(type=kind, **(defaults | fields))
  tokens = np.array([*tokenizer.encode(answer), tokenizer.eos, 0, 0], np.int32)
  generated = scorers.Generated(answer, tokens, np.where(tokens > 0, logp, 0).astype(np.float32))
  row = scorers.SCORERS[kind].row(section, tokenizer, example, generated)
  return dict(row, prediction=answer)


def means(*rows):
  return text.mean(row["scores"] for row in rows)


def test_every_type_that_a_config_may_name_has_a_scorer():
  assert {*scorers.SCORERS, "perplexity"} == set(schema.EVAL_TYPES)


@pytest.mark.parametrize(
  ("kind", "answer", "example", "score"),
  [
    ("vqa", "cat", dict(answer="cat"), 1),
    ("vqa", "cat", dict(answer=["cat", "cat", "dog"]), 2 / 3),
    ("vqa", "cat", dict(), None),
    ("vqav2", "a cat", dict(answer=["cat"] * 9 + ["dog"], answer_type="other"), 1),
    ("chartqa", "10.4", dict(answer="10"), 1),
    ("chartqa", "10.6", dict(answer=["10"]), 0),
    ("choice", "B", dict(answer="dog", choices=np.array(["cat", "dog"])), 1),
    ("science_qa", "The answer is B.", dict(answer="The answer is A."), 0),
    ("pope", "Yes", dict(answer="yes"), 1),
    ("tallyqa", "three", dict(answer="3", issimple=np.int64(1)), 1),
    ("rsvqa", "Rural", dict(answer=["rural"], question_type="rural_urban"), 0),
    ("json", '{"a": 1, "b": 2}', dict(answer='{"b": 2, "a": 3}'), 0.5),
    ("predictions", "whatever", dict(), None),
  ],
)
def test_the_score_of_a_row(tokenizer, kind, answer, example, score):
  assert scored(kind, answer, example, tokenizer)["score"] == score


def test_pairs_of_choices_are_scored_as_a_split(tokenizer):
  choices = ["open", "closed"]
  given = [("(a)", "open", 7), ("closed", "closed", 7), ("open", "closed", 8), ("x", "open", None)]
  rows = [
    scored("choice", said, dict(answer=answer, choices=choices, pair=pair), tokenizer)
    for said, answer, pair in given
  ]
  assert scorers.SCORERS["choice"].of_split(None, rows) == {"acc_pair": 0.5}
  assert scorers.SCORERS["choice"].of_split(None, rows[3:]) == {}


def test_columns_that_a_report_groups_by_stay_in_the_row(tokenizer):
  vqav2 = scored("vqav2", "no", dict(answer=["no"] * 10, answer_type="yes/no"), tokenizer)
  assert vqav2["answer_type"] == "yes/no"
  assert means(vqav2)["acc/yesno"] == 1
  rows = [
    scored("rsvqa", a, dict(answer="yes", question_type=kind), tokenizer)
    for a, kind in (("yes", "comp"), ("no", "comp"), ("yes", "presence"))
  ]
  scores = scorers.SCORERS["rsvqa"].of_split(None, rows)
  assert scores["acc_avg"] == scores["acc_avg_nonum_hr"] == 0.75
  assert rows[0]["question_type"] == "comp"


def test_captions_are_scored_by_image_and_over_the_split(tokenizer):
  captions = {"1": ["a cat on a mat", "the cat sits"], "2": ["two dogs run in the park"]}
  rows = [
    scored("caption", answer, dict(answer=captions[image], image_id=image), tokenizer)
    for answer, image in (("a cat on a mat", "1"), ("blue", "2"))
  ]
  section = SimpleNamespace(caption_metrics=("cider", "bleu"))
  scores = scorers.SCORERS["caption"].of_split(section, rows)
  assert scores["cider"] == pytest.approx(np.mean([row["score"] for row in rows]))
  assert rows[0]["score"] > 1
  assert rows[1]["score"] == 0
  assert set(scores) == {"cider", "bleu-1", "bleu-2", "bleu-3", "bleu-4"}


@pytest.mark.parametrize("null", [None, [], [None], [None, None]])
@pytest.mark.parametrize("kind", sorted(set(schema.EVAL_TYPES) - {"perplexity"}))
def test_a_null_answer_is_not_scored(tokenizer, kind, null):
  example = dict(answer=null, choices=["a"], question_type="comp", id=1, mask=None, box=None)
  example |= dict(boxes=None, labels=None, height=4, width=4)
  row = scored(kind, "None", example, tokenizer)
  assert row["answer"] in (None, []) or (kind == "predictions" and null)
  assert (row["score"], row["scores"]) == (None, {})
  section = SimpleNamespace(type=kind, caption_metrics=("cider",))
  assert scorers.SCORERS[kind].of_split(section, [row]) in ({}, {"cider": 0.0})
  assert scorers.has_no_answer(section, row) == (kind != "predictions")


def test_a_null_among_answers_is_left_out(tokenizer):
  row = scored("vqa", "None", dict(answer=[None, "yes", None]), tokenizer)
  assert (row["answer"], row["score"]) == (["yes"], 0)
  assert scored("vqav2", "yes", dict(answer=["yes", None]), tokenizer)["score"] == 1
  assert scored("chartqa", "yes", dict(answer=["yes", None]), tokenizer)["score"] == 1
  caption = scored("caption", "a", dict(answer=[None, "a cat"], id=3), tokenizer)
  assert caption["answer"] == ["a cat"]


@pytest.mark.parametrize(
  ("kind", "example", "message"),
  [
    (
      "vqa",
      dict(answer=b"\xff"),
      "in 'answer' must be a text, a number, or a list of them, not b'",
    ),
    ("vqa", dict(answer=[["a"]]), r"must be a text, a number, or a list of them, not \['a'\]"),
    ("choice", dict(answer="a", choices=None), "'choices' is null"),
    ("rsvqa", dict(answer="a", question_type=None), "'question_type' is null"),
    ("caption", dict(answer="a", image_id=None), "neither 'image_id' nor 'id'; add one of them to"),
    (
      "detection",
      dict(boxes=[[0, 0, 1, 1]], labels=[None], height=4, width=4),
      "label in 'labels'",
    ),
    ("detection", dict(boxes=[], labels=[], height=None, width=4), "'height' is null"),
  ],
)
def test_other_nulls_and_bytes_raise(tokenizer, kind, example, message):
  with pytest.raises(UserError, match=message):
    scored(kind, "a", example, tokenizer)


def test_a_null_image_id_or_issimple_is_as_if_missing(tokenizer):
  row = scored("caption", "a", dict(answer="a", image_id=None, id="7"), tokenizer)
  assert row["image_id"] == "7"
  row = scored("tallyqa", "3", dict(answer="3", issimple=None), tokenizer)
  assert "acc/complex" not in row["scores"]


def test_captions_of_one_id_and_two_images_raise(tokenizer):
  section = SimpleNamespace(type="caption", caption_metrics=("cider",))
  rows = [
    dict(scored("caption", "a", dict(answer=["a"], image_id=i), tokenizer), id=n, _sha256=sha)
    for n, (i, sha) in enumerate([("1", "x"), ("1", "x"), ("2", "y")])
  ]
  scorers.SCORERS["caption"].of_split(section, rows)
  rows[2]["image_id"] = "1"
  message = "examples 0 and 2 have the same image id '1' and different images or prompts"
  with pytest.raises(UserError, match=message):
    scorers.SCORERS["caption"].of_split(section, rows)


BOXES = [[0.1, 0.1, 0.5, 0.5], [0.2, 0.6, 0.9, 0.9]]
MISTAKES = ("repeated", "malformed", "unknown_class")
CELLS = dict(boxes=np.array(BOXES), labels=["RBC", "WBC"], height=480, width=640)


def test_true_boxes_as_answer_score_one(tokenizer):
  """Average precision, parsed from the text of an answer, is 1."""
  answer = locations.detection_suffix(BOXES, CELLS["labels"])
  row = scored("detection", answer, CELLS, tokenizer)
  scores = scorers.SCORERS["detection"].of_split(None, [row])
  assert [scores[n] for n in ("AP", "AP50", "AP/RBC")] == pytest.approx([1, 1, 1])
  assert row["score"] == 1
  assert row["objects"][0]["score"] == pytest.approx(math.exp(-0.1 * (1 + _num_label(tokenizer))))


def _num_label(tokenizer):
  return len(tokenizer.encode(" RBC"))


def test_wrong_missing_or_malformed_boxes_lower_the_score(tokenizer):
  loc = locations.loc_string
  far = loc([0.6, 0.0, 0.9, 0.3])
  answer = f"{loc(BOXES[0])} RBC ; {far} WBC ; <loc0001> RBC ; {loc(BOXES[0])} RBC"
  row = scored("detection", answer, CELLS, tokenizer)
  got = means(row)
  assert (got["precision"], got["recall"]) == (1 / 3, 1 / 2)
  assert (got["malformed"], got["duplicates"]) == (1, 1)
  assert row["score"] == pytest.approx(2 / 5)
  nothing = scored("detection", "", CELLS | dict(boxes=[], labels=[]), tokenizer)
  assert nothing["score"] == 1
  both = scorers.SCORERS["detection"].of_split(None, [row, nothing])
  assert both["AP/RBC"] == pytest.approx(1)
  assert both["AP/WBC"] == 0


def test_metrics_and_page_count_boxes_that_repeat_break_or_have_an_unknown_class(tokenizer):
  """Through the evaluator: one of two answers has each mistake."""
  loc = locations.loc_string(BOXES[0])
  words = [f"{loc} RBC ; {loc} RBC ; {loc} RBC ; {loc} zebra ; <loc0001> RBC", f"{loc} RBC"]
  ids = [[*tokenizer.encode(answer), tokenizer.eos] for answer in words]
  tokens = np.zeros((8, len(ids[0])), np.int32)
  for row, those in zip(tokens, ids, strict=False):
    row[: len(those)] = those
  arrays = dict(text=np.zeros((8, 3), np.int32), _mask=np.arange(8) < 2)
  rows = [dict(CELLS, id=i, prefix="detect RBC", _sha256="") for i in range(2)]

  def answers(params, batch):
    return jax.device_put((tokens, np.zeros(tokens.shape)), batch.arrays["_mask"].sharding)

  batches = SimpleNamespace(after=lambda n: [pipeline.EvalBatch(arrays, rows)][n:])
  section = SimpleNamespace(type="detection", caption_metrics=(), confidence="box_and_label")
  opened = evaluator.Evaluator("val", section, None, batches, answers, scorers.of(section))
  mesh = mesh_lib.make_mesh([("data", -1)], jax.devices())
  result = evaluator.run(opened, None, mesh=mesh, tokenizer=tokenizer)
  wrong = {f"val/{name}": result.scores[f"val/{name}"] for name in MISTAKES}
  assert wrong == {"val/repeated": 1, "val/malformed": 0.5, "val/unknown_class": 0.5}
  page = report.page("title", {}, result.scores, [report_split.Split("val", result.rows)])
  for name, value in wrong.items():
    assert f'<th scope="row">{name}</th><td>{report_split.number(value)}</td>' in page


@pytest.fixture
def weights(tmp_path):
  """A file with a small random VQ-VAE."""
  path = tmp_path / "masks.npz"
  seg_vae_npz.save(path, seg_vae.init(jax.random.key(0), width=8, embed_dim=16))
  return str(path)


def test_a_mask_is_decoded_and_compared_with_the_whole_picture(tokenizer, weights):
  codes = list(range(16))
  shown = np.asarray(seg_vae.decode(seg_vae_npz.load(weights), np.array([codes])))[0, :, :, 0] > 0
  assert 0 < shown.mean() < 1
  truth = np.zeros((128, 128, 1), np.uint8)
  truth[32:96, 32:96, 0] = shown  # The box below, pixel for pixel.
  box = [32.2 / 128, 32.2 / 128, 96.2 / 128, 96.2 / 128]
  answer = locations.loc_string(box) + locations.seg_string(codes)
  example = dict(mask=truth, box=np.array(box))
  row = scored("segmentation", answer, example, tokenizer, mask_weights=weights)
  assert row["score"] == pytest.approx(1)
  assert means(row)["boxacc/0.75"] == 1
  for wrong in (answer[:-8], locations.loc_string(box), "a cat", f" {answer}", ""):
    row = scored("segmentation", wrong, example, tokenizer, mask_weights=weights)
    assert row["score"] == 0
    assert means(row)["invalid_share"] == 1


def test_the_confidence_of_a_label_separates_objects_from_noise(tokenizer):
  box = locations.loc_string([0.1, 0.2, 0.5, 0.6])
  answer = f"{box} cat ; {locations.loc_string([0.6, 0.6, 0.9, 0.9])} cat"
  example = dict(boxes=[[0.1, 0.2, 0.5, 0.6]], labels=["cat"], height=100, width=100)
  tokens = np.array([*tokenizer.encode(answer), tokenizer.eos], np.int32)
  logp = np.full(len(tokens), -0.01, np.float32)
  logp[:4] = -30  # The locations of the first are uncertain, and the label of the second.
  logp[len(tokenizer.encode(answer[: answer.rindex(" cat")])) :] = -3
  generated = scorers.Generated(answer, tokens, logp)
  rows = {}
  for confidence in ("label", "box_and_label"):
    section = SimpleNamespace(type="detection", confidence=confidence)
    rows[confidence] = scorers.SCORERS["detection"].row(section, tokenizer, example, generated)
  first, second = (o["score"] for o in rows["label"]["objects"])
  assert first > 0.9 > 0.1 > second
  assert means(rows["label"])["precision"] == 1
  assert means(rows["box_and_label"])["precision"] == 0.5
  for confidence, expected in (("label", 1), ("box_and_label", 0.5)):  # The wrong box is first.
    scores = scorers.SCORERS["detection"].of_split(section, [rows[confidence]])
    assert scores["AP"] == pytest.approx(expected)


def shapes(rng, height=80, width=120):
  """Two polygons as a COCO file has them, with their boxes as shares of the image."""
  left, right = rng.uniform(4, 20, 8), rng.uniform(60, 76, 8)
  outlines = [[[x, 5, x + 35, 8, x + 30, 60, x + 2, 70]] for x in (left[0], right[0])]
  boxes = [
    locations.to_normalised(masks.bounds(o), "coco", width=width, height=height) for o in outlines
  ]
  return dict(
    boxes=[list(b) for b in boxes], labels=["cat", "dog"], segmentations=outlines, height=height,
    width=width,
  )  # fmt: skip


def test_the_true_masks_of_all_objects_score_what_their_codes_can_reach(tokenizer, weights):
  example = shapes(np.random.default_rng(0))
  truth = scored("instances", "", example, tokenizer, mask_weights=weights)
  assert means(truth)["miou"] == means(truth)["recall"] == 0
  objects = truth["answer"].split(locations.SEPARATOR)
  row = scored(
    "instances", locations.SEPARATOR.join(objects[::-1]), example, tokenizer, mask_weights=weights
  )
  assert 0 < means(row)["miou"] == means(row)["best_miou"] == means(truth)["best_miou"]
  assert means(row)["malformed"] == 0
  half = scored("instances", objects[0], example, tokenizer, mask_weights=weights)
  swapped = truth["answer"].replace("cat", "dog", 1)
  other = scored("instances", swapped, example, tokenizer, mask_weights=weights)
  assert means(half)["miou"] + means(other)["miou"] == pytest.approx(means(row)["miou"])
  box = locations.loc_string([0, 0, 1, 1]) + " cat"
  boxes = scored("instances", box, example, tokenizer, mask_weights=weights)
  assert means(boxes) | dict(miou=0, malformed=1) == means(boxes)
  example["segmentations"][0] = None
  with pytest.raises(UserError, match="2 boxes, 2 labels and 1 segmentations"):
    scored("instances", "", example, tokenizer, mask_weights=weights)


def test_average_precision_of_masks_is_coco_s():
  """Full overlap of the boxes with half of the mask is an IoU of 0.5."""
  square = np.zeros((40, 40), bool)
  square[:20, :20] = True
  half = square & (np.arange(40) < 10)
  rows = [
    dict(
      answer="", size=[40, 40],
      truth=dict(boxes=[[0, 0, 0.5, 0.5]], labels=["cat"], rle=[detection.run_lengths(square)]),
      objects=[dict(box=[0, 0, 0.5, 0.5], label="cat", score=0.9, rle=detection.run_lengths(mask))],
    )
    for mask in (square, half)
  ]  # fmt: skip
  of_split = scorers.SCORERS["instances"].of_split
  assert of_split(None, rows[:1])["AP"] == pytest.approx(1)
  scores = of_split(None, rows[1:])
  assert (scores["AP50"], scores["AP75"]) == (pytest.approx(1), 0)


def test_missing_weights_and_unknown_metrics_raise():
  section = SimpleNamespace(type="segmentation", mask_weights="/nowhere.npz", caption_metrics=())
  with pytest.raises(UserError, match=r"weights of masks, '/nowhere\.npz', are not there"):
    scorers.of(section)
  section = SimpleNamespace(type="caption", caption_metrics=("cidre",), mask_weights="oi")
  with pytest.raises(UserError, match="caption_metrics names 'cidre'; there are: cider"):
    scorers.of(section)


@pytest.mark.parametrize(
  ("kind", "module", "message"),
  [
    ("detection", "pycocotools", r"pip install -r requirements-metrics.txt"),
    ("caption", "pycocoevalcap", r"pip install pycocoevalcap==1.2"),
  ],
)
def test_a_missing_package_is_reported_before_anything_is_decoded(
  monkeypatch, kind, module, message
):
  monkeypatch.setattr("shutil.which", lambda name: name)
  for name in [name for name in sys.modules if name.split(".")[0] == module]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, module, None)
  section = SimpleNamespace(type=kind, caption_metrics=["cider", "meteor"])
  with pytest.raises(UserError, match=message):
    scorers.of(section)
  section = SimpleNamespace(type="caption", caption_metrics=["cider"])
  assert scorers.of(section) is scorers.SCORERS["caption"]
