r"""VQAv2: questions about photos. Score: VQA accuracy.

The test splits have no answers: their predictions go to the test server. Data:
python -m pgjax.prepare vqa --raw=DIR

python -m pgjax.train --config=configs/vqav2.py:res=448,size=3b --workdir=/tmp/vqav2
"""

from configs import common, transfer

MINIVAL = "validation[-10240:]"
SPLITS = [
  *(("minitrain", "train[:5120]", 1 / 4), ("minival", MINIVAL, 1 / 4)),
  ("test", "test+test-dev", 1),
]


def get_config(arg=None):
  """big_vision's transfers/vqav2.py; final_split also trains on minival."""
  a = transfer.parse_arg(arg)
  c = transfer.start(a, "vqav2", epochs=10, lr=1e-5, wd=transfer.at(a.res, {224: 1e-6, 448: 0.0}))
  image, prompt = common.image_pp(c), transfer.prompt("answer en {question_text}")
  split = "train+validation" if a.final_split else "train+validation[:-10240]"
  c.input.data = transfer.data(a, "vqa", split)
  c.input.pp = common.train_pp(image, prompt, transfer.one_of("answers"))
  keep = ("answers", "answer_type", "question_type", "question_id", "id")
  pp = common.eval_pp(image, prompt, keep=keep)
  for name, split, every in SPLITS:
    data, fields = transfer.data(a, "vqa", split), dict(type="vqav2", answer="answers")
    fields["out_question_key"] = "question_id"  # Of the server.
    c.evals[f"vqav2/{name}"] = transfer.answers(c, data, pp, every, **fields)
  for name, split in dict(minitrain="train[:20864]", minival=MINIVAL).items():
    c.evals[f"vqav2/{name}/pplx"] = transfer.pplx(c, transfer.data(a, "vqa", split), 1 / 4)
  return transfer.finish(c, a, "vqav2")
