import json
import logging
import os
import re
import sys
import types

import pytest

from pgjax.config import (
  contents,
  load as config_load,
  original_modules,
  validate as config_validate,
)
from pgjax.data import loader, pipeline, prefix_lm, tokenizer
from pgjax.data.pp import parse
from pgjax.errors import UserError

# Written as big_vision's transfer configs are, with their imports, fields and a mixture.
ORIGINAL = r"""
import big_vision.configs.common as bvcc
from big_vision.configs.proj.paligemma.transfers.common import (
    combine_and_keep_train, combine_and_keep_eval, TOKENIZER)

def get_config(arg=None):
  c = bvcc.parse_arg(arg, mode='xm', res=224, freeze_vit=True)
  image = f'decode|resize({c.res}, antialias=True)|value_range(-1, 1)'
  question = 'copy(inkey="question", outkey="prefix")'
  c.input = bvcc.parse_arg('')
  c.input.data = {'a/x': 3, 'a/y': 5}
  pp = '|'.join([image, question, 'copy(inkey="answer", outkey="suffix")',
                 combine_and_keep_train(48)])
  for ds in c.input.data:
    c.input[ds] = dict(pp=pp, shuffle_buffer_size=50_000, data=dict(name=ds, split='train'))
  c.input.batch_size = 256
  c.total_epochs = 10
  c.optax_name = 'scale_by_adam'
  c.lr, c.wd, c.grad_clip_norm, c.label_smoothing = 3e-6, 3e-7, 1.0, 0.0
  sched = dict(decay_type='cosine', warmup_percent=0.05)
  c.schedule = [('img/.*', None if c.freeze_vit else sched), ('llm/.*', sched)]
  c.evals = {}
  c.evals['a/val'] = dict(
      type='proj.paligemma.transfers.chartqa', pred='decode', pred_kw={'max_decode_len': 48},
      outfile='{workdir}/a.json', to_lower=True, data=dict(name='a/x', split='val'),
      log_percent=0.1, tokenizer=TOKENIZER,
      pp_fn='|'.join([image, question, combine_and_keep_eval(48, keep=('answer',))]))
  c.evals['a/pplx'] = dict(
      type='proj.paligemma.perplexity', pred='logits', key='text', shift_labels=True,
      log_percent=0.05, data=dict(name='a/x', split='val'), pp_fn=pp)
  c.model_name = 'proj.paligemma.paligemma'
  c.model = {}
  c.model.img = dict(variant='So400m/14', pool_type='none', scan=True)
  c.model.llm = dict(vocab_size=256_000 + 1024 + 128, dropout=0.0)
  c.model_init = f'pt_{c.res}'
  c.mesh = [('data', -1)]
  c.sharding_strategy = [('.*', 'fsdp(axis="data")')]
  c.sharding_rules = [('act_batch', ('data',))]
  c.log_training_steps, c.ckpt_steps = 50, 1_000
  c.pp_modules = ['ops_general', 'ops_image']
  c.seed = 0
  return c
"""


def write(tmp_path):
  path = tmp_path / "original.py"
  path.write_text(ORIGINAL)
  return str(path)


def test_an_original_big_vision_config_loads_unchanged(tmp_path, caplog):
  with caplog.at_level(logging.WARNING, "pgjax"):
    c = config_validate.validated(config_load.load(write(tmp_path) + ":res=448"))
  assert c.params == [("img/.*", "freeze"), ("llm/.*", "train")]
  assert c.input.data["a/y"].to_dict() == dict(name="a/y", split="train", weight=5)
  assert (c.text_len, c.model_init, c.lr) == (48, "pt_448", 3e-6)
  entry = c.evals["a/val"]
  assert (entry.type, entry.max_decode_len, entry.batch_size) == ("chartqa", 48, 256)
  assert c.evals["a/pplx"].type == "perplexity"
  for name in ("pp_modules", "sharding_rules", "input.*.shuffle_buffer_size", "evals.*.outfile"):
    assert name in caplog.text
  assert "big_vision" not in sys.modules


