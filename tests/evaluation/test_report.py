"""The page of a report: its content, escaped data, and its behaviour in a browser."""

import base64
import hashlib
import html.parser
import io
import json
import re
import xml.sax.saxutils

import numpy as np
import pytest
from PIL import Image

from pgjax.evaluation import report, report_split
from pgjax.evaluation.report_split import Split
from tests.browser import Browser, needs_chromium

HOSTILE = [
  "<script>alert(1)</script>",
  "</script><script>alert(2)</script>",
  "<!--<script>",
  "\" onmouseover='alert(3)' '",
  "<img src=x onerror=alert(4)>",
  "\u202egnp.exe\u202c \u05e9\u05dc\u05d5\u05dd",
  "&lt;b&gt; &amp;amp; \u2028 \\u003c",
]
BOX = "<loc0100><loc0100><loc0900><loc0900> "


class Elements(html.parser.HTMLParser):
  """Tags with their attributes, and the text of each script."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.scripts, self._in_script = [], [], False
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self._in_script = tag == "script"
    if self._in_script:
      self.scripts.append("")

  def handle_endtag(self, tag):
    self._in_script = False

  def handle_data(self, data):
    if self._in_script:
      self.scripts[-1] += data


def row(i=0, **fields):
  document = dict(id=i, prompt="what?", answer="a", prediction="b", logp=-1.0, score=0.0)
  return document | fields


def grey(i):
  return np.full((8, 8, 3), i / 100, np.float32)


def page(rows, parts=(), picture=grey, **fields):
  return report.page(
    "title", dict(step=3), {"val/acc": 0.5}, [Split("val", rows, parts, picture)], **fields
  )


def data_of(document):
  [data, _] = Elements(document).scripts
  return json.loads(data)


def test_hostile_text_stays_text():
  rows = [
    row(i, id=t, prompt=t, answer=[t, t], prediction=t, question_type=t)
    for i, t in enumerate(HOSTILE)
  ]
  split = Split(HOSTILE[0], rows, [dict(acc=(1, 1))] * len(rows), grey)
  document = report.page(HOSTILE[1], {HOSTILE[2]: HOSTILE[3]}, {HOSTILE[4]: 0.5}, [split])
  harmless = Elements(page([row(i) for i in range(len(rows))]))
  elements = Elements(document)
  assert len(elements.scripts) == 2
  assert {tag for tag, _ in elements.tags} <= {tag for tag, _ in harmless.tags} | {"p", "bdi"}
  assert not [name for _, attrs in elements.tags for name in attrs if name.startswith("on")]
  assert all(a["src"].startswith("data:image/") for t, a in elements.tags if t == "img")
  table = json.loads(elements.scripts[0])
  assert [r[table["columns"].index("prediction")] for r in table["rows"]] == HOSTILE
  assert "<" not in elements.scripts[0]


def test_the_policy_allows_only_our_script_and_style_by_hash():
  document = page([row()])
  [policy] = [a["content"] for t, a in Elements(document).tags if "http-equiv" in a]
  style = re.search(r"<style>(.*?)</style>", document, re.DOTALL)[1]
  digest = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()  # noqa: E731
  assert f"script-src 'sha256-{digest(Elements(document).scripts[-1])}'" in policy
  assert f"style-src 'sha256-{digest(style)}'" in policy
  assert policy.startswith("default-src 'none'; img-src data:;")
  assert "unsafe" not in policy
  assert "://" not in document


def test_scores_have_intervals_where_rows_have_parts_and_published_numbers_where_given():
  parts = [dict(acc=(float(i % 2), 1)) for i in range(100)]
  scores = {"val/acc": 0.5, "val/cider": 1.234567, "val/num": 10_000}
  split = Split("val", [row(i) for i in range(100)], parts, None)
  document = report.page("t", {}, scores, [split], paper={"val/cider": 1.5})
  cells = re.findall(
    r'<tr><th scope="row">val/(\w+)</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>', document
  )
  assert [(name, value, paper) for name, value, _, paper in cells] == [
    ("acc", "0.5", ""), ("cider", "1.235", "1.5"), ("num", "10,000", ""),
  ]  # fmt: skip
  low, high = map(float, cells[0][2].split(" to "))
  assert 0.38 < low < 0.42 < 0.58 < high < 0.62
  assert [interval for _, _, interval, _ in cells[1:]] == ["", ""]


def test_a_published_score_has_its_deviation_and_our_difference():
  paper = {"val/acc": (0.42, 0.003), "val/anls": [0.5, 0.0]}  # From JSON, a list.
  document = report.page("t", {}, {"val/acc": 0.417, "val/anls": 0.6}, [], paper=paper)
  assert "<td>0.42 ± 0.003 (ours -1.0 sd)</td>" in document
  assert "<td>0.5 ± 0</td>" in document or "<td>0.5 ± 0.0</td>" in document


def test_worst_and_best_are_by_score_and_then_by_confidence():
  rows = [
    row(0, score=1.0, logp=-2.0),
    row(1, score=0.0, logp=-3.0),
    row(2, score=0.0, logp=-0.1),
    row(3, score=0.5),
    row(4, score=1.0, logp=-0.5),
    row(5, score=None),
  ]
  chosen = report_split.chosen(rows)
  assert chosen["worst"] == [2, 1, 3, 4, 0]
  assert chosen["best"] == [4, 0, 3, 2, 1]
  assert chosen["random"] == list(range(6))
  likelihoods = [dict(id=i, nll=n) for i, n in enumerate([3.0, 9.0, 1.0])]
  assert report_split.chosen(likelihoods)["worst"] == [1, 0, 2]


def test_a_large_split_loads_a_bounded_number_of_pictures():
  asked = []

  def picture(i):
    asked.append(i)
    return grey(i)

  rows = [row(i, score=float(i % 2), prompt=f"q{i}") for i in range(10_000)]
  document = page(rows, picture=picture)
  assert len(asked) == len(set(asked)) == 48
  assert len(data_of(document)["rows"]) == 5_000
  assert "the first 5,000 of 10,000" in document


def test_scores_are_grouped_by_columns_and_by_answer():
  rows = [row(i, score=float(i < 3), question_type="how" if i % 2 else "why") for i in range(8)]
  document = page(rows)
  bars = re.findall(
    r"<bdi>([a-z]+)</bdi></th><td><svg.*?</svg>([\d.]+) \(.*?\), (\d+) examples", document
  )
  assert bars == [("how", "0.25", "4"), ("why", "0.5", "4")]  # Rows 0, 2 and 1 are right.
  assert "by answer" not in document  # All answers are the same.
  lengths = [row(i, answer="word " * (i % 12 + 1) + str(i)) for i in range(40)]
  labels = re.findall(r'scope="row"><bdi>(\d.*?)</bdi>', page(lengths))
  assert set(labels) == {"0", "2 words", "3 to 5 words", "6 to 10 words", "11 to 20 words"}


def bars_of(document, caption):
  """[(label, width, text)] of the table of bars with this caption."""
  [table] = re.findall(rf"<caption>{caption}</caption>(.*?)</table>", document, re.DOTALL)
  pattern = r'<bdi>(.*?)</bdi></th><td><svg.*?<rect width="([\d.]+)" height="6"/></svg>(.*?)</td>'
  return [(label, float(width), text) for label, width, text in re.findall(pattern, table)]


def test_bars_are_shares_of_all_examples_and_the_worst_group_comes_first():
  kinds = ["common"] * 60 + ["hard"] * 20 + ["rare"] * 20
  right = dict(common=1.0, hard=0.0, rare=0.5)
  rows = [row(i, score=right[kind], question_type=kind) for i, kind in enumerate(kinds)]
  document = page(rows)
  values = [(label, width) for label, width, _ in bars_of(document, "Distribution of scores")]
  assert values == [("0", 20.0), ("0.5", 20.0), ("1", 60.0)]
  groups = [(name, width) for name, width, _ in bars_of(document, "Mean score by question_type")]
  assert groups == [("hard", 0.0), ("rare", 50.0), ("common", 100.0)]


def test_the_best_of_many_groups_share_a_bar():
  rows = [row(i, score=i / 40, question_type=f"kind {i}") for i in range(40)]
  bars = bars_of(page(rows), "Mean score by question_type")
  assert [name for name, *_ in bars] == [*(f"kind {i}" for i in range(20)), "20 other groups"]


def test_json_answers_are_scored_by_field():
  answers = [dict(total=i, items=[dict(price=i), dict(price=1)], name="x") for i in range(4)]
  predictions = [dict(a, total=0, items=a["items"][:1]) for a in answers]
  rows = [
    row(i, answer=json.dumps(a), prediction=json.dumps(p), score=0.5)
    for i, (a, p) in enumerate(zip(answers, predictions, strict=True))
  ]
  rows.append(row(4, answer=json.dumps(answers[0]), prediction="not json", score=0.0))
  document = report.page("t", {}, {}, [Split("val", rows, (), None, "oi", "json")])
  bars = bars_of(document, "F1 by field")
  # Right: total once of 4 and 5, price 4 of 10 true and 4 predicted, name 4 of 5 and 4.
  assert [(name, round(width)) for name, width, _ in bars] == [
    ("total", 22), ("items[].price", 57), ("name", 89),
  ]  # fmt: skip
  assert "by answer" not in document
  [card] = [c for c in re.findall(r"<article.*?</article>", document) if '<p class="id">3<' in c][
    :1
  ]
  assert "3 of 4 fields right" not in card
  assert "2 of 4 fields right" in card
  cells = re.findall(
    r"<tr><th scope=\"row\"><bdi>(.*?)</bdi></th><td><bdi>(.*?)</bdi></td><td><bdi>(.*?)<", card
  )
  assert cells == [("items[1].price", "1", ""), ("total", "3", "0")]


def test_the_page_says_what_was_scored():
  split = Split(
    "val", [row()], (), None, "oi", "vqa", dict(data="jsonl, fname='<a>'", decoding="greedy")
  )
  document = report.page("val: w at step 3", dict(config="x.py"), {}, [split])
  assert "<title>val: w at step 3</title>" in document
  assert "<dt>data</dt><dd>jsonl, fname=&#x27;&lt;a&gt;&#x27;</dd>" in document


def test_many_distinct_values_are_binned():
  scores = [0.0, *((i + 0.5) / 100 for i in range(100)), 1.0]
  document = page([row(i, score=score) for i, score in enumerate(scores)])
  counts = re.findall(r"([\d.]+) to ([\d.]+)</bdi></th><td><svg.*?</svg>(\d+) \(", document)
  assert counts[0] == ("0", "0.1", "11")
  assert [count for *_, count in counts] == ["11", *["10"] * 8, "11"]


def test_predicted_and_true_boxes_are_drawn():
  cat, dog = BOX + "cat", "<loc0000><loc0000><loc0200><loc0200> dog"
  document = page([row(answer=cat, prediction=dog), row(1, answer="cat", prediction="none")])
  uris = {a["alt"]: a["src"] for t, a in Elements(document).tags if t == "img"}
  assert uris.keys() == {"prediction of example 0", "answer of example 0", "image of example 1"}
  pixels = {
    name: np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))
    for name, uri in uris.items()
  }
  flat = pixels["image of example 1"]
  assert np.ptp(flat) <= 1
  answer, prediction = (pixels[f"{n} of example 0"].astype(int) for n in ("answer", "prediction"))
  edge = int(900 / 1023 * len(answer))
  assert np.ptp(answer[edge - 4 : edge + 4, 200:400]) > 50  # The lower edge of the cat's box.
  assert np.ptp(prediction[edge - 4 : edge + 4, 200:400]) < 10


def test_a_label_has_one_colour_in_all_pictures():
  dog = "<loc0000><loc0000><loc0200><loc0200> dog"
  rows = [
    row(0, prediction=BOX + "cat"),
    row(1, prediction=f"{dog} ; {BOX}cat", answer=BOX + "ant"),
  ]
  uris = {a["alt"]: a["src"] for t, a in Elements(page(rows)).tags if t == "img"}
  edges = []
  for i in (0, 1):
    encoded = base64.b64decode(uris[f"prediction of example {i}"].partition(",")[2])
    picture = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)
    at = round(900 / 1023 * len(picture)) - 2
    edges.append(picture[at, 300])
  assert np.abs(edges[0] - edges[1]).max() < 20
  assert np.ptp(edges[0]) > 50


def test_masks_without_weights_become_boxes_and_a_note(monkeypatch):
  monkeypatch.delenv("PGJAX_WEIGHTS_DIR", raising=False)
  mask = BOX + "".join(f"<seg{i:03d}>" for i in range(16)) + " cat"
  document = page([row(prediction=mask.replace("> <", "><"))])
  assert "Masks are not drawn, only their boxes. The weights of masks" in document
  assert "prediction of example 0" in document


def test_frames_form_a_grid():
  frames = np.stack([np.full((2, 2, 3), v, np.float32) for v in (-1, 0, 1)])
  document = report_split.draw_images.to_grid(frames)
  assert document[::2, ::2, 0].tolist() == [[0, 128], [255, 127]]


def test_rows_without_answers_scores_or_pictures_render():
  document = page([dict(id=0, prompt="p", nll=2.5), dict(id=1, prompt="p", nll=1.5)], picture=None)
  assert data_of(document)["columns"] == ["id", "prompt", "nll"]
  assert "log-likelihood" in document
  assert "Random 1" in page([row(score=None)])
  assert xml.sax.saxutils.escape("0 examples") in page([])


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
  """The address of a page with 250 rows."""
  rows = [
    row(i, score=(i % 3) / 2, prompt=f"question {i}", prediction=HOSTILE[i % 7], logp=-i / 10)
    for i in range(250)
  ]
  path = tmp_path_factory.mktemp("report") / "report.html"
  parts = [dict(acc=(r["score"], 1)) for r in rows]
  path.write_text(page(rows, parts, paper={"val/acc": 0.7}))
  return path.as_uri()


CELLS = "[...document.querySelectorAll('.all tbody tr')].map(r => r.cells[{}].textContent)"


@needs_chromium
@pytest.mark.slow
def test_the_table_sorts_filters_and_turns_pages(shown):
  with Browser() as browser:
    browser.open(shown)
    ids = lambda: [int(i) for i in browser.run(CELLS.format(0))]  # noqa: E731
    click = lambda what: browser.run(f"{what}.click()")  # noqa: E731
    assert ids() == list(range(100))
    click("document.querySelectorAll('.all th button')[5]")  # logp, the least first.
    assert ids() == list(range(249, 149, -1))
    assert browser.run("document.querySelectorAll('.all th')[5].ariaSort") == "ascending"
    click("document.querySelectorAll('.all th button')[5]")
    assert ids() == list(range(100))
    click("document.querySelectorAll('.pages button')[1]")
    assert ids() == list(range(100, 200))
    put = "(e => {{ e.value = {!r}; e.dispatchEvent(new Event('input')); }})"
    fill = put + "(document.querySelector({!r}))"
    browser.run(fill.format("QUESTION 24", "input[type=search]"))
    assert ids() == [24, *range(240, 250)]
    browser.run(fill.format("right", ".filters select"))
    assert ids() == [i for i in [24, *range(240, 250)] if i % 3 == 2]
    assert browser.run("document.querySelector('[role=status]').textContent") == "1 to 3 of 3"
    browser.run(fill.format("alert(1)", "input[type=search]"))
    assert set(browser.run(CELLS.format(3))) == {HOSTILE[0]}
    assert browser.run("document.scripts.length") == 2
    assert browser.complaints == []
    assert browser.outside(shown) == []


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
@pytest.mark.parametrize("dark", [False, True])
def test_no_width_scrolls_sideways_and_the_keyboard_changes_tabs(shown, width, phone, dark):
  with Browser(width, phone=phone, dark=dark) as browser:
    browser.open(shown)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    light = browser.run("getComputedStyle(document.body).backgroundColor == 'rgb(255, 255, 255)'")
    assert light != dark
    shown_grid = (
      "[...document.querySelectorAll('.grid')].filter(g => g.offsetHeight).map(g => g.className)"
    )
    assert browser.run(shown_grid) == ["grid worst"]
    browser.run("document.querySelector('input.tab').focus()")
    browser.press("ArrowRight", 39)
    assert browser.run(shown_grid) == ["grid best"]
    unlabelled = (
      "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length"
    )
    assert browser.run(unlabelled) == 0
    assert browser.complaints == []
    assert browser.outside(shown) == []
