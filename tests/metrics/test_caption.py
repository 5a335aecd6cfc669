"""Caption scores against pycocoevalcap's, and the words against its Java tokenizer's, as recorded.

The files are written by tests/golden/record_metrics.py.
"""

import json
import math
import shutil
import sys

import pytest

from pgjax.errors import UserError
from pgjax.metrics import caption, ptb


@pytest.fixture(scope="module")
def recorded(root):
  return json.loads((root / "tests/golden/captions_scores.json").read_text())


def test_the_words_are_those_of_the_java_tokenizer(root):
  rows = json.loads((root / "tests/golden/captions_ptb.json").read_text())
  assert len(rows) >= 300
  wrong = [(line, words, ptb.words(line)) for line, words in rows if ptb.words(line) != words]
  assert not wrong


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("The dog's ball isn't red.", "the dog 's ball is n't red"),
    ("We cannot see; they're gonna go", "we can not see they 're gon na go"),
    ("at 7:30 p.m. in the U.S.", "at 7:30 p.m. in the u.s."),
    ("a (small) [red] dog", "a -lrb- small -rrb- -lsb- red -rsb- dog"),  # Brackets are words.
    ("50¢ or $5.00 or €5", "50 cents or $ 5.00 or $ 5"),
    ("state-of-the-art -- and/or", "state-of-the-art and/or"),
    ('"Hello", he said...', "hello he said"),
    ("plan B. The dog", "plan b the dog"),
    ("no. 5 and no. Yes", "no. 5 and no yes"),
    ("dogs., cats", "dogs. cats"),  # Only before a comma, a colon or a semicolon.
    ("a dog 🐶.", "a dog"),
    ("一只狗。很好", "一只狗 。 很好"),  # The full stop of Chinese is no dropped one.
    ("one\ntwo\r\nthree\u2028four", "one two three four"),  # Of Java this would be four captions.
    ("", ""),
    ("...", ""),
  ],
)
def test_words(line, expected):
  assert ptb.words(line) == expected


def test_long_lines_of_punctuation_are_fast():
  assert ptb.words("a." * 2000).count("a") == 2000
  assert ptb.words("(" * 2000).count("-lrb-") == 2000


