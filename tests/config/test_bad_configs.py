"""No config that makes no sense gets past the schema: each is one sentence, before JAX starts.

The table is a field (or several) and a value, of every kind that a file or a command line can give.
"""

import copy
import functools
import itertools
import os
import pathlib
import re
import socket

import ml_collections
import pytest

from pgjax.config import durations, load as config_load, schema, synonyms, validate
from pgjax.errors import UserError
from pgjax.kernels import choice
from pgjax.layers import remat
from pgjax.training import schedules

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = f"{ROOT}/configs/easyvqa.py"
NAN, INF = float("nan"), float("inf")
ENTRY = "evals.val."
NOT_TEXT = [3, 1.5, True, None, [], {}, b"x", ""]
NOT_WHOLE = [True, 1.5, NAN, INF, "x", [3], None, 2**70, -(2**70)]
NOT_A_NUMBER = [True, "x", NAN, INF, -INF, [1], {}, 2**70, 1e300]
BAD = {
  "seed": [*NOT_WHOLE, -1, 2**31],
  "res": [*NOT_WHOLE, 0, -8, 10**9, 20_000],
  "num_frames": [*NOT_WHOLE, -1, 10**9],
  "text_len": [*NOT_WHOLE, 0, 1, 10**9, 2**31],
  "tokenizer": [*NOT_TEXT, "a\0b", "\ud800", "/dev/zero"],
  "input": [3, "x", None, []],
  "input.data": [3, "x", None, [], {}, {"split": "train"}, {"x": NAN}, {"x": INF}, {"x": -1},
    {"x": True}, {"x": "1"},
    {"x": {"weight": NAN}}, {"x": {}}, {"name": "jsonl", "fname": "a\0b"},
    {"name": "jsonl", "fname": pathlib.Path("a.jsonl")}, {"name": "jsonl", "skip": 2**70},
    {"name": "jsonl", "limit": NAN}],
  "input.pp": [*NOT_TEXT, "x" * 200_000],
  "input.batch_size": [*NOT_WHOLE, 0, -8, 10**9],
  "input.num_threads": [*NOT_WHOLE, 0, 10**6],
  "input.num_workers": [*NOT_WHOLE, -1, 10**5],
  "input.cache_mb": [*NOT_WHOLE, -1, 2**40],
  "input.allow_truncated": [0, 1, "yes", None],
  "total_epochs": [True, "x", NAN, INF, -1, 1e300, 10**9],
  "total_steps": [True, 1.5, -1, 2**31, 2**70],
  "ckpt_steps": [True, 0.5, -1, 2**31],
  "log_training_percent": [1.5, -0.1, NAN],
  "optax_name": [3, None, ""],
  "optax": [3, "adam", {"b1": 1}, {"b2": 2}, {"b2": -0.1}, {"b2": NAN}, {"b1": True},
    {"eps": -1e-8}, {"momentum": 1.5}, {"x": INF}, {"x": len}, {"mu_dtype": b"x"}],
  "lr": [*NOT_A_NUMBER, -1e-3],
  "lr_mults": [3, "x", [3], [("img/.*", NAN)], [("img/.*", INF)], [("img/.*", 0)],
    [("img/.*", "2")], [("img/(", 1)], [("img/.*", 1, 2)], [(3, 1)]],
  "wd": [*NOT_A_NUMBER, -1],
  "wd_mults": [3, [("img/.*", NAN)], [("img/.*", -1)], [("[", 1)]],
  "stochastic_rounding": [0, "no", None],
  "opt_state_memory": ["gpu", 3, None],
  "ema_decay": [True, 1.0, -0.1, NAN, "x"],
  "grad_clip_norm": [True, -1.0, NAN, INF, "x"],
  "label_smoothing": [True, 1.0, -0.1, NAN, None],
  "schedule": [3, "cosine", NAN, [], [3], [(".*", NAN)], [(".*", {"decay_type": "cosin"})],
    {"decay_type": "cosines"}, {"decay_type": 3}, {"warmup_percent": NAN}, {"warmup_percent": 2},
    {"decay_type": "linear", "end": NAN}, {"decay_type": "polynomial", "power": INF},
    {"decay_type": "rsqrt", "timescale": 0}, {"decay_type": "rsqrt", "timescale": NAN},
    {"decay_type": "stair", "steps": [NAN], "mults": [1]},
    {"decay_type": "stair", "steps": [1], "mults": [INF]},
    {"decay_type": "stair", "steps": [20, 10], "mults": [1, 0.1]},
    {"decay_type": "cosine", "warmup_steps": 1, "warmup_percent": 0.1}],
  "params": [3, "lora", [], ["train"], [(".*", "lora(rank=0)")], [(".*", "freeze('int3')")],
    [(".*", 3)], [("(", "train")], [(".*", "lora(alpha=1e999)")]],
  "model": [3, {}, {"img": {}}],
  "model.img.width": [*NOT_WHOLE[:-3], 0, 63, 10**9],
  "model.img.depth": [True, 0, 1.5, 10**9],
  "model.img.mlp_dim": [0, 10**9, "x"],
  "model.img.num_heads": [0, 3, 10**6],
  "model.img.patch_size": [0, (8, 0), (8,), (8, 8, 8), 7, 1.5, "x"],
  "model.img.dropout": [1.0, -1, NAN],
  "model.img.remat_policy": ["everything", 3],
  "model.img.attention": ["fast", 3],
  "model.llm.attention": ["xla", 3],
  "model.img.pool_type": ["gap"],
  "model.llm.width": [0, 63, 10**9, NAN],
  "model.llm.num_heads": [0, 3, 10**6],
  "model.llm.num_kv_heads": [0, 3],
  "model.llm.head_dim": [0, 15, 1, 10**9],
  "model.llm.vocab_size": [0, 10**9, 1.5],  # Those below the tokenizer's: test_tokenizers.py.
  "model.llm.norm_eps": [-1, NAN, 1e300],
  "model.llm.attn_logits_softcap": [-1, NAN, INF],
  "model.llm.query_pre_attn_norm": ["rsqrt", 0, -1, NAN],
  "model.llm.cache_dtype": ["int8", 3],
  "model.llm.scan": [0, "yes"],
  "model_init": [3, 1.5, True, [], ["a"], {"img": 3}, {"img": None}, "", "a\0b", "/dev/zero"],
  "dtype": ["float16", "fp32", 3, None],
  "remat": ["all", 3, None, ""],
  "attention": ["fast", 3, None, ""],
  "accumulation_dtype": ["float16", 16, None],
  "microbatches": [*NOT_WHOLE, 0, 3, 10**9],
  "mesh": [3, [], ["data"], [("data", 0)], [("data", -2)], [("data", 1.5)], [("data", 10**9)],
    [("data", -1), ("data", 2)], [("a", -1), ("b", -1)], [(3, -1)], "", "tensors", [("model", 2)],
    [("data", -1), ("tensor", -1)], [("data", "hosts")]],
  "sharding_strategy": [3, "fsdp", [3], [("(", "replicate")], [(".*", 3)]],
  "decode": [3, None, "", "beams(3)", "beam(100_000_000)", "beam(10**8)", "beam(0)", "beam(-1)",
    "best_of(1000000, nucleus(0.9))", "nucleus(2)", "temperature(0)", "top_k(1.5)", "beam(3",
    "beam(3); import os", "beam(\0)"],
  "evals": [3, "x", None, []],
  "keep_last": [*NOT_WHOLE, 0, 10**9],
  "keep_best": [3, None, "acc", "val", "val/", "/", "-", "--val/acc", "val//acc", "val/acc/",
    "vall/acc", "val/ac\0c", "../val/acc"],
  ENTRY + "type": ["vqa2", 3, None],
  ENTRY + "data": [3, None, {"x": NAN}],
  ENTRY + "pp": [3, None, ""],
  ENTRY + "batch_size": [*NOT_WHOLE, 0, 10**9],
  ENTRY + "max_decode_len": [*NOT_WHOLE, 0, 10**9],
  ENTRY + "decode": [3, "beam(10**8)", "greedily"],
  ENTRY + "grammar": [3, ""],
  ENTRY + "to_lower": [1, "yes"],
  ENTRY + "answer": [3, "", "_seed", "_epoch", "_mask", "mask_ar", "mask_loss",
    "image_mask", "image"],
  ENTRY + "caption_metrics": ["cider", [], [3]],
  ENTRY + "confidence": [3, "score", None],
  ENTRY + "mask_weights": [3, "", "/dev/zero"],
  ENTRY + "out_question_key": [3, "", True],
  ENTRY + "out_answer_key": [3, "", None],
  ENTRY + "published": [3, {"acc": "high"}, {"acc": NAN}, {"acc": True},
    {"acc": (1.0,)}, {"acc": (1.0, "x")}],
  ENTRY + "skip_first": [1, "yes"],
  ENTRY + "log_steps": [True, -1, 1.5],
  ENTRY + "log_percent": [2, NAN],
}  # fmt: skip
CASES = [(name, value) for name, values in BAD.items() for value in values]
NAMES = (
  "/tmp/outside", "../outside", "a/../../b", "..", ".", "a//b", "/", "a/", "", "a\0b", "a\nb",
  "a\\b",   "~/x", " a", "a ", "a.", "-rf", "$HOME", "a\x1b[31m", "x" * 300, "\ud800",
  "con/predictions.jsonl", "metrics.json", "a/./b",
)  # fmt: skip