def test_the_originals_packing_is_ours(tmp_path):
  c = config_load.load(write(tmp_path))
  tok = tokenizer.load("tiny")
  text = dict(question="what?", answer="a bar", image=None)

  def packed(pp):
    return parse.parse("|".join(pp.split("|")[3:]), tokenizer=tok)(dict(text))

  train, want = packed(c.input.pp), prefix_lm.for_training(tok, "what?", "a bar", 48).arrays
  for name in ("text", "mask_ar", "mask_loss"):
    assert train[name].tolist() == want[name].tolist()
  prompt, want = packed(c.evals["a/val"].pp), prefix_lm.for_decoding(tok, "what?", 48).arrays
  for name in ("text", "mask_ar", "mask_input"):
    assert prompt[name].tolist() == want[name].tolist()


# What forkme has besides, and the kinds of evaluators that ORIGINAL lacks.
MORE = r"""
def forked(c):
  base = 'decode|resize(16)|value_range(-1, 1)|strfmt("caption en", outkey="prefix")'
  data = dict(name='bv:jsonl', fname='gs://bucket/a.jsonl', fopen_keys={'image': 'gs://bucket/'},
              stop=float('inf'), download_keys=[])
  packed = combine_and_keep_eval(48, keep=('id', 'suffix'))
  c.input = dict(data=data, pp=base + '|' + combine_and_keep_train(48), batch_size=8)
  c.name = ''
  c.evals = {}
  c.evals['store'] = dict(
      type='proj.paligemma.transfers.storepreds', pred='decode', data=data, log_percent=0.5,
      pred_kw={'max_decode_len': 48}, pp_fn=base + '|' + packed)
  c.evals['pplx'] = dict(
      type='proj.paligemma.perplexity', pred='logits', data=data, log_percent=0.5,
      pp_fn=base + '|' + combine_and_keep_eval(48))
  c.evals['qa'] = dict(
      type='proj.paligemma.transfers.vqa', pred='decode', data=dict(data), log_percent=0.5,
      pred_kw=dict(sampler='nucleus(0.9)', best_of_n=4, eos_look_behind=1),
      out_question_key='questionId', outfile='{workdir}/qa.json', pp_fn=base + '|' + packed)
  c.evals['cap'] = dict(
      type='proj.paligemma.transfers.coco_caption', pred='beam_decode', data=dict(data),
      pred_kw={'beam_size': 2}, log_percent=0.5, metrics=('cider', 'bleu-4'),
      pp_fn=base + '|' + combine_and_keep_eval(48, keep=('image/id', 'captions')))
  c.evals['two'] = dict(
      type='proj.paligemma.transfers.vqa', pred='decode', data=dict(data), log_percent=0.5,
      pp_fn='stack_images(inkeys=["a", "b"], outkey="image")|'
            'video_ensure_shape("image", (2, 16, 16, 3))|' + combine_and_keep_eval(48))
  return c
"""
# What a fork may have on disk: its packing has the answer in the prompt, as the original's.
INSTALLED = {
  "__init__.py": "",
  "configs/__init__.py": "",
  "configs/common.py": "def parse_arg(arg, **spec):\n  raise NotImplementedError\n",
  "configs/helper.py": "RES = 448\n",
  "configs/proj/paligemma/transfers/common.py": "SEPARATOR = '|'\n",
}


def fork(tmp_path):
  path = tmp_path / "fork.py"
  path.write_text(MORE + ORIGINAL.replace("  return c\n", "  return forked(c)\n"))
  return str(path)


def install_big_vision(folder, monkeypatch):
  for name, text in INSTALLED.items():
    path = folder / "big_vision" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  monkeypatch.syspath_prepend(str(folder))


def ids(pp, tok, **row):
  """The row after the ops behind those of the image."""
  ops = [op for op in pp.split("|") if not re.match("decode|resize|value_range", op)]
  return parse.parse("|".join(ops), tokenizer=tok)(dict(row, image=None))


