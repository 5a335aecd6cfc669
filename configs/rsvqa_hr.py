r"""RSVQA, high resolution: questions about aerial images, no numbers. Score: mean accuracy.

The mean is over the types of question, `acc_avg`. Data: python -m pgjax.prepare rsvqa_hr --raw=DIR

python -m pgjax.train --config=configs/rsvqa_hr.py:res=448,size=3b --workdir=/tmp/rsvqa_hr
"""

from configs import common, transfer

SPLITS = {"minitrain": "train[:1280]", "minival": "val", "test": "test", "test2": "test_2"}


def get_config(arg=None):
  """big_vision's transfers/rsvqa_hr.py, the published best of its sweep."""
  a = transfer.parse_arg(arg)
  c = transfer.start(a, "rsvqa_hr", epochs=1, lr=1e-5)
  ops = ('lower(key="answers")', transfer.prompt("answer en {question}"))
  split = "train+val" if a.final_split else "train"
  c.input.data = transfer.data(a, "rsvqa_hr/nonum", split)
  c.input.pp = common.train_pp(common.image_pp(c), *ops, transfer.one_of("answers"))
  keep = ("answers", "question_type", "question_id", "id")
  pp = common.eval_pp(transfer.resized(c), *ops, keep=keep)
  for name, split in SPLITS.items():
    every = 0.1 if name == "minitrain" else 1
    data, fields = transfer.data(a, "rsvqa_hr/nonum", split), dict(answer="answers", to_lower=True)
    c.evals[f"rsvqa_hr/{name}"] = transfer.answers(c, data, pp, every, type="rsvqa", **fields)
    if not name.startswith("test"):
      c.evals[f"rsvqa_hr/{name}/pplx"] = transfer.pplx(c, data, 0.1)
  return transfer.finish(c, a, "rsvqa_hr")
