r"""Your own data, from JSONL files: copy this file and change it.

Each line is {"image": "a.png", "prefix": "the question", "suffix": "the answer"}; images are in the
file's folder, or in root. prompt=... sets the prefix of all examples. Use score=json,grammar=json
for answers in JSON; docs/scores.md has other scores.

python -m pgjax.train --workdir=/tmp/mine --config=configs/forkme.py:train=data/train.jsonl,val=data/val.jsonl,size=3b
"""  # noqa: E501

from configs import common


def get_config(arg=None):
  """Arguments are swept or affect several fields; set other fields below."""
  a = common.parse_arg(
    arg, train="data/train.jsonl", val="data/val.jsonl", root="", prompt="", res=224, size="3b",
    variant="", text_len=128, batch_size=32, tune="full", score="vqa", grammar="",
  )  # fmt: skip
  c = common.base()
  c.res, c.text_len = a.res, a.text_len * (2 if a.variant else 1)  # The tiny tokenizer needs more.
  root = dict(root=a.root) if a.root else {}
  ops = [common.image_pp(c)] + ([f"strfmt({a.prompt!r}, outkey='prefix')"] if a.prompt else [])
  c.input.data = dict(name="jsonl", fname=a.train, **root)
  c.input.pp = common.train_pp(*ops)
  c.input.batch_size = a.batch_size

  c.total_epochs = 15
  c.lr, c.wd = 1e-5, 3e-7
  common.set_model(c, size=a.size, variant=a.variant)
  common.set_tune(c, a.tune)
  c.log_training_steps, c.ckpt_steps = 1, 200

  if a.val:  # val= (empty) trains without evaluation.
    data = dict(name="jsonl", fname=a.val, **root)
    pp = common.eval_pp(*ops, keep=("suffix", "id"))  # Compared, never in the prompt.
    fields = dict(common.EVAL, data=data, batch_size=a.batch_size, max_decode_len=c.text_len)
    answers = dict(type=a.score, pp=pp, answer="suffix", grammar=a.grammar or None)
    c.evals["val"] = fields | answers | dict(log_percent=0.5)
    c.evals["val/pplx"] = fields | dict(type="perplexity", pp=c.input.pp, log_percent=0.1)
  return c