def test_single_words_set_an_argument_as_in_big_vision(tmp_path):
  path = write(tmp_path)
  assert config_load.load(f"{path}:freeze_vit").model_init == "pt_224"
  assert config_load.load(f"{path}:mode=mock,res=448").model_init == "pt_448"
  with pytest.raises(UserError, match=r"no argument 'freez_vit'\. Did you mean 'freeze_vit'"):
    config_load.load(f"{path}:freez_vit")
  with pytest.raises(UserError, match="argument 'rez'"):
    config_load.load(f"{path}:rez=448")
  with original_modules.stand_ins(config_load.shared("common").parse_arg) as arguments:
    from big_vision.configs.common import parse_arg

    assert parse_arg("448", res=224, mode="xm").res == 448
    assert parse_arg("runlocal", mode="xm", res=224).mode == "runlocal"
    assert parse_arg("", res=(None, int)).res is None
    assert parse_arg("res=8,b", res=(None, int), b=False).to_dict() == dict(res=8, b=True)
    assert parse_arg("a=2,b=x", lazy=True, c=1).to_dict() == dict(a=2, b="x", c=1)
  assert arguments == {"res", "mode", "b", "c"}


def test_an_installed_big_vision_changes_nothing(tmp_path, monkeypatch):
  alone = config_load.load(fork(tmp_path)).to_dict()
  install_big_vision(tmp_path / "installed", monkeypatch)
  imported = types.ModuleType("big_vision")
  monkeypatch.setitem(sys.modules, "big_vision", imported)
  assert config_load.load(fork(tmp_path)).to_dict() == alone
  assert sys.modules["big_vision"] is imported
  path = tmp_path / "own.py"
  own = (
    "from big_vision.configs.helper import RES\n"
    "from big_vision.configs.proj.paligemma.transfers.common import SEPARATOR\n"
  )
  path.write_text(own + ORIGINAL.replace("res=224", "res=RES"))
  assert config_load.load(str(path)).res == 448
  assert [name for name in sys.modules if name.startswith("big_vision")] == ["big_vision"]


def test_a_true_answer_is_never_in_a_prompt(tmp_path):
  config, tok = config_load.load(fork(tmp_path)), tokenizer.load("tiny")
  want = prefix_lm.for_decoding(tok, "caption en", 48).arrays
  row = ids(config.evals["store"].pp, tok, suffix="the answer", id="7")
  for name in ("text", "mask_ar", "mask_input"):
    assert row[name].tolist() == want[name].tolist()
  assert (row["suffix"], row["id"]) == ("the answer", "7")
  assert config.evals["qa"].answer == "suffix"


def test_a_likelihood_packed_as_a_prompt_is_that_of_the_answer(tmp_path):
  config, tok = config_load.load(fork(tmp_path)), tokenizer.load("tiny")
  row = ids(config.evals["pplx"].pp, tok, suffix="a bar")
  part = loader.Part("own", [0], 1.0)
  layout = loader.Layout(16, 48, 0, for_training=True, for_perplexity=True)
  packed = loader.Loader(part, "", tok, layout, 0)._pack(row, row).arrays  # noqa: SLF001
  want = prefix_lm.for_training(tok, "caption en", "a bar", 47).arrays
  for name in ("text", "mask_loss"):
    assert packed[name].tolist() == want[name].tolist()


def test_fields_of_the_originals_have_a_meaning(tmp_path):
  config = config_load.load(fork(tmp_path))
  assert config.num_frames == 2
  assert config.evals["cap"].caption_metrics == ["cider", "bleu"]
  assert config.evals["cap"].decode == "beam(2)"
  assert config.evals["qa"].decode == "best_of(4, nucleus(0.9))"
  keys = {n: (e.out_question_key, e.out_answer_key) for n, e in config.evals.items()}
  assert keys["qa"] == ("questionId", "answer")
  assert keys["cap"] == ("image_id", "caption")
  assert keys["store"] == ("id", "caption")
  assert keys["pplx"][0] is None