@functools.cache
def base():
  return config_load.load(BASE)


def is_sentence(error):
  text = str(error)
  assert "\n" not in text
  assert "\0" not in text
  assert len(text) < 700
  assert text.endswith((".", "?")), text


@pytest.mark.parametrize(("name", "value"), CASES, ids=itertools.count())
def test_a_config_without_sense_is_one_sentence(name, value):
  with pytest.raises(UserError) as caught:
    validate.validated(config_load.overridden(base(), {name: value}))
  is_sentence(caught.value)


def test_the_table_has_every_field():
  sections = [("", schema.RUN), ("input.", schema.INPUT), ("evals.val.", schema.EVAL)]
  fields = {path + name for path, known in sections for name in known}
  fields = {name for name in fields if not name.endswith(durations.UNITS)}
  assert not {name for name in fields - {*BAD} if not any(b.startswith(f"{name}.") for b in BAD)}


@pytest.mark.parametrize(("name", "value"), CASES[::3], ids=itertools.count())
def test_the_same_on_a_command_line(name, value):
  """Texts of values: what cannot be read as a literal is text."""
  written = str(value) if isinstance(value, str) else repr(value)
  if written == "None" and name in ("model_init",):
    return
  try:
    validate.validated(config_load.overridden(base(), {name: written}))
  except UserError as error:
    is_sentence(error)


