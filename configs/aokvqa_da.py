r"""A-OKVQA, direct answers to questions that need knowledge. Score: VQA accuracy.

The test split has no answers: its predictions go to the test server. Data:
python -m pgjax.prepare aokvqa --raw=DIR

python -m pgjax.train --config=configs/aokvqa_da.py:res=448,size=3b --workdir=/tmp/aokvqa_da
"""

from configs import common, transfer

SPLITS = [("minitrain", "train[:5%]", 1 / 4), ("eval", "val", 1 / 4), ("test", "test", 1)]


def get_config(arg=None):
  """big_vision's transfers/aokvqa_da.py, the published best of its sweep."""
  a = transfer.parse_arg(arg, batch_size=128)
  c = transfer.start(a, "aokvqa_da", epochs=10, lr=5e-6)
  image, prompt = common.image_pp(c), transfer.prompt("answer en {question}")
  c.input.data = transfer.data(a, "aokvqa", "train+val" if a.final_split else "train")
  c.input.pp = common.train_pp(image, prompt, transfer.one_of("direct_answers"))
  answers = transfer.copied("direct_answers", "answers")
  pp = common.eval_pp(image, prompt, answers, keep=("answers", "question_id", "id"))
  for name, split, every in SPLITS:
    data = transfer.data(a, "aokvqa", split)
    fields = dict(type="vqa", answer="answers", out_question_key="question_id")
    c.evals[f"aokvqa_da/{name}"] = transfer.answers(c, data, pp, every, **fields)
    if name != "test":
      c.evals[f"aokvqa_da/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  return transfer.finish(c, a, "aokvqa_da")
