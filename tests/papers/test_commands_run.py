"""Each command that `pgjax.papers --task=NAME` prints runs: at variant=tiny, on mock data sets.

`prepare` is tested with raw folders of its own (tests/commands, tests/datasets); here its results
are mock rows with the same features. Slices such as train[-1024:] are of larger splits: the mock
sets are read without them.
"""

import json
import re
import shlex

import jax
import numpy as np
import pytest

from pgjax.data import locations, pipeline, tokenizer as tokenizer_lib
from pgjax.data.sources import tfds
from pgjax.distributed import mesh as mesh_lib
from pgjax.evaluation import evaluator as evaluator_lib, scorers
from pgjax.formats import seg_vae_npz
from pgjax.metrics import text
from pgjax.models import seg_vae
from pgjax.papers import commands, rows
from tests import docs_blocks, mock_sets

TASKS = sorted({row.task for row in rows.published_rows()})
VIDEOS = {
  "activitynet_cap": "activitynet_captions_mr", "activitynet_qa": "activitynet_qa",
  "msrvtt_cap": "msrvtt", "msrvtt_qa": "msrvtt_qa", "msvd_qa": "msvd_qa", "vatex_cap": "vatex",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where mock data sets are prepared as they are asked for."""
  place = tmp_path_factory.mktemp("papers")
  seg_vae_npz.save(place / seg_vae_npz.FILE, seg_vae.init(jax.random.key(0), width=8, embed_dim=8))
  return place


@pytest.fixture
def place(folder, root, tmp_path, monkeypatch):
  """A working directory with configs/ whose data sets are the mock ones."""
  for name in ("configs", "pgjax"):
    (tmp_path / name).symlink_to(root / name)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "sets"))
  monkeypatch.setenv("PGJAX_WEIGHTS_DIR", str(folder))
  read = tfds.Tfds.__init__

  def without_slices(self, name, split, *args, **kwargs):
    read(self, name, re.sub(r"\[[^\]]*\]", "", split), *args, **kwargs)

  monkeypatch.setattr(tfds.Tfds, "__init__", without_slices)
  return tmp_path


def recipe_of(task, folder, more=""):
  """The recipe of a task with the most evaluators, at its smallest published resolution."""
  listed = rows.published_rows(task)
  res = min(row.res for row in listed)
  more = ",".join(filter(None, ["variant=tiny,batch_size=8", more]))
  recipes = commands.recipes(listed, "v1", res, more)
  recipe = max(recipes, key=lambda r: len(r.rows))
  names = {re.split("[/:]", source["name"])[0] for source in commands.sources(recipe.config)}
  sources = names - {"jsonl", "video"}
  missing = [name for name in sorted(sources) if not (folder / "sets" / name).is_dir()]
  mock_sets.write(missing, folder / "sets", folder / "pictures")
  return recipe


def shorter(command, recipe):
  """The same, of two steps, after which each split is scored once, with answers of a few tokens."""
  module = command.split()[2]
  fields = {f"evals.{name}.max_decode_len": 3 for name in recipe.config.evals}
  for name, section in recipe.config.evals.items():
    if section.log_percent:  # Else it is not scored while the model trains.
      fields |= {f"evals.{name}.log_percent": 1, f"evals.{name}.skip_first": True}
  if module == "pgjax.train":
    fields |= {"total_steps": 2, "log_training_steps": 1, "lr": 1e-5}
  if module in ("pgjax.train", "pgjax.evaluate"):
    return command + "".join(f" {shlex.quote(f'--config.{n}={v}')}" for n, v in fields.items())
  return command


def run(recipe, purposes=None):
  for step in recipe.steps:
    words = shlex.split(shorter(step.command, recipe))
    if words[2] != "pgjax.prepare" and (purposes is None or step.purpose in purposes):
      assert docs_blocks.run_module(words[2], words[3:]) == 0, step.command


@pytest.mark.long
@pytest.mark.parametrize("task", [task for task in TASKS if task not in commands.EVALUATION_ONLY])
def test_the_commands_of_a_recipe_run(task, folder, place):
  more = ""
  if task in VIDEOS:
    mock_sets.write_videos(place / "videos", [VIDEOS[task]])
    more = "num_frames=3,data_dir=videos"
  recipe = recipe_of(task, folder, more)
  run(recipe)
  check(recipe, place)


@pytest.mark.long
@pytest.mark.parametrize("task", sorted(commands.EVALUATION_ONLY))
def test_checkpoints_are_scored_without_training(task, folder, place):
  trained = recipe_of("vqav2", folder, "final_split")
  (final,) = [r for r in commands.recipes(
    rows.published_rows("vqav2"), "v1", 224, "variant=tiny,batch_size=8"
  ) if r.rows[0].final_split]  # fmt: skip
  assert trained.config.input.data == final.config.input.data
  run(final, ["train"])
  more = f"fname={mock_sets.write_pairs(place / 'mmvp')}" if task == "mmvp" else ""
  recipe = recipe_of(task, folder, more)
  run(recipe)
  check(recipe, place)


def check(recipe, place):
  """Every score that the papers have is measured."""
  (path,) = place.glob("workdir/*/scores/metrics.json")
  metrics = json.loads(path.read_text())
  averages = commands.config_load.shared("published").AVERAGES
  for row in recipe.rows:
    for name in averages.get(row.evaluator, [row.evaluator]):
      assert f"{name}/num" in metrics
      if not row.on_a_server:
        assert f"{name}/{row.metric}" in metrics, sorted(metrics)


MOST = {"cider": 10.0}
NOT_BEST = (
  *("parsefail", "invalid_share", "yes_rate", "chars", "sents", "precision", "recall", "f1"),
  *("miou", "ciou"),  # Of a made-up decoder of masks.
)


@pytest.mark.slow
@pytest.mark.parametrize("task", [
  pytest.param(task, marks=() if task == "pope" else pytest.mark.long) for task in TASKS
])  # fmt: skip
def test_a_model_that_says_the_true_answer_has_the_highest_scores(task, folder, place):
  """Of every evaluator of every config, on rows with the features of pgjax/datasets."""
  more = "res=32"
  if task in VIDEOS:
    mock_sets.write_videos(place / "videos", [VIDEOS[task]])
    more += ",num_frames=3,data_dir=videos"
  if task == "mmvp":
    more += f",fname={mock_sets.write_pairs(place / 'mmvp')}"
  config = recipe_of(task, folder, more).config
  tiny = tokenizer_lib.load("tiny")
  mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
  batch = next(iter(pipeline.train_batches(config, tiny)))
  frames = (config.num_frames,) if config.num_frames else ()
  assert batch["image"].shape == (8, *frames, 32, 32, 3)
  assert batch["mask_loss"].any(axis=1).all()
  for name, section in config.evals.items():
    batches = evaluator_lib.open_batches(config, section, tiny, mesh)
    if section.type == "perplexity":
      continue
    scorer = scorers.of(section)
    assert not scorers.missing(scorer, batches.first_columns()), name
    rows = [perfect(section, scorer, example, tiny) for b in batches.after(0) for example in b.rows]
    of_split = scorer.of_split(section, rows)
    scores = text.mean([row["scores"] for row in rows]) | of_split
    assert scores, name
    for score, value in scores.items():
      if score not in NOT_BEST:
        assert value == pytest.approx(MOST.get(score, 1.0), abs=0.02), (name, score)


def perfect(section, scorer, example, tiny):
  """The scored row of the true answer, which is not in the prompt."""
  if section.type == "segmentation":
    box = np.asarray(example["objects/bbox"]).reshape(-1).tolist()
    answer = locations.loc_string(box) + "<seg000>" * 16
  else:
    answer = example[section.answer]
    answer = answer if isinstance(answer, str) else np.asarray(answer).reshape(-1).tolist()[0]
  tokens = np.array([*tiny.encode(answer), tiny.eos], np.int32)
  generated = scorers.Generated(answer, tokens, np.zeros(len(tokens), np.float32))
  row = scorer.row(section, tiny, example, generated)
  return dict(row, id=example["id"], prediction=answer)
