r"""OK-VQA: questions that need knowledge from outside the image. Score: VQA accuracy.

Data: python -m pgjax.prepare okvqa --raw=DIR

python -m pgjax.train --config=configs/okvqa.py:res=448,size=3b --workdir=/tmp/okvqa
"""

from configs import common, transfer

SPLITS = {"minitrain": "train[:5%]", "minival": "train[-10%:]", "eval": "val"}


def get_config(arg=None):
  """big_vision's transfers/okvqa.py; final_split also trains on minival."""
  a = transfer.parse_arg(arg, batch_size=128)
  c = transfer.start(a, "okvqa", epochs=10, lr=5e-6)
  image, prompt = common.image_pp(c), transfer.prompt("answer en {question}")
  c.input.data = transfer.data(a, "okvqa", "train" if a.final_split else "train[:-10%]")
  c.input.pp = common.train_pp(image, prompt, transfer.one_of("answers"))
  pp = common.eval_pp(image, prompt, keep=("answers", "question_id", "id"))
  for name, split in SPLITS.items():
    data, fields = transfer.data(a, "okvqa", split), dict(type="vqa", answer="answers")
    c.evals[f"okvqa/{name}"] = transfer.answers(c, data, pp, 1 / 4, **fields)
    c.evals[f"okvqa/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  return transfer.finish(c, a, "okvqa")
