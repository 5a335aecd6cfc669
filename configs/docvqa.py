r"""DocVQA: questions about scanned documents. Score: ANLS.

The test split has no answers: its predictions go to the test server. Data:
python -m pgjax.prepare docvqa --raw=DIR

python -m pgjax.train --config=configs/docvqa.py:res=896,size=3b --workdir=/tmp/docvqa
"""

from configs import common, transfer

SPLITS = [
  *(("minitrain", "train[:5%]", 1 / 8), ("minival", "train[-5%:]", 1 / 8)),
  *(("eval", "val", 1 / 8), ("test", "test", 1)),
]


def get_config(arg=None):
  """big_vision's transfers/docvqa.py; final_split also trains on minival and val."""
  a = transfer.parse_arg(arg)
  c = transfer.start(a, "docvqa", epochs=10, lr=1e-5, wd=1e-6)
  image, split = common.image_pp(c), "train+val" if a.final_split else "train[:-5%]"
  c.input.data = transfer.data(a, "docvqa", split)
  suffix = 'choice(inkey="answers", outkey="suffix")'
  c.input.pp = common.train_pp(image, common.VQA_PREFIX, suffix)
  pp = common.eval_pp(image, common.VQA_PREFIX, keep=("answers", "question_id", "id"))
  for name, split, every in SPLITS:
    data, fields = transfer.data(a, "docvqa", split), dict(answer="answers", to_lower=True)
    fields["out_question_key"] = "questionId"  # Of the server.
    c.evals[f"docvqa/{name}"] = transfer.answers(c, data, pp, every, type="vqa", **fields)
    if name != "test":
      c.evals[f"docvqa/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  return transfer.finish(c, a, "docvqa")
