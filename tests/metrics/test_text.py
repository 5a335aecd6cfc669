"""Scores against values worked out by hand from the definitions in big_vision's evaluators."""

import math

import pytest

from pgjax.metrics import text, vqa


def value(score, name):
  total, count = score[name]
  assert count == 1
  return total


def test_levenshtein_counts_edits_of_code_points():
  assert text.levenshtein("kitten", "sitting") == 3
  assert text.levenshtein("", "abc") == 3
  assert text.levenshtein("é", "e") == 1  # One code point, not two bytes.


@pytest.mark.parametrize(
  ("prediction", "target", "expected"),
  [
    ("abc", "abc", 1.0),
    ("abd", "abc", 1 - 1 / 3),
    ("ab", "abcd", 0.0),  # Distance exactly one half: strictly less is needed.
    ("abc", "abcde", 1 - 2 / 5),
    ("", "", 1.0),
    ("x", "", 0.0),
    ("", "x", 0.0),
    ("Abc", "abc", 1 - 1 / 3),  # Case counts unless the caller lower-cases.
  ],
)
def test_anls(prediction, target, expected):
  assert text.anls(prediction, target) == pytest.approx(expected, abs=1e-15)


def test_vqa_with_one_answer_is_equality():
  assert vqa.vqa("yes", "yes") == {"acc": (1.0, 1), "acc_any": (1.0, 1), "anls": (1.0, 1)}
  assert value(vqa.vqa("yes ", "yes"), "acc") == 0  # Nothing is stripped.
  assert value(vqa.vqa("Yes", "yes"), "acc") == 0
  assert value(vqa.vqa("Yes", "yes", to_lower=True), "acc") == 1


@pytest.mark.parametrize(
  ("matches", "acc", "acc_any"), [(0, 0, 0), (1, 1 / 3, 1), (3, 1, 1), (4, 1, 1)]
)
def test_vqa_with_many_answers_needs_three_matches(matches, acc, acc_any):
  score = vqa.vqa("red", ["red"] * matches + ["blue"] * (10 - matches))
  assert value(score, "acc") == pytest.approx(acc)
  assert value(score, "acc_any") == acc_any


def test_a_list_of_one_answer_is_still_a_list():
  assert value(vqa.vqa("red", ["red"]), "acc") == pytest.approx(1 / 3)


def test_vqa_takes_the_nearest_reference_for_anls():
  assert value(vqa.vqa("abd", ["zzz", "abc"]), "anls") == pytest.approx(2 / 3)


def test_no_reference_scores_nothing():
  assert text.mean([vqa.vqa("red", [])]) == {}


@pytest.mark.parametrize(
  ("prediction", "target", "expected"),
  [
    ("105", "100", True),  # 5% is inside,
    ("105.1", "100", False),  # and no more than that.
    ("95", "100", True),
    ("-5", "-5.2", True),
    ("2010", "2015", True),  # Years are numbers.
    ("50%", "50", False),  # 0.5 against 50.
    ("50%", "0.5", True),
    ("50%%", "0.5", True),  # All trailing signs go.
    ("0", "0", True),
    ("0.0", "0", False),  # A zero target needs the same string.
    ("0.001", "0", False),
    ("1,000", "1000", False),  # No number, so text against text.
    ("$5", "5", False),
    (" 5 ", "5", True),  # float() takes spaces,
    ("1e2", "100", True),  # exponents
    ("1_000", "1000", True),  # and underscores.
    ("nan", "5", False),
    ("nan", "nan", False),  # NaN is a number, and equal to nothing.
    ("blue", "5", False),
    ("blue", "blue", True),
    ("%", "%", True),
  ],
)
def test_relaxed_match(prediction, target, expected):
  assert vqa.relaxed_match(prediction, target) is expected


def test_chartqa_lowers_both_sides_and_reports_exact_match_separately():
  assert vqa.chartqa("Yes", "yes") == {"acc": (1.0, 1), "relaxed_acc": (1.0, 1)}
  assert vqa.chartqa("103", "100") == {"acc": (0.0, 1), "relaxed_acc": (1.0, 1)}
  assert value(vqa.chartqa("Yes", "yes", to_lower=False), "relaxed_acc") == 0


def test_perplexity_is_a_mean_over_examples():
  scores = [text.perplexity(6.0, 3.0), text.perplexity(1.0, 1.0), text.perplexity(0.0, 0.0)]
  assert text.mean(scores) == {"sum": pytest.approx(7 / 3), "avg": pytest.approx(1.0)}


def test_mean_adds_before_it_divides_and_in_any_order():
  scores = [{"acc": (1.0, 1)}, {"acc": (0.0, 1), "x": (0.5, 0)}, {"acc": (0.0, 0)}]
  assert text.mean(scores) == {"acc": 0.5}
  parts = [{"acc": (third, 1)} for third in (1 / 3, 0.1, 1e-17, 0.7, 1e16, -1e16)]
  assert text.mean(parts) == text.mean(parts[::-1])
  assert math.isclose(text.mean(parts)["acc"], (1 / 3 + 0.1 + 0.7) / 6)
