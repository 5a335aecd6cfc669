import itertools
import json
import subprocess
import sys

import pytest

from pgjax.config import durations, load as config_load, validate as config_validate
from pgjax.errors import UserError

TINY = "configs/chartqa.py:variant=tiny,batch_size=8,parts=augmented"
ENTRY = "chartqa/augmented/eval"


@pytest.fixture(autouse=True)
def _in_root(root, monkeypatch):
  monkeypatch.chdir(root)


def tiny(**overrides):
  return config_validate.validated(config_load.load(TINY, overrides))


def write(tmp_path, body):
  path = tmp_path / "mine.py"
  path.write_text(body)
  return str(path)


def test_arguments_are_typed_by_their_defaults():
  c = config_load.load("configs/chartqa.py:res=448,size=3b,final_split")
  assert c.res == 448
  assert c.input.data.split == "train+val"
  assert c.model.llm.variant == "gemma2_2b"
  assert c.model_init == "pt_3b_448"
  assert config_load.load("configs/chartqa.py:final_split=false").input.data.split == "train"


def test_overrides_take_the_type_of_the_old_value():
  c = tiny(lr="1", res="32", tokenizer="7", model_init="x.npz", **{"input.allow_truncated": "true"})
  assert isinstance(c.lr, float)
  assert (c.lr, c.res, c.tokenizer, c.model_init) == (1.0, 32, "7", "x.npz")
  assert c.input.allow_truncated is True
  assert tiny(grad_clip_norm="None").grad_clip_norm is None
  assert tiny(params="[('llm/.*', 'train'), ('.*', 'freeze')]").params[0] == ("llm/.*", "train")
  assert tiny(**{"optax.b1": "0.8"}).optax.to_dict() == {"b1": 0.8, "b2": 0.999}


def test_an_override_of_a_duration_replaces_its_other_units():
  c = tiny(total_steps="7", **{f"evals.{ENTRY}.log_steps": "3"})
  assert durations.total_steps(c, 1000) == 7
  assert c.evals[ENTRY].log_percent is None


def test_a_config_survives_json():
  c = tiny()
  again = config_validate.validated(config_load.from_dict(json.loads(json.dumps(c.to_dict()))))
  assert json.dumps(again.to_dict()) == json.dumps(c.to_dict())


def test_checking_twice_changes_nothing_and_the_result_is_locked():
  c = tiny(schedule="[('img/.*', None), ('.*', {'decay_type': 'cosine'})]")
  assert config_validate.validated(c).to_dict() == c.to_dict()
  with pytest.raises((KeyError, AttributeError)):
    c.new = 1


def test_compute_dtype_and_remat_reach_the_model():
  c = tiny(dtype="bfloat16", remat="none")
  assert (c.model.dtype, c.model.remat) == ("bfloat16", "none")