@pytest.mark.parametrize("name", NAMES, ids=itertools.count())
def test_an_evaluator_is_named_by_a_relative_plain_path(name):
  config = copy.deepcopy(base())
  with config.unlocked():
    config.evals = {name: config.evals.val.to_dict()} if "." not in name else {}
  if "." in name:  # ml_collections refuses it first.
    with pytest.raises((UserError, ValueError)):
      config_load._as_config({"evals": {name: {}}}, pathlib.Path("x.py"))  # noqa: SLF001
    return
  with pytest.raises(UserError, match=r"evaluator|has no|surrogate|NUL") as caught:
    validate.validated(config)
  is_sentence(caught.value)


@pytest.mark.parametrize(
  "name", ["val", "val/pplx", "chartqa/human/eval", "a-b_2", "été", "xm, 3600"]
)
def test_an_ordinary_name_of_an_evaluator_is_accepted(name):
  config = copy.deepcopy(base())
  config.evals = {name: config.evals.val.to_dict()}
  assert list(validate.validated(config).evals) == [name]


def test_two_evaluators_do_not_share_a_file():
  config = copy.deepcopy(base())
  entry = config.evals.val.to_dict()
  config.evals = {"a/b": entry, "a_b": entry}
  with pytest.raises(UserError, match="would write to the same file"):
    validate.validated(config)


@pytest.mark.parametrize(
  "best", ["val/acc", "-val/acc", "val/AP/white cell", "val/acc/count_3", ""]
)
def test_an_ordinary_metric_is_accepted(best):
  assert validate.validated(config_load.overridden(base(), {"keep_best": best})).keep_best == best


def test_pipes_and_sockets_are_no_files(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(str(tmp_path / "socket"))
    for name, kind in (("pipe", "a FIFO"), ("socket", "a socket")):
      for field in ("tokenizer", "model_init", "evals.val.mask_weights"):
        with pytest.raises(UserError, match=kind):
          validate.validated(config_load.overridden(base(), {field: str(tmp_path / name)}))


def test_a_batch_has_a_limit_in_bytes():
  large = {"res": 2048, "num_frames": 16, "input.batch_size": 4096}
  with pytest.raises(UserError, match="images of one batch would take 3,072 GiB"):
    validate.validated(config_load.overridden(base(), large))


def test_a_run_has_a_limit_in_steps():
  config = dict(total_epochs=1e6)
  with pytest.raises(UserError, match="1,000,000,000,000 steps"):
    durations.total_steps(ml_collections.ConfigDict(dict(config, input=dict(batch_size=1))), 10**6)


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("return None", "get_config returned None"),
    ("return [1]", r"get_config returned \[1\]"),
    ("return 'x'", "get_config returned 'x'"),
    ("c.x = [c]; c.x[0].y = c; return c", "contains itself|no field|a field"),
    ("c.lr = True; return c", "lr=True must be a number"),
    ("c.schedule = []; c.schedule.append(c.schedule); return c", "."),
    ("return {'a.b': 1}", "cannot be read"),
    ("return {1: 2}", "a field is called 1; names of fields are text"),
    (
      "import ml_collections as m; c.lr = m.config_dict.placeholder(float); return c",
      "config.lr=None must be a number",
    ),
    (
      "c.optax = {'mask': len}; c.total_steps = 1; c.input.update(data=dict(name='x'), pp='x');"
      " return c",
      "a config holds text, numbers",
    ),
    ("import numpy as np; c.lr = np.float32(1); return c", "config.lr=.* must be a number"),
    ("c.model_name = 'x'; return c", "as a config of big_vision, but not all"),
    ("return 1 / 0", "line 4: ZeroDivisionError"),
    ("raise ValueError", "mine.py: "),
    ("raise ValueError('a', 'b', 'c', 'd')", "mine.py: a"),
    ("import sys; sys.setrecursionlimit(3000); return get_config()", "RecursionError"),
  ],
  ids=itertools.count(),
)
def test_a_file_that_makes_no_config_is_one_sentence(tmp_path, body, message):
  lines = [
    "from configs import common",
    "def get_config(arg=None):",
    "  c = common.base()",
    f"  {body}",
  ]
  path = tmp_path / "mine.py"
  path.write_text("\n".join(lines) + "\n")
  with pytest.raises(UserError, match=message) as caught:
    validate.validated(config_load.load(str(path)))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "content", [b"\xff\xfe", b"a\0b", b"", b"x = 1\n", b"def get_config(: pass"]
)
def test_a_file_that_is_no_python_is_one_sentence(tmp_path, content):
  path = tmp_path / "mine.py"
  path.write_bytes(content)
  with pytest.raises(UserError, match=r"mine\.py") as caught:
    config_load.load(str(path))
  assert "\n" not in str(caught.value)


