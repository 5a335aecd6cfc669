r"""RSVQA, low resolution: questions about satellite images, no numbers. Score: mean accuracy.

The mean is over the types of question, `acc_avg`. Data: python -m pgjax.prepare rsvqa_lr --raw=DIR

python -m pgjax.train --config=configs/rsvqa_lr.py:res=448,size=3b --workdir=/tmp/rsvqa_lr
"""

from configs import common, transfer

SPLITS = {"minitrain": "train[:1280]", "minival": "val", "test": "test"}


def get_config(arg=None):
  """big_vision's transfers/rsvqa_lr.py, the published best of its sweep."""
  a = transfer.parse_arg(arg)
  c = transfer.start(a, "rsvqa_lr", epochs=3, lr=3e-6, label_smoothing=0.2)
  ops = ('lower(key="answers")', transfer.prompt("answer en {question}"))
  split = "train+val" if a.final_split else "train"
  c.input.data = transfer.data(a, "rsvqa_lr/nonum", split)
  c.input.pp = common.train_pp(common.image_pp(c), *ops, transfer.one_of("answers"))
  keep = ("answers", "question_type", "question_id", "id")
  pp = common.eval_pp(transfer.resized(c), *ops, keep=keep)
  for name, split in SPLITS.items():
    data, fields = transfer.data(a, "rsvqa_lr/nonum", split), dict(answer="answers", to_lower=True)
    c.evals[f"rsvqa_lr/{name}"] = transfer.answers(c, data, pp, 0.1, type="rsvqa", **fields)
    if not name.startswith("test"):
      c.evals[f"rsvqa_lr/{name}/pplx"] = transfer.pplx(c, data, 0.1)
  return transfer.finish(c, a, "rsvqa_lr")
