r"""AI2D: multiple-choice questions about science diagrams. Score: accuracy on the test split.

The prompt lists the answers. Data: python -m pgjax.prepare ai2d --raw=DIR

python -m pgjax.train --config=configs/ai2d.py:res=448,size=3b --workdir=/tmp/ai2d
"""

from configs import common, transfer

SPLITS = {"minitrain": "train[:1024]", "minival": "train[-1024:]", "eval": "test"}


def get_config(arg=None):
  """big_vision's transfers/ai2d.py; final_split also trains on minival."""
  a = transfer.parse_arg(arg, text_len=128)
  c = transfer.start(a, "ai2d", epochs=10, lr=1e-5, wd=1e-6)
  prompt = (
    "strjoin(' \t ', inkey='possible_answers', outkey='ansstr')",
    transfer.prompt("answer en  {question} choose from: {ansstr}"),
  )
  c.input.data = transfer.data(a, "ai2d", "train" if a.final_split else "train[:-1024]")
  c.input.pp = common.train_pp(transfer.resized(c, antialias=True), *prompt, common.VQA_SUFFIX)
  question_id = transfer.copied("id", "question_id")
  keep = ("answer", "question_id", "id")
  pp = common.eval_pp(transfer.resized(c), *prompt, question_id, keep=keep)
  for name, split in SPLITS.items():
    data = transfer.data(a, "ai2d", split)
    c.evals[f"ai2d/{name}"] = transfer.answers(c, data, pp, 1 / 8, type="vqa")
    c.evals[f"ai2d/{name}/pplx"] = transfer.pplx(c, data, 1 / 8)
  return transfer.finish(c, a, "ai2d")
