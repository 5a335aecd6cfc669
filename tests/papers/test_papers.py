"""pgjax.papers: published scores, ours beside them, and commands that reproduce a row."""

import json
import logging

import pytest

from pgjax.errors import UserError
from pgjax.papers import __main__ as papers, commands, page, results, rows
from tests import docs_blocks
from tests.browser import Browser, needs_chromium


def args(**fields):
  names = dict(task=None, size=None, res=None, config_arg="", plan=False, devices=8)
  return papers.cli.SimpleNamespace(
    **{**names, "results": [], "json": None, "page": None, **fields}
  )


@pytest.fixture
def folder(tmp_path):
  """Makes the results of pgjax.evaluate in a folder of their own."""

  def make(name, scores, variant="gemma2_2b", res=224, checkpoint="workdir", step=7):
    place = tmp_path / "results" / name
    place.mkdir(parents=True)
    config = dict(res=res, model=dict(img={}, llm=dict(variant=variant)), evals={})
    (place / "config.json").write_text(json.dumps(config))
    metrics = dict(checkpoint=checkpoint, step=step, averages=False, **scores, about=dict(flags={}))
    (place / "metrics.json").write_text(json.dumps(metrics))
    return str(tmp_path / "results")

  return make


def ours(root, task=None):
  listed = rows.published_rows(task)
  return {(r.paper, r.size, r.res): o for r, o in rows.matched(listed, results.read(root)).items()}


def test_the_table_has_all_sizes_and_resolutions_of_both_papers():
  listed = rows.published_rows()
  assert len({row.task for row in listed}) == 34
  assert {row.size for row in listed} == {"v1", "3b", "10b", "28b", "mix"}
  assert {row.res for row in listed} == {224, 448, 896}
  assert sum(row.size in ("3b", "10b", "28b") for row in listed) == 42 * 6 + 6 * 2 + 2 * 2
  assert len(set(listed)) == len(listed)
  text = rows.text_table(listed, {})
  assert "COCO-35L (avg34)            448   115.8 ±0.1   115.8 ±0.3   117.2 ±0.1" in text
  assert max(map(len, text.splitlines())) <= 120


def test_a_score_of_ours_is_compared_in_deviations(folder):
  root = folder("a", {"ai2d/eval/acc": 0.755, "ai2d/eval/num": 3000})
  root = folder("b", {"chartqa/human/eval/relaxed_acc": 0.5}, "gemma_2b", 448)
  found = ours(root)
  assert set(found) == {("AI2D", "3b", 224), ("ChartQA (human)", "v1", 448)}
  row = next(r for r in rows.published_rows("ai2d") if (r.size, r.res) == ("3b", 224))
  assert found["AI2D", "3b", 224].value == pytest.approx(75.5)
  assert found["AI2D", "3b", 224].deviations(row) == pytest.approx((75.5 - 74.7) / 0.5)
  assert rows.compared(row, found["AI2D", "3b", 224]) == "75.5 (+1.6 sd)"
  val = next(
    r for r in rows.published_rows("docvqa") if (r.paper, r.size) == ("DocVQA (val)", "v1")
  )
  assert rows.compared(val, found["AI2D", "3b", 224]) == "75.5 (+37.7)"


def test_a_mean_over_languages_needs_all_of_them(folder):
  languages = ["bn", "de", "id", "ko", "pt", "ru", "zh"]
  scores = {f"xgqa/test_zs_{lang}/decode/acc": 0.5 + i / 100 for i, lang in enumerate(languages)}
  root = folder("a", scores | {"xgqa/test_zs_en/decode/acc": 0.9})
  assert ours(root)["xGQA (avg7)", "3b", 224].value == pytest.approx(53.0)
  root = folder("b", dict(list(scores.items())[1:]), res=448)
  assert ("xGQA (avg7)", "3b", 448) not in ours(root)


def test_the_newest_result_is_shown_and_a_run_has_one_file_for_each_evaluator(folder, tmp_path):
  root = folder("run", {"cococap/eval/cider": 1.4}, step=100)
  place = tmp_path / "results/run/evals/nocaps/eval"
  place.mkdir(parents=True)
  (place / "metrics.json").write_text(json.dumps({"step": 200, "nocaps/eval/cider": 1.2}))
  found = ours(root)
  assert {name for name, _, _ in found} == {"COCOcap", "NoCaps"}
  assert found["COCOcap", "3b", 224].value == pytest.approx(140.0)
  folder("later", {"nocaps/eval/cider": 1.3})
  found = ours(root)
  assert (found["NoCaps", "3b", 224].value, found["NoCaps", "3b", 224].others) == (130.0, 1)


def test_a_mix_checkpoint_is_known_by_its_name(folder):
  scores = {"pope/pope_random/acc": 0.88}
  root = folder("a", scores, "gemma_2b", checkpoint="/w/paligemma-3b-mix-224")
  assert set(ours(root)) == {("POPE (random)", "mix", 224)}
  root = folder("b", scores, "gemma_2b", 448, checkpoint="/w/remix/vqav2")
  assert ("POPE (random)", "v1", 448) in ours(root)