def test_freezing_by_schedule_becomes_params():
  cosine = {"decay_type": "cosine"}
  c = tiny(schedule=[("img/.*", None), (".*", cosine)])
  assert c.params == [("img/.*", "freeze"), (".*", "train")]
  assert [p for p, _ in c.schedule] == [".*"]
  both = dict(schedule=[("img/.*", None), (".*", cosine)], params=[("llm/.*", "freeze")])
  with pytest.raises(UserError, match=r"freezes .* contradicts config"):
    tiny(**both)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("configs/chartq.py", "there is no file .* Did you mean 'configs/chartqa.py'"),
    ("x" * 5000, "there is no file xxx"),
    ("x\0y", "there is no file x"),
    ("configs/chartqa.py:ress=3", "no argument 'ress'. Did you mean 'res'"),
    ("configs/chartqa.py:res=big", "res=big must be a whole number"),
    ("configs/chartqa.py:final_split=maybe", "must be true or false"),
    ("configs/chartqa.py:parts=humans", "parts=humans must be one of human, augmented"),
    ("configs/chartqa.py:tune=loro", "tune=loro must be one of full, "),
    ("configs/easyvqa.py:preset=quik", "must be one of quick, long"),
  ],
  ids=itertools.count(),
)
def test_a_wrong_spec_raises(spec, message):
  with pytest.raises(UserError, match=message):
    config_validate.validated(config_load.load(spec))


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"lrr": 3}, "no field 'lrr'. Did you mean 'lr'"),
    ({"model.lm.depth": 3}, "no field 'lm'. Did you mean 'llm'"),
    ({"model.llm.dept": 3}, "no field 'dept'. Did you mean 'depth'"),
    ({"input.pp.x": 3}, "config.input.pp is .* replace it as a whole"),
    ({"evals.chartqa/augmented/evil.to_lower": True}, "Did you mean 'chartqa/augmented/eval'"),
    ({f"evals.{ENTRY}.lower": True}, "no field 'lower'. Did you mean 'to_lower'"),
    ({f"evals.{ENTRY}.type": "coco"}, "must be one of 'vqa', 'vqav2', 'chartqa', 'choice'"),
    ({"lr": "fast"}, "--config.lr=fast cannot be read"),
    ({"lr": -1}, "config.lr=-1.0 must be a number from 0 to 1e\\+18"),
    ({"lr": float("nan")}, "config.lr=nan must be a number from 0 to"),
    ({"seed": 1.5}, "config.seed=1.5 must be a whole number"),
    ({"seed": True}, "config.seed=True must be a whole number"),
    ({"label_smoothing": 1.0}, "must be a number >= 0 and < 1"),
    ({"dtype": "float16"}, "must be 'float32' or 'bfloat16'"),
    ({"decode": "beams(3)"}, "config.decode: there is no 'beams'. Did you mean 'beam'"),
    ({"microbatches": 3}, "microbatches=3 must divide config.input.batch_size=8"),
    ({"res": 100}, "multiple of the patch size 16; try 96 or 112"),
    ({"total_epochs": None}, "does not set how long to train"),
    ({"keep_best": "vall/acc"}, "must be an evaluator's name"),
    ({"params": [("llm/(", "train")]}, "'llm/\\(' is not a regular expression"),
    ({"params": [("llm/.*", "tran")]}, "no 'tran'. Did you mean 'train'"),
    ({"params": ["llm/.*"]}, r"a list of pairs \(regex, spec\)"),
    (
      {"lr_mults": [("llm/.*", 0)]},
      r"a list of pairs \(regex, a number > 0 and <= 1e\+18\), 0 to 1000",
    ),
    ({"schedule": []}, "a dict or a list of"),
    ({"schedule": [(".*", None)]}, "freezes everything"),
    ({"schedule.warmup_percent": 5}, "a number from 0 to 1"),
    ({"schedule": {"decay_typ": "cosine"}}, "no field 'decay_typ'. Did you mean 'decay_type'"),
    ({"schedule.warmup_steps": 5, "schedule.warmup_percent": 0.1}, None),
    ({"mesh": [("data", "all")]}, r"a list of pairs \(axis, size from 1, or -1, or 'host'\)"),
    ({"seed": 2**31}, "config.seed=2147483648 must be a whole number from 0 to 2147483647"),
    ({"seed": "0x" + "f" * 5000}, "config.seed=a huge number must be a whole number"),
    ({"lr": "-" * 50_000 + "1"}, "cannot be read; it must be like"),
    ({"optax": "{'a.b': 1}"}, "cannot be used: ConfigDict does not accept dots"),
    ({"lr_mults": [("{" + "9" * 1900 + "}", 1)]}, "is not a regular expression"),
  ],
  ids=itertools.count(),
)
def test_a_wrong_value_raises(overrides, message):
  if message is None:  # The later override replaced the earlier one.
    tiny(**overrides)
    return
  with pytest.raises(UserError, match=message):
    tiny(**overrides)


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("def get_config(arg=None):\n  c = 3 +\n", "line 2: invalid syntax"),
    ("def get_config(arg=None):\n  return nope\n", "line 2: NameError"),
    ("import nopackage\n", "line 1: ModuleNotFoundError"),
    ("from configs import common\n\ndef get_config(arg):\n  c = common.base()\n"
     "  c.learning_rate = 3\n  return c\n", "no field 'learning_rate'"),
    ("from configs import common\n\ndef get_config(arg):\n  c = common.base()\n"
     "  c.total_steps = 3\n  return c\n", "config.input lacks data, pp"),
    ("from configs import common\n\ndef get_config(arg):\n  c = common.base()\n"
     "  c.total_steps, c.total_epochs = 3, 4\n  c.input.update(data={}, pp='x')\n  return c\n",
     "only one of total_steps and total_epochs"),
  ],
)  # fmt: skip
def test_a_mistake_in_a_users_file_raises(tmp_path, body, message):
  with pytest.raises(UserError, match=message):
    config_validate.validated(config_load.load(write(tmp_path, body)))


@pytest.mark.parametrize(
  ("section", "want"),
  [
    (dict(total_steps=7), 7),
    (dict(total_epochs=2), 62),  # 2 * 1000 / 32 = 62.5, to the even neighbour.
    (dict(total_epochs=0.0001), 1),
    (dict(total_epochs=0), 0),
    (dict(total_examples=320), 10),
    (dict(total_percent=0.065), 6),  # round(6.5)
    (dict(total_percent=0.0001, total_steps=None), 1),
    ({}, 99),
  ],
)
def test_durations_in_steps(section, want):
  sizes = dict(batch_size=32, num_examples=1000, total_steps=100, default=99)
  assert durations.steps(section, "total", **sizes) == want


@pytest.mark.parametrize(
  ("section", "message"),
  [
    (dict(log_steps=1, log_epochs=2), "only one of log_steps and log_epochs"),
    (dict(log_percent=1.5), "at most 1"),
    (dict(log_epochs=1), "needs num_examples and batch_size"),
  ],
)
def test_an_invalid_duration_raises(section, message):
  with pytest.raises(UserError, match=message):
    durations.steps(section, "log")


def test_a_config_is_checked_without_importing_jax():
  code = (
    "import sys; from pgjax.config import load, validate\n"
    f"validate.validated(load.load({TINY!r}))\n"
    "assert 'jax' not in sys.modules, 'jax'"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_config_saved_before_a_field_existed_gets_its_default():
  saved = tiny(seed=3).to_dict()
  del saved["ema_decay"], saved["stochastic_rounding"]
  again = config_validate.validated(config_load.from_dict(saved))
  assert again.seed == 3
  assert again.ema_decay is None
  assert again.stochastic_rounding is False


def test_without_configs_the_error_names_a_checkout(tmp_path, monkeypatch):
  saved = tiny().to_dict()
  for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setattr(config_load, "_ROOT", tmp_path)
  monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" in p or ".zip" in p])
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="run from a checkout of pgjax"):
    config_load.from_dict(saved)


def test_an_optimizer_and_its_arguments_come_from_the_command_line():
  c = tiny(optax_name="pgjax.adam8bit", optax='{"b2": 0.95, "block": 128}')
  assert c.optax_name == "pgjax.adam8bit"
  assert c.optax.to_dict() == {"b2": 0.95, "block": 128}
