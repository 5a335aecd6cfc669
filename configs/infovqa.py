r"""InfographicVQA: questions about infographics. Score: ANLS.

The test split has no answers: its predictions go to the test server. Data:
python -m pgjax.prepare infovqa --raw=DIR

python -m pgjax.train --config=configs/infovqa.py:res=896,size=3b --workdir=/tmp/infovqa
"""

from configs import common, transfer

BATCH_SIZE = {224: 256, 448: 128, 896: 32}
BEST = {224: dict(lr=1e-5, wd=1e-6), 896: dict(lr=3e-6, wd=3e-7)}
SPLITS = [("minitrain", "train[:5%]", 0.1), ("minival", "val", 0.1), ("test", "test", 1)]


def get_config(arg=None):
  """big_vision's transfers/infovqa.py; batch_size=0 is the published one of the resolution."""
  a = transfer.parse_arg(arg, batch_size=0, text_len=48)
  best = dict(transfer.at(a.res, BEST), batch_size=transfer.at(a.res, BATCH_SIZE))
  c = transfer.start(a, "infovqa", epochs=3, label_smoothing=0.4, **best)
  ops = (common.image_pp(c), 'lower(key="answers")', transfer.prompt("answer en {question}"))
  c.input.data = transfer.data(a, "infovqa", "train+val" if a.final_split else "train")
  c.input.pp = common.train_pp(*ops, transfer.one_of("answers"))
  pp = common.eval_pp(*ops, keep=("answers", "question_id", "id"))
  for name, split, every in SPLITS:
    data, fields = transfer.data(a, "infovqa", split), dict(answer="answers", to_lower=True)
    fields["out_question_key"] = "questionId"  # Of the server.
    c.evals[f"infovqa/{name}"] = transfer.answers(c, data, pp, every, type="vqa", **fields)
    if name != "test":
      c.evals[f"infovqa/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  return transfer.finish(c, a, "infovqa")
