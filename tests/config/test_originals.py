"""The transfer configs of big_vision run as they are: with its files, on small data sets.

PGJAX_BIG_VISION is a checkout of google-research/big_vision, which only this test reads.
"""

import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transfer_data

from pgjax import train
from pgjax.config import load as config_load, validate as config_validate
from pgjax.data import locations, tokenizer as tokenizer_lib
from pgjax.data.pp import parse
from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.errors import UserError
from pgjax.evaluation import evaluator as evaluator_lib
from pgjax.formats import seg_vae_npz
from pgjax.models import paligemma
from pgjax.params import of_model
from pgjax.planning import compiler
from pgjax.training import optimizer, state as train_state, step as step_lib

CHECKOUT = os.environ.get("PGJAX_BIG_VISION", "")
FOLDER = pathlib.Path(CHECKOUT, "big_vision/configs/proj/paligemma/transfers")
ORIGINALS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "common")
pytestmark = [
  pytest.mark.long,
  pytest.mark.skipif(not ORIGINALS, reason="PGJAX_BIG_VISION is no checkout of big_vision"),
]
TINY = dict(variant="tiny", width=16, depth=1, mlp_dim=32, num_heads=2)
# Further values of arguments of get_config.
VALUES = dict(
  mode=["runlocal", "mock"],
  res=[448],
  crop=["ic", "rc", "rs"],
  beam_size=[0, 4],
  qfmt=["simple", "QM", "CQM"],
  afmt=["simple", "AL", "AE", "ALE"],
  size=["", "10b", "28b"],
  text_len=[96],
  batch_size=[16],
  num_frames=[4],
  stride=[5],
  prefix=["answer en {question}"],
)
# Those that also run two of their evaluators while they train: JSONL, two images, videos, beams.
WITH_EVALUATORS = ("forkme", "nlvr2", "msrvtt_qa", "cococap")
LOWEST = ("parsefail", "invalid_share")  # 0 is the best.
UNSCORED = ("num", "no_answer", "yes_rate")


def path_of(name, folder):
  """The file, or for videos one with a reader instead of the exception, as docs/data.md says."""
  text = (FOLDER / f"{name}.py").read_text()
  changed = re.sub(r"raise NotImplementedError\(.*\)", "from pgjax.data.sources import video", text)
  if changed == text:
    return FOLDER / f"{name}.py"
  (folder / f"{name}.py").write_text(changed)
  return folder / f"{name}.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Buckets and weights of masks, and data sets, which are written when they are asked for."""
  folder = tmp_path_factory.mktemp("transfers")
  transfer_data.save_mask_weights(folder)
  for name in ("data_train90.jsonl", "data_val10.jsonl"):
    transfer_data.write_jsonl(folder / "longcap100", name)
  return folder


@pytest.fixture(autouse=True)
def surroundings(folder, monkeypatch, tmp_path):
  for name in ("TFDS_DATA_DIR", "PGJAX_BUCKETS", "PGJAX_WEIGHTS_DIR"):
    monkeypatch.setenv(name, str(folder))
  monkeypatch.chdir(tmp_path)
  seg_vae_npz.load.cache_clear()


def loaded(path, arg="", **overrides):
  return config_validate.validated(
    config_load.load(f"{path}:{arg}" if arg else str(path), overrides)
  )


def sections_of(config):
  """(data, pp) of everything that the config reads."""
  data = config.input.data.to_dict()
  parts = [data] if isinstance(data.get("name"), str) else list(data.values())
  training = [(part, part.get("pp", config.input.pp)) for part in parts]
  return training + [(e.data.to_dict(), e.pp) for e in config.evals.values()]


def write_data(config, folder):
  """Writes the data sets of the config that are not there."""
  splits = {}
  for data, _ in sections_of(config):
    if data["name"] == "video":
      transfer_data.write_videos(folder, data["dataset_name"], data["split"])
    elif "split" in data:
      splits.setdefault(data["name"], set()).add(data["split"])
  for name, texts in splits.items():
    if not (folder / name.partition(":")[0]).exists():
      transfer_data.prepare(name, texts, folder)


