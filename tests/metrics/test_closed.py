"""The official VQA accuracy, multiple choice, POPE, counting and RSVQA, by hand and as recorded."""

import json

import pytest

from pgjax.errors import UserError
from pgjax.metrics import closed, text, vqa, vqa_official


def acc(prediction, references, answer_type=None):
  return vqa.vqav2(prediction, references, answer_type)["acc"][0]


@pytest.mark.parametrize(
  ("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)]
)
def test_vqav2_leaves_each_reference_out_in_turn(matches, expected):
  # With 3 matches: seven times min(1, 3/3), and three times 2/3.
  references = ["red"] * matches + [f"color {i}" for i in range(10 - matches)]
  assert acc("red", references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
  ("references", "expected"),
  [
    (["red"], 1),  # Nobody is left when it is left out: equality.
    (["blue"], 0),
    (["red", "red"], 1),
    (["red", "blue"], 0.5),
    (["red", "red", "red"], 1),
    (["red", "red", "blue"], (1 / 2 + 1 / 2 + 1) / 3),
    (["red", "blue", "green", "grey"], (3 * (1 / 3) + 0) / 4),
  ],
)
def test_vqav2_with_fewer_references_than_ten(references, expected):
  assert acc("red", references) == pytest.approx(expected, abs=1e-12)


def test_vqav2_cleans_only_where_the_references_differ():
  assert acc("The dog.", ["the dog."] * 10) == 0
  assert acc(" the\tdog.\n", ["the dog."] * 10) == 1  # Outer space goes always.
  assert acc("The dog.", ["the dog."] * 9 + ["cat"]) == 1
  assert vqa.cleaned_together("A dog", ["x!", "x!"]) == ("A dog", ["x!", "x!"])
  assert vqa.cleaned_together("A dog", ["x!", "y"]) == ("dog", ["x", "y"])


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    ("Red/Blue", "red blue"),  # A sign becomes a space,
    ("red / blue", "red blue"),  # is deleted next to one,
    ("red/blue / x", "redblue x"),  # everywhere,
    ("1,000 red/blue", "1000 redblue"),  # and so are all where a comma is between digits.
    ("1, 000", "1 000"),
    ("U.S.A.", "usa"),
    ("1.5", "1.5"),
    ("5.", "5"),
    (".5", ".5"),
    ("a man in the hat", "man in hat"),
    ("None", "0"),
    ("ten", "10"),
    ("eleven", "eleven"),
    ("dont", "don't"),
    ("Im", "im"),  # The official table has it in upper case, where it meets nothing.
    ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"),
    ("yall'd've", "y'all'd've"),
    ("'ow'sat", "'ow's'at"),
    ("somebody'd", "somebodyd"),  # The wrong way round, as in the official table.
    ("it's", "it's"),
    ("'quoted'", "'quoted'"),  # An apostrophe is no sign.
    ("co-op", "co op"),
  ],
)
def test_cleaned(answer, expected):
  assert vqa_official.cleaned(answer) == expected


def test_vqav2_equals_the_recorded_official_program(root):
  rows = json.loads((root / "tests/golden/vqa_official.json").read_text())
  assert len(rows) >= 200
  assert len({expected for *_, expected in rows}) > 4
  for prediction, references, answer_type, expected in rows:
    assert acc(prediction, references, answer_type) == pytest.approx(expected, abs=1e-6)


def test_vqav2_by_type_of_answer():
  rows = [("2", ["2"] * 10, "number"), ("no", ["yes"] * 10, "yes/no"), ("a", ["a"] * 10, "other")]
  assert text.mean(vqa.vqav2(*row) for row in rows) == {
    "acc": pytest.approx(2 / 3),
    "acc/number": 1,
    "acc/yesno": 0,
    "acc/other": 1,
  }
  assert set(vqa.vqav2("2", ["2"])) == {"acc"}
  assert text.mean([vqa.vqav2("2", [], "")]) == {}  # The test split: no references and no type.
  with pytest.raises(UserError, match=r"'colour'.*'yes/no', 'number', 'other'"):
    vqa.vqav2("2", ["2"], "colour")


def test_relaxed_match_equals_the_published_rule_in_exact_arithmetic(root):
  rows = json.loads((root / "tests/golden/chartqa.json").read_text())
  assert len(rows) >= 200
  assert 0.2 < sum(expected for *_, expected in rows) / len(rows) < 0.8
  wrong = [row for row in rows if vqa.relaxed_match(row[0], row[1]) is not row[2]]
  assert not wrong