def test_what_is_beside_no_row_is_reported(folder, tmp_path, caplog, capsys):
  root = folder("tiny", {"ai2d/eval/acc": 0.2}, "tiny", 32)
  folder("own", {"mine/acc": 0.2})
  (tmp_path / "results/broken").mkdir()
  (tmp_path / "results/broken/metrics.json").write_text("{")
  (tmp_path / "results/alone").mkdir()
  (tmp_path / "results/alone/metrics.json").write_text("{}")
  with caplog.at_level(logging.WARNING, "pgjax"):
    papers.main(args(results=[root]))
  said = capsys.readouterr().out
  assert "a model of size tiny at 32 px has no published score" in said
  assert "results/own: PaliGemma 2 3B at 224 px has no published score" in said
  assert "broken/metrics.json: not JSON" in caplog.text
  assert "there is no config.json beside it or above" in caplog.text


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(task="ai2dd"), r"--task=ai2dd is no transfer of the papers. Did you mean 'ai2d'\?"),
    (dict(task="ai2d", size="7b"), r"no published score for --size=7b; there are: --size=3b"),
    (dict(task="ai2d", res=896), "no published score for --res=896"),
    (dict(size="3b"), "--size chooses what --task=NAME prints"),
    (dict(results=["/nowhere"]), "--results=/nowhere is no folder"),
  ],
)
def test_mistakes_are_sentences(fields, message, capsys):
  with pytest.raises(UserError, match=message):
    papers.main(args(**fields))


def recipe_of(task, size, res, more=""):
  return commands.recipes(rows.published_rows(task), size, res, more)


def test_recipes_train_on_what_the_papers_trained_on():
  val, test = recipe_of("textvqa", "v1", 224)
  assert val.config.input.data.split == "train"
  assert test.config.input.data.split == "train+val"
  text = page.recipe_text(test)
  assert "--evals=textvqa/test" in text
  assert "TextVQA (test server): upload the predictions" in text
  (video,) = recipe_of("vatex_cap", "3b", 224)
  assert "data_dir=VIDEOS" in video.spec
  (mix,) = recipe_of("pope", "mix", 448)
  assert not mix.trains
  assert "--ckpt=paligemma-3b-mix-448" in page.recipe_text(mix)
  (pope,) = recipe_of("pope", "v1", 448)
  (trained,) = [r for r in recipe_of("vqav2", "v1", 448) if r.rows[0].final_split]
  assert f"--ckpt={workdir(trained)} " in page.recipe_text(pope)


def workdir(recipe):
  command = next(step.command for step in recipe.steps if step.purpose == "train")
  return command.partition("--workdir=")[2]


@pytest.mark.parametrize("task", ["chartqa", "docvqa", "pope"])
def test_every_command_is_one_that_its_program_accepts(task, root, monkeypatch):
  check_commands(task, root, monkeypatch)


@pytest.mark.slow
def test_every_command_of_every_task_is_accepted(root, monkeypatch):
  for task in {row.task for row in rows.published_rows()}:
    check_commands(task, root, monkeypatch)


def check_commands(task, root, monkeypatch):
  monkeypatch.chdir(root)
  row = rows.published_rows(task)[-1]
  for recipe in recipe_of(task, row.size, row.res):
    assert recipe.steps
    for step in recipe.steps:
      docs_blocks.check_command(step.command)


def test_the_table_as_data_and_as_a_page(folder, tmp_path, capsys):
  root = folder("a", {"ai2d/eval/acc": 0.765})
  made = args(results=[root], json=str(tmp_path / "a.json"), page=str(tmp_path / "a.html"))
  papers.main(made)
  data = json.loads((tmp_path / "a.json").read_text())
  mine = [row for row in data["rows"] if row["ours"]]
  assert [(row["task"], row["size"], row["res"]) for row in mine] == [("ai2d", "3b", 224)]
  assert mine[0]["ours"]["deviations"] == pytest.approx(3.6)
  html = (tmp_path / "a.html").read_text()
  assert '74.7 ±0.5<br><b class="right">76.5 (+3.6 sd)</b>' in html
  assert html.count('<tr class="group">') == 34
  assert "ours, 3b: 76.5 (+3.6 sd)" in capsys.readouterr().out


@pytest.mark.slow
@needs_chromium
def test_the_page_fits_a_phone_and_a_desktop(folder, tmp_path):
  root = folder("a", {"ai2d/eval/acc": 0.765, "coco35l/en/cider": 1.2})
  listed = rows.published_rows()
  path = tmp_path / "a.html"
  path.write_text(page.html(listed, rows.matched(listed, results.read(root))))
  for width, phone in ((1280, False), (390, True)):
    with Browser(width, 900, phone=phone) as browser:
      browser.open(path.as_uri())
      assert browser.run("document.documentElement.scrollWidth") <= width
      assert browser.complaints == []