def test_scores_equal_pycocoevalcap(recorded):
  assert len(recorded["predictions"]) >= 200
  scores = caption.scores(
    recorded["predictions"], recorded["references"], ["cider", "bleu", "rouge"]
  )
  names = {"cider", "rouge", "bleu-1", "bleu-2", "bleu-3", "bleu-4"}
  assert set(scores.of_split) == names
  for name in names:
    assert scores.of_split[name] == pytest.approx(recorded["of_split"][name], abs=1e-6)
  for name in ("cider", "rouge"):
    assert scores.of_images[name] == pytest.approx(recorded["of_images"][name], abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is a Java program")
def test_meteor_equals_pycocoevalcap_where_it_is_installed(recorded):
  pytest.importorskip("pycocoevalcap.meteor.meteor")
  scores = caption.scores(recorded["predictions"], recorded["references"], ["meteor"])
  assert scores.of_split["meteor"] == pytest.approx(recorded["of_split"]["meteor"], abs=1e-6)
  assert scores.of_images["meteor"] == pytest.approx(recorded["of_images"]["meteor"], abs=1e-6)


def test_meteor_without_java_raises(monkeypatch):
  monkeypatch.setenv("PATH", "")
  with pytest.raises(UserError, match="no `java` on the PATH"):
    caption.scores(["a"], [["a"]], ["meteor"])


def test_meteor_without_its_package_raises(monkeypatch):
  monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
  monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
  with pytest.raises(UserError, match="pip install pycocoevalcap"):
    caption.scores(["a"], [["a"]], ["meteor"])


def of_words(predictions, references):
  return caption.Captions(predictions, references)


def test_cider_of_two_images_by_hand():
  # Every word of the references is of one image of two: all weights are log 2. Image 0: the
  # prediction is the reference, 1 for n = 1 and 2, nothing to compare for 3 and 4. Image 1: one of
  # two words in common, 1/2 for n = 1; the lengths are equal.
  captions = of_words(["a b", "c e"], [["a b"], ["c d"]])
  _, each = caption.cider(captions)
  assert each == pytest.approx([10 * 2 / 4, 10 * 0.5 / 4])


def test_cider_counts_bigrams_as_length_and_penalises_a_difference():
  captions = of_words(["a b c", "x"], [["a"], ["y"]])  # Two bigrams against none.
  _, each = caption.cider(captions)
  assert each[0] == pytest.approx(10 / 4 * (1 / math.sqrt(3)) * math.exp(-(2**2) / (2 * 36)))


def test_cider_does_not_reward_repetition():
  of_one, of_three = (
    caption.cider(of_words([p, "x"], [["a b c"], ["y"]]))[1][0] for p in ("a b c", "a a a b c")
  )
  assert of_three < of_one


def test_cider_of_a_single_image_is_zero():
  assert caption.cider(of_words(["a b"], [["a b"]])) == (0.0, [0.0])


def test_bleu_by_hand():
  # "the" counts twice at most, as in one reference: 3 of 4 words, 1 of 3 pairs; the references have
  # 3 and 6 words, 3 is nearer to 4, so nothing is taken for brevity.
  captions = of_words(["the the the cat"], [["the the cat", "a cat is on a mat"]])
  scores = caption.bleu(captions)
  assert scores["bleu-1"] == pytest.approx(3 / 4)
  assert scores["bleu-2"] == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
  assert scores["bleu-4"] < 1e-3


def test_bleu_penalises_brevity_over_the_whole_split():
  captions = of_words(["a b", "c d"], [["a b x y"], ["c d"]])
  assert caption.bleu(captions)["bleu-1"] == pytest.approx(math.exp(1 - 6 / 4))


def test_rouge_takes_precision_and_recall_from_different_references():
  captions = of_words(["a b c d"], [["a b c d e f g h", "a"]])
  precision, recall, beta2 = 1.0, 1.0, 1.2**2
  assert caption.rouge(captions)[0] == pytest.approx(
    (1 + beta2) * precision * recall / (recall + beta2 * precision)
  )
  assert caption.rouge(of_words(["a x b"], [["a b c d"]]))[0] == pytest.approx(
    (1 + beta2) * (2 / 3) * (2 / 4) / (2 / 4 + beta2 * 2 / 3)
  )
  assert caption.rouge(of_words(["x"], [["a"]]))[0] == 0


def test_rows_of_the_same_image_are_merged():
  assert caption.by_image(["7", "8", "7"], ["a", "b", "c"], [["x"], ["y"], ["z", "w"]]) == (
    ["7", "8"],
    ["c", "b"],  # The last prediction, all references.
    [["x", "z", "w"], ["y"]],
  )


def test_mistakes_raise():
  with pytest.raises(UserError, match="'spice'; there are: cider, bleu, rouge, meteor"):
    caption.scores(["a"], [["a"]], ["spice"])
  with pytest.raises(UserError, match="at least one text"):
    caption.scores(["a"], [[]])
  with pytest.raises(UserError, match="at least one text"):
    caption.scores(["a"], ["a string"])
  assert caption.scores([], []) == caption.CaptionScores({}, {})


@pytest.mark.parametrize(
  ("text", "sentences"),
  [
    ("a dog", 1), ("A dog. A cat!", 2), ("It is 3.5 m wide. Really?! Yes", 3), ("", 0),
    ('A sign says "stop." It is red...', 2), ("line one.\nline two.", 2), ("狗。 猫。", 2),
  ],
)  # fmt: skip
def test_the_length_of_long_captions(text, sentences):
  assert caption.length([text]) == dict(chars=len(text), sents=sentences)


def test_length_is_a_mean_of_captions_as_generated():
  got = caption.scores(["A dog. A cat.", "two"], [["x"], ["y"]], ["length"]).of_split
  assert got == dict(chars=8.0, sents=1.5)
