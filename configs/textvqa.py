r"""TextVQA: questions about text in photos. Score: VQA accuracy.

The test split has no answers: its predictions go to the test server. Data:
python -m pgjax.prepare textvqa --raw=DIR

python -m pgjax.train --config=configs/textvqa.py:res=896,size=3b --workdir=/tmp/textvqa
"""

from configs import common, transfer

BEST = {224: dict(epochs=5), 448: dict(epochs=10, wd=3e-7), 896: dict(epochs=10)}
SPLITS = [("minitrain", "train[:5120]", 1 / 8), ("eval", "val", 1 / 8), ("test", "test", 1)]


def get_config(arg=None):
  """big_vision's transfers/textvqa.py, the published best of its sweep."""
  a = transfer.parse_arg(arg)
  c = transfer.start(a, "textvqa", lr=3e-6, **transfer.at(a.res, BEST))
  image, prompt = common.image_pp(c), transfer.prompt("answer en {question}")
  c.input.data = transfer.data(a, "textvqa", "train+val" if a.final_split else "train")
  c.input.pp = common.train_pp(image, prompt, transfer.one_of("answers"))
  keep = ("answers", "answer_type", "question_id", "id")
  pp = common.eval_pp(image, prompt, transfer.prompt("other", "answer_type"), keep=keep)
  for name, split, every in SPLITS:
    data, fields = transfer.data(a, "textvqa", split), dict(type="vqav2", answer="answers")
    fields["out_question_key"] = "question_id"  # Of the server.
    c.evals[f"textvqa/{name}"] = transfer.answers(c, data, pp, every, **fields)
  for name, split in dict(minitrain="train[:5%]", eval="val").items():
    c.evals[f"textvqa/{name}/pplx"] = transfer.pplx(c, transfer.data(a, "textvqa", split), 0.05)
  return transfer.finish(c, a, "textvqa")
