r"""TallyQA: how many are there? Scored there and on CountBenchQA. Score: accuracy.

Data: python -m pgjax.prepare tallyqa --raw=DIR, python -m pgjax.prepare countbenchqa --raw=DIR

python -m pgjax.train --config=configs/tallyqa.py:res=448,size=3b --workdir=/tmp/tallyqa
"""

from configs import common, transfer

BEST = {224: dict(lr=1e-5), 448: dict(lr=1e-5, wd=1e-6), 896: dict(lr=7e-6, wd=7e-7)}
SPLITS = [("minitrain", "train[:5%]", 0.1), ("eval", "test", 0.25)]


def get_config(arg=None):
  """big_vision's transfers/tallyqa.py; there is no validation split to add."""
  a = transfer.parse_arg(arg)
  c = transfer.start(a, "tallyqa", epochs=2, **transfer.at(a.res, BEST))
  image, prompt = common.image_pp(c), transfer.prompt("answer en {question}")
  c.input.data = transfer.data(a, "tallyqa", "train")
  c.input.pp = common.train_pp(image, prompt, transfer.prompt("{answer}", "suffix"))
  pp = (image, prompt, transfer.prompt("{answer}", "answer"))
  pp = common.eval_pp(*pp, keep=("answer", "issimple", "id"))
  for name, split, every in SPLITS:
    data = transfer.data(a, "tallyqa", split)
    c.evals[f"tallyqa/{name}"] = transfer.answers(c, data, pp, every, type="tallyqa")
    c.evals[f"tallyqa/{name}/pplx"] = transfer.pplx(c, data, 0.1)
  pp = common.eval_pp(image, prompt, transfer.prompt("{number}", "answer"))
  data = transfer.data(a, "countbenchqa", "huggingface")
  c.evals["countbenchqa/eval"] = transfer.answers(c, data, pp, 0.1, type="tallyqa")
  return transfer.finish(c, a, "tallyqa")
