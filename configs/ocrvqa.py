r"""OCR-VQA: questions about book covers. Score: accuracy.

Data: python -m pgjax.prepare ocrvqa_id --raw=DIR

python -m pgjax.train --config=configs/ocrvqa.py:res=896,size=3b --workdir=/tmp/ocrvqa
"""

from configs import common, transfer

SPLITS = [
  *(("minitrain", "train[:5120]", 1 / 8), ("minival", "val[:20000]", 1 / 4)),
  ("eval", "test", 1),
]


def get_config(arg=None):
  """big_vision's transfers/ocrvqa.py; final_split also trains on minival."""
  a = transfer.parse_arg(arg, batch_size=128)
  c = transfer.start(a, "ocrvqa", epochs=3, lr=transfer.at(a.res, {224: 3e-6, 896: 1e-5}))
  image, prompt = common.image_pp(c), transfer.prompt("answer en {question}")
  split = "train+val" if a.final_split else "train+val[20000:]"
  c.input.data = transfer.data(a, "ocrvqa_id", split)
  c.input.pp = common.train_pp(image, prompt, common.VQA_SUFFIX)
  question_id = transfer.copied("int_id", "question_id")
  pp = common.eval_pp(image, prompt, question_id, keep=("answer", "question_id", "id"))
  for name, split, every in SPLITS:
    data = transfer.data(a, "ocrvqa_id", split)
    c.evals[f"ocrvqa/{name}"] = transfer.answers(c, data, pp, every, type="vqa", to_lower=True)
    c.evals[f"ocrvqa/{name}/pplx"] = transfer.pplx(c, data, 0.1)
  return transfer.finish(c, a, "ocrvqa")