def test_buckets_are_named_or_stand_for_a_folder(tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"--config.evals.*fname=..., or the environment variable"):
    config_validate.validated(config_load.load(fork(tmp_path)))
  monkeypatch.setenv(contents.BUCKETS, "/copies")
  data = config_validate.validated(config_load.load(fork(tmp_path))).input.data.to_dict()
  assert data["fname"] == "/copies/bucket/a.jsonl"
  assert data["fopen_keys"] == {"image": "/copies/bucket/"}
  assert set(data) == {"name", "fname", "fopen_keys"}
  path = tmp_path / "list.py"
  path.write_text(
    (tmp_path / "fork.py").read_text().replace("{'image': 'gs://bucket/'}", "['image']")
  )
  assert config_load.load(str(path)).input.data.root == os.getcwd()
  path.write_text(path.read_text().replace("['image']", "{'mask': 'masks'}"))
  with pytest.raises(UserError, match=r"fopen_keys names \['mask'\]"):
    config_validate.validated(config_load.load(str(path)))
  path.write_text(path.read_text().replace("download_keys=[]", "download_keys=['image']"))
  with pytest.raises(UserError, match="asks for downloads"):
    contents.check_data(dict(config_load.load(str(path)).input.data, fopen_keys=None), "x")


def test_each_data_set_of_a_mixture_may_have_its_own_ops(tmp_path):
  text = ORIGINAL.replace("dict(pp=pp,", "dict(pp=pp.replace('224', '448') if 'y' in ds else pp,")
  (tmp_path / "mixed.py").write_text(text)
  config = config_validate.validated(config_load.load(str(tmp_path / "mixed.py")))
  data = config.input.data.to_dict()
  assert "pp" not in data["a/x"]
  assert "resize(448" in data["a/y"]["pp"]
  assert "resize(224" in config.input.pp
  assert contents.ops_of(config.input) == [config.input.pp, data["a/y"]["pp"]]
  data["a/y"]["pp"] = ""
  with pytest.raises(UserError, match="must be a string of ops"):
    contents.check_data(type(config.input)(data), "config.input.data")
  for name in ("x", "y"):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(dict(image="a.png", q=name)))
  own = dict(name="jsonl", weight=1)
  mixture = dict(
    x=dict(own, fname=str(tmp_path / "x.jsonl")),
    y=dict(own, fname=str(tmp_path / "y.jsonl"), pp='strfmt("Y {q}", outkey="prefix")'),
  )
  texts = []
  for part in pipeline.parts(mixture, check_images=False):
    layout = loader.Layout(16, 48, 0, for_training=False)
    made = loader.Loader(part, 'copy("q", "prefix")', tokenizer.load("tiny"), layout, 0)
    texts.append(made.texts(0)[0]["prefix"])
  assert texts == ["x", "Y y"]


def test_configs_of_another_project_in_the_working_directory(tmp_path, monkeypatch):
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs/__init__.py").write_text("")
  (tmp_path / "configs/common.py").write_text("def parse_arg(arg):\n  return arg\n")
  monkeypatch.chdir(tmp_path)
  for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
    monkeypatch.delitem(sys.modules, name)
  assert config_load.load(write(tmp_path)).lr == 3e-6
  for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
    monkeypatch.delitem(sys.modules, name)


def test_a_config_without_a_reader_of_videos_says_what_to_write(tmp_path):
  reader = "raise NotImplementedError('Please implement a video reader of choice!')"
  text = ORIGINAL.replace("  c.input = bvcc", f"  {reader}\n  c.input = bvcc")
  text = text.replace("data=dict(name=ds,", "data=dict(name='<add_your_data_loader_here>',")
  path = tmp_path / "video.py"
  path.write_text(text)
  with pytest.raises(UserError, match=r"replace it by `from .* import video`") as told:
    config_load.load(str(path))
  line = re.search("`(.*)`", str(told.value))[1]
  path.write_text(text.replace(reader, line))
  assert config_load.load(str(path)).input.data["a/x"].name == "video"