@pytest.mark.parametrize(
  ("prediction", "expected"),
  [
    ("B", (1, 1)),
    ("b", (1, 1)),
    (" (B) ", (1, 1)),
    ("B.", (1, 1)),
    ("b: blue whale", (1, 1)),
    ("(b) Blue Whale", (1, 1)),
    ("Blue whale", (1, 1)),
    ("A", (0, 1)),
    ("red fox", (0, 1)),
    ("B: red fox", (0, 0)),  # Letter and text of different choices.
    ("D", (0, 0)),
    ("blue", (0, 0)),
    ("", (0, 0)),
    ("bA", (0, 0)),
  ],
)
def test_choice_by_letter_or_text(prediction, expected):
  choices = ["Red fox", "Blue whale", "Cat"]
  for answer in ("Blue whale", "B"):
    score = closed.choice(prediction, answer, choices)
    assert (score["acc"][0], score["valid"][0]) == expected


def test_choice_prefers_text_to_letters():
  assert closed.chosen("A", ["B", "A"]) == 1
  with pytest.raises(UserError, match="'dog' is none of the choices"):
    closed.choice("A", "dog", ["cat"])


@pytest.mark.parametrize(
  ("prediction", "acc", "failed"),
  [
    ("The answer is B.", 1, 0),
    ("the ANSWER is b. Because", 1, 0),
    ("The answer is A.", 0, 0),
    ("The answer is B", 0, 1),
    ("So the answer is B.", 0, 1),  # Only at the start.
    ("B", 0, 1),
  ],
)
def test_science_qa(prediction, acc, failed):
  score = closed.science_qa(prediction, "The answer is B.")
  assert score == {"acc": (acc, 1), "parsefail": (failed, 1)}


def test_science_qa_raises_for_an_answer_without_its_sentence():
  with pytest.raises(UserError, match="The answer is X"):
    closed.science_qa("B", "B")


def test_pope_over_a_split():
  rows = [("yes", "yes"), ("Yes", "no"), ("no", "no"), ("No, it is not there.", "yes")]
  rows += [("there is a dog. not a cat", "yes"), ("NO", "no")]  # "NO" is no word of the rule's.
  assert text.mean(closed.pope(*row) for row in rows) == {
    "acc": pytest.approx(3 / 6),
    "valid_percent": pytest.approx(4 / 6),
    "accuracy": pytest.approx(3 / 6),
    "precision": pytest.approx(2 / 4),
    "recall": pytest.approx(2 / 3),
    "f1": pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3)),
    "yes_rate": pytest.approx(4 / 6),
  }


def test_pope_without_a_yes_has_no_precision():
  assert "precision" not in text.mean([closed.pope("no", "no")])
  with pytest.raises(UserError, match="'maybe'"):
    closed.pope("yes", "maybe")


@pytest.mark.parametrize(
  ("prediction", "answer", "names"),
  [
    ("two", "2", {"acc", "acc/count_2"}),
    ("None", "0", {"acc", "acc/count_0"}),
    ("Twenty", "20", {"acc", "acc/count_20"}),  # The original fails above 15.
    ("137", "137", {"acc", "acc/count_137"}),
    ("many", "many", {"acc"}),
  ],
)
def test_tallyqa_counts(prediction, answer, names):
  assert closed.tallyqa(prediction, answer) == dict.fromkeys(names, (1, 1))


def test_tallyqa_by_kind():
  assert closed.tallyqa("3", "4", is_simple=True) == dict.fromkeys(
    ("acc", "acc/simple", "acc/count_4"), (0, 1)
  )
  assert "acc/complex" in closed.tallyqa("3", "4", is_simple=False)
  assert closed.tallyqa("twenty-one", "21")["acc"] == (0, 1)
  assert closed.tallyqa("3.0", "3")["acc"] == (0, 1)


def test_rsvqa_by_type_and_on_average():
  rows = [("Yes", ["yes"], "presence"), ("no", ["yes"], "presence"), ("0", ["1"], "count")]
  rows += [("no", ["no"], "comp"), ("rural", ["urban"], "rural_urban")]
  means = text.mean(closed.rsvqa(*row) for row in rows)
  assert means["acc_any"] == pytest.approx(2 / 5)
  assert (means["acc_presence"], means["acc_count"], means["acc_comp"]) == (0.5, 0, 1)
  assert closed.rsvqa_averages(means) == {
    "acc_avg": pytest.approx((0.5 + 0 + 1 + 0) / 4),
    "acc_avg_nonum_lr": pytest.approx((1 + 0.5 + 0) / 3),
    "acc_avg_nonum_hr": pytest.approx((1 + 0.5) / 2),
  }


def test_rsvqa_averages_only_of_types_that_occur():
  assert closed.rsvqa_averages({"acc_comp": 0.5, "acc": 0.1}) == {"acc_avg": 0.5}
  assert closed.rsvqa_averages({"acc": 0.1}) == {}


def test_a_pair_is_right_if_all_its_answers_are():
  keys, right = ["a", "b", "a", "b", "c", "c"], [True, True, True, False, False, False]
  assert closed.pairs(keys, right) == {"acc_pair": 1 / 3}
  assert closed.pairs([], []) == {}
