r"""VizWiz-VQA: questions that blind people asked about their photos. Score: VQA accuracy.

The test split has no answers: its predictions go to the test server. Data:
python -m pgjax.prepare vizwizvqa --raw=DIR

python -m pgjax.train --config=configs/vizwizvqa.py:res=448,size=3b --workdir=/tmp/vizwizvqa
"""

from configs import common, transfer

SPLITS = [("minitrain", "train[:5120]", 1 / 8), ("minival", "val", 0.1), ("test", "test", 1)]


def get_config(arg=None):
  """big_vision's transfers/vizwizvqa.py, the published best of its sweep."""
  a = transfer.parse_arg(arg, text_len=48)
  c = transfer.start(a, "vizwizvqa", epochs=10, lr=1e-5)
  prompt = transfer.prompt("answer en {question}")
  c.input.data = transfer.data(a, "vizwizvqa", "train+val" if a.final_split else "train")
  c.input.pp = common.train_pp(common.image_pp(c), prompt, transfer.one_of("answers"))
  ops = (transfer.resized(c), prompt, transfer.copied("image/filename", "question_id"))
  pp = common.eval_pp(*ops, keep=("answers", "question_id", "id"))
  for name, split, every in SPLITS:
    data, fields = transfer.data(a, "vizwizvqa", split), dict(answer="answers", skip_first=False)
    fields["out_question_key"] = "image"  # Of the server.
    c.evals[f"vizwizvqa/{name}"] = transfer.answers(c, data, pp, every, type="vqa", **fields)
  for name, split in dict(minitrain="train", minival="val").items():
    data = transfer.data(a, "vizwizvqa", split)
    c.evals[f"vizwizvqa/{name}/pplx"] = transfer.pplx(c, data, 1 / 8)
  return transfer.finish(c, a, "vizwizvqa")
