r"""A-OKVQA, multiple choice of questions that need knowledge. Score: accuracy.

The test split has no answers (what is scored there is the last choice): its predictions go to the
test server. Data: python -m pgjax.prepare aokvqa --raw=DIR

python -m pgjax.train --config=configs/aokvqa_mc.py:res=448,size=3b --workdir=/tmp/aokvqa_mc
"""

from configs import common, transfer

SPLITS = [("minitrain", "train[:5%]", 1 / 4), ("eval", "val", 1 / 4), ("test", "test", 1)]
CHOICES = "multiple_choice_possible_answers"


def right_choice(outkey):
  """The op that picks the right one of the choices."""
  index = "multiple_choice_correct_idx"
  return f"getidx(inkey='{CHOICES}', index_key='{index}', outkey='{outkey}')"


def get_config(arg=None):
  """big_vision's transfers/aokvqa_mc.py, the published best of its sweep."""
  a = transfer.parse_arg(arg, batch_size=128, text_len=128)
  c = transfer.start(a, "aokvqa_mc", epochs=15, lr=5e-6)
  choices = f"strjoin(' \t ', inkey='{CHOICES}', outkey='ansstr')"
  prompt = transfer.prompt("answer en  {question} choose from: {ansstr}")
  ops = (common.image_pp(c), choices, prompt)
  c.input.data = transfer.data(a, "aokvqa", "train+val" if a.final_split else "train")
  c.input.pp = common.train_pp(*ops, right_choice("suffix"))
  pp = common.eval_pp(*ops, right_choice("answer"), keep=("answer", "question_id", "id"))
  for name, split, every in SPLITS:
    data = transfer.data(a, "aokvqa", split)
    c.evals[f"aokvqa_mc/{name}"] = transfer.answers(
      c, data, pp, every, type="vqa", out_question_key="question_id"
    )
    c.evals[f"aokvqa_mc/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  return transfer.finish(c, a, "aokvqa_mc")
