import logging
import sys

from pgjax.config import load as config_load, validate as config_validate
from pgjax.data import prefix_lm, tokenizer
from pgjax.data.pp import parse

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