def tiny(path, *args):
  """The config with a small model and small batches, of small images if it takes any size."""
  try:
    config, res = loaded(path, ",".join(["res=32", *args])), 32
  except UserError:  # One with a batch size for each resolution.
    config, res = loaded(path, ",".join(["res=224", *args])), 224
  llm = dict(TINY, num_kv_heads=1, head_dim=8, vocab_size=1792)
  overrides = {f"evals.{name}.batch_size": 8 for name in config.evals}
  overrides |= {"total_steps": 1, "input.batch_size": 8, "tokenizer": "tiny", "model_init": None}
  overrides |= {"model.img": dict(TINY, patch_size=res // 2), "model.llm": llm}
  overrides |= {"input.allow_truncated": True, "input.num_threads": 2, "dtype": "float32"}
  return config_validate.validated(config_load.overridden(config, overrides))


@pytest.mark.parametrize("name", ORIGINALS)
def test_every_argument_is_taken(name, tmp_path, monkeypatch):
  path, spec = path_of(name, tmp_path), {}
  common = config_load._common  # noqa: SLF001
  tokenizer = tokenizer_lib.load("tiny")

  def spied():
    module = common()
    real = module.parse_arg
    patch.setattr(module, "parse_arg", lambda a, **kw: spec.update(kw) or real(a, **kw))
    return module

  loaded(path)
  with monkeypatch.context() as patch:
    patch.setattr(config_load, "_common", spied)
    loaded(path)
  monkeypatch.setenv("PGJAX_BUCKETS", str(tmp_path))
  values = {n: [not v] if isinstance(v, bool) else VALUES[n] for n, v in spec.items()}
  if name == "refcoco_seg":
    values["crop"] = ["rs"]  # The ops of zic_mild are not in big_vision.
  args = ["", *(f"{n}={v}" for n, vs in values.items() for v in vs)]
  args = [a.replace("freeze_llm=True", "freeze_llm=True,freeze_vit=False") for a in args]
  args += ["runlocal", "mock"] if "mode" in spec else ["448"]
  for arg in args:
    config = loaded(path, arg)
    for _, pp in sections_of(config):
      parse.parse(pp, tokenizer=tokenizer)


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_step_is_lowered_in_full_size(name, tmp_path):
  """The real step of 3B with its own optimizer, from shapes: without weights."""
  config = loaded(path_of(name, tmp_path))
  mesh = mesh_lib.make_mesh([("data", -1)], jax.devices()[:1])
  model = paligemma.Model(**config.model)
  trained = of_model.trained_shapes(model, config)
  tx = optimizer.make(config, 1000, trained, num_examples=1000 * config.input.batch_size)
  state = train_state.abstract_state(model, tx, config, mesh)
  step = step_lib.jitted(model, tx, config, mesh)
  program = step.lower(state, compiler.abstract_batch(config, mesh))
  leaves = jax.tree.leaves(program.out_info[0])
  assert [leaf.shape for leaf in leaves] == [leaf.shape for leaf in jax.tree.leaves(state)]
  assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(trained)) > 2e9


@pytest.mark.parametrize("name", ORIGINALS)
def test_all_evaluators_open_as_they_are(name, tmp_path, folder):
  path = path_of(name, tmp_path)
  write_data(loaded(path), folder)
  config = tiny(path)
  evaluators = opened(config)
  assert [e.name for e in evaluators] == list(config.evals)


@pytest.mark.parametrize("name", ORIGINALS)
def test_it_trains_a_step_and_is_scored(name, tmp_path, folder):
  path = path_of(name, tmp_path)
  write_data(loaded(path), folder)
  config = tiny(path, *["mode=mock"] * ("mode=" in path.read_text()))
  few = {e.type == "perplexity": n for n, e in config.evals.items()}.values()
  few = few if name in WITH_EVALUATORS else ()
  short = config.copy_and_resolve_references().unlock()
  short.evals = {name: config.evals[name] for name in few}
  train.execute(short, str(tmp_path / "run"), "again", whole_process=False)
  for name in few:
    assert (tmp_path / "run/evals" / name / "predictions.jsonl").is_file()
  for evaluator in opened(config):
    if evaluator.scorer is not None:
      check_true_answers(evaluator)


def opened(config):
  mesh, tokenizer = mesh_lib.start(config.mesh), tokenizer_lib.load("tiny")
  model = paligemma.Model(**config.model)
  leaves = of_model.stored_params(model, config)
  abstract = train_state.abstract_state(model, optax.identity(), config, mesh)
  places = sharding.shardings_of(abstract.params)
  every = dict.fromkeys(config.evals)
  return evaluator_lib.make(config, model, leaves, mesh, tokenizer, places, every)


def check_true_answers(evaluator):
  """A model that says the true answer gets the highest score of each metric."""
  tokenizer = tokenizer_lib.load("tiny")

  def compute(params, batch):
    answers = [true_answer(evaluator.section, row) for row in batch.rows]
    ids = [[*tokenizer.encode(answer), tokenizer.eos] for answer in answers]
    tokens = np.zeros((len(batch.arrays["_mask"]), max(map(len, ids))), np.int32)
    for i, row in enumerate(ids):
      tokens[i, : len(row)] = row
    return jnp.asarray(tokens), jnp.zeros(tokens.shape)

  perfect = evaluator._replace(compute=compute)
  mesh = mesh_lib.start([("data", -1)])
  result = evaluator_lib.run(perfect, None, mesh=mesh, tokenizer=tokenizer)
  scores = {name.removeprefix(f"{evaluator.name}/"): v for name, v in result.scores.items()}
  assert scores["num"] == len(result.rows) >= 16
  scored = {name: value for name, value in scores.items() if name not in UNSCORED}
  hidden = scores.get("no_answer") == scores["num"]
  assert bool(scored) != (hidden or evaluator.section.type == "predictions")
  for metric, value in scored.items():
    best = 10 if metric == "cider" else 0 if metric in LOWEST else 1
    assert value == pytest.approx(best), (evaluator.name, metric)
  for row in result.rows:
    assert row["id"] is not None
    assert "b'" not in f"{row}"


def true_answer(section, row):
  if section.type == "segmentation":
    return "<loc0000><loc0000><loc1023><loc1023>" + locations.seg_string(transfer_data.CODES)
  value = row.get(section.answer, "")
  value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
  return str(value[0] if isinstance(value, list) and value else value or "")


def test_a_videos_file_says_which_line_to_replace():
  name = next(n for n in ORIGINALS if "NotImplementedError" in (FOLDER / f"{n}.py").read_text())
  with pytest.raises(UserError, match="replace it by"):
    config_load.load(str(FOLDER / f"{name}.py"))
