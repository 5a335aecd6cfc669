"""How each type of evaluator scores an answer and a split."""

import math
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pgjax.config import schema
from pgjax.data import locations, pipeline, tokenizer as tokenizer_lib
from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.evaluation import evaluator, report, report_split, scorers
from pgjax.formats import seg_vae_npz
from pgjax.metrics import text
from pgjax.models import seg_vae


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.load("tiny")


def scored(kind, answer, example, tokenizer, *, logp=-0.1, **fields):
  """The row of an answer given as text."""
  defaults = dict(answer="answer", to_lower=False, caption_metrics=("cider",), mask_weights="oi")
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
  section = SimpleNamespace(type="detection", caption_metrics=(), mask_weights="oi")
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
