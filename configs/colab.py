r"""The recipe of big_vision's Colab: captions in a certain style from 90 examples, on one small GPU.

Only the attention of the decoder trains, with SGD; the rest stays as it is. Its data, longcap100,
are two JSONL files with image and suffix; any other captions do: train=...,val=....

python -m pgjax.train --workdir=/tmp/colab --config=configs/colab.py:train=longcap100/data_train90.jsonl,val=longcap100/data_val10.jsonl
"""  # noqa: E501

from configs import common


def get_config(arg=None):
  """finetune_paligemma.ipynb: 64 steps of 8 examples at a rate of 0.03, after 10% of warm-up."""
  a = common.parse_arg(
    arg, train="longcap100/data_train90.jsonl", val="longcap100/data_val10.jsonl", root="",
    prompt="caption en", res=224, size="3b", variant="", text_len=128, batch_size=8,
    tune="attention",
  )  # fmt: skip
  c = common.base()
  c.res, c.text_len = a.res, a.text_len * (2 if a.variant else 1)  # The tiny tokenizer needs more.
  prompt = f"strfmt({a.prompt!r}, outkey='prefix')"
  root = dict(root=a.root) if a.root else {}
  c.input.data = dict(name="jsonl", fname=a.train, **root)
  c.input.pp = common.train_pp(common.image_pp(c), prompt, 'lower(key="suffix")')
  c.input.batch_size, c.total_steps = a.batch_size, 65

  c.lr, c.wd = 1e-5, 0.0  # Of other ways to tune; "attention" sets 0.03.
  c.schedule = dict(decay_type="cosine", warmup_percent=0.10)
  common.set_model(c, size=a.size, variant=a.variant)
  common.set_tune(c, a.tune)
  c.log_training_steps = 1

  if a.val:  # val= (empty) trains without evaluation.
    data = dict(name="jsonl", fname=a.val, **root)
    pp = common.eval_pp(common.image_pp(c), prompt, keep=("suffix", "id"))
    fields = dict(common.EVAL, data=data, batch_size=a.batch_size, max_decode_len=c.text_len)
    captions = dict(type="caption", answer="suffix", caption_metrics=("cider", "rouge"), pp=pp)
    c.evals["val"] = fields | captions | dict(log_steps=16)
    c.evals["val/pplx"] = fields | dict(type="perplexity", pp=c.input.pp, log_percent=0.25)
  return c
