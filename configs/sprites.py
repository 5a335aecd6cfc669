r"""Captions of sprites: learned from 230 pictures in minutes, and every word can be checked.

Data: python -m pgjax.prepare sprites. For your own captions: copy this file, with
dict(name="jsonl", fname=...) and 'copy("suffix", "captions")' as in docs/data.md.

python -m pgjax.train --config=configs/sprites.py:size=3b --workdir=/tmp/sprites
"""

from configs import common


def get_config(arg=None):
  """Arguments are swept or affect several fields; set other fields below."""
  a = common.parse_arg(
    arg, prompt="caption en", res=224, size="3b", variant="", text_len=32, batch_size=16,
    tune="attention", data_dir="",
  )  # fmt: skip
  c = common.base()
  c.res, c.text_len = a.res, a.text_len * (2 if a.variant else 1)  # The tiny tokenizer needs more.
  prompt = f"strfmt({a.prompt!r}, outkey='prefix')"
  place = dict(name="sprites", **({"data_dir": a.data_dir} if a.data_dir else {}))
  learned = common.train_pp(common.image_pp(c), prompt, 'choice(inkey="captions", outkey="suffix")')
  c.input.data, c.input.pp = dict(place, split="train"), learned
  c.input.batch_size, c.total_epochs = a.batch_size, 10
  c.lr, c.wd = 1e-5, 0.0
  common.set_model(c, size=a.size, variant=a.variant)
  common.set_tune(c, a.tune)

  fields = dict(common.EVAL, data=dict(place, split="test"), batch_size=40)
  pp = common.eval_pp(common.image_pp(c), prompt, keep=("captions", "image/id"))
  answers = dict(fields, answer="captions", pp=pp, max_decode_len=c.text_len)
  c.evals["test"] = dict(answers, type="caption", caption_metrics=("cider",), log_percent=0.25)
  c.evals["test/exact"] = dict(answers, type="vqa", log_percent=0.25)  # acc_any: word for word.
  c.evals["test/pplx"] = dict(fields, type="perplexity", pp=learned, log_percent=0.1)
  return c