FORK = f"{ROOT}/configs/forkme.py:"


@pytest.mark.parametrize(
  ("arg", "train"),
  [
    ('train="a,b.jsonl",val=', "a,b.jsonl"),
    ("train='a,b.jsonl',val=", "a,b.jsonl"),
    ("train='a\"b.jsonl',val=", 'a"b.jsonl'),
    ("val=,train=a b=c.jsonl", "a b=c.jsonl"),
    ("train='',val=", ""),
  ],
)
def test_an_argument_may_hold_commas_in_quotes(arg, train):
  assert config_load.load(FORK + arg).input.data.fname == train


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("train=a,b.jsonl", r"no argument 'b\.jsonl'\. A value with a comma is written in quotes"),
    ('train="a,b.jsonl', "begins with \" and must end with it"),
    ('train="a"b', "begins with \" and must end with it"),
    ("lr=1e-4", r"no argument 'lr'\. Here it is `lr`; write --config\.lr=1e-4\."),
    ("learning_rate=1e-4", r"Here it is `lr`; write --config\.lr=1e-4\."),
    ("epochs=3", r"Here it is `total_epochs`; write --config\.total_epochs=3\."),
    ("warmup_percent=0.1", r"write --config\.schedule\.warmup_percent=0\.1"),
    ("res=" + "9" * 5000, "res=9{60} must be a whole number"),
    ("lora_r=8", "tune=lora"),
  ],
  ids=itertools.count(),
)  # fmt: skip
def test_a_wrong_argument_says_where_the_setting_is(arg, message):
  with pytest.raises(UserError, match=message):
    config_load.load(FORK + arg)


@pytest.mark.parametrize(
  ("field", "message"),
  [
    ("learning_rate", r"write --config\.lr=3\."),
    ("num_train_epochs", r"write --config\.total_epochs=3\."),
    ("gradient_accumulation_steps", "`microbatches`"),
    ("per_device_train_batch_size", r"`input\.batch_size`, over all devices"),
    ("bf16", r"--config\.dtype=bfloat16"),
    ("batch_size", r"write --config\.input\.batch_size=3\."),
    ("max_new_tokens", r"write --config\.evals\.NAME\.max_decode_len=3\."),
    ("output_dir", "--workdir"),
    ("Learning-Rate", r"write --config\.lr=3\."),
  ],
)
def test_a_word_of_other_trainers_is_translated(field, message, tmp_path):
  with pytest.raises(UserError, match=message):
    config_load.overridden(base(), {field: "3"})


def test_a_synonym_names_a_field_that_is_there_and_is_none_itself():
  config = base()
  for word, field in synonyms._FIELD_OF.items():  # noqa: SLF001
    path = tuple(field.replace("NAME", "val").split("."))
    known = schema.fields_at(path[:-1])
    assert path[0] == "optax" or path[-1] in known, field
    with pytest.raises(UserError, match=re.escape(f"`{field}`")):
      config_load.overridden(config, {word: "3"})
  words = [*synonyms._FIELD_OF, *synonyms._TEXT_OF]  # noqa: SLF001
  assert not set(words) & {*schema.RUN, *schema.INPUT, *schema.EVAL, *schema.SCHEDULE}
  assert not synonyms._FIELD_OF.keys() & synonyms._TEXT_OF.keys()  # noqa: SLF001


def test_names_that_the_schema_repeats_are_those_of_the_code():
  assert set(schema.REMAT_POLICIES) == {remat.BALANCED, *remat.POLICIES}
  assert schema.DECAY_TYPES == schedules.DECAY_TYPES
  assert schema.ATTENTION == choice.NAMES
