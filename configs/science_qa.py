r"""ScienceQA: multiple-choice questions of school science with an image. Score: accuracy.

Choices are shuffled in training. Data: python -m pgjax.prepare science_qa --raw=DIR

python -m pgjax.train --config=configs/science_qa.py:res=448,size=3b --workdir=/tmp/science_qa
"""

from configs import common, transfer

CHOICES = "Options: {indexed_choices}"
PROMPTS = {
  "simple": f"{{question}}\n{CHOICES}",
  "QM": f"Question: {{question}}\n{CHOICES}\nAnswer:",
  "CQM": f"Context: {{hint}}\nQuestion: {{question}}\n{CHOICES}\nAnswer:",
  "QCM": f"Question: {{question}}\nContext: {{hint}}\n{CHOICES}\nAnswer:",
}
REASONS = {"A": "", "AL": "{solution}", "AE": "{lecture}", "ALE": "{lecture} {solution}"}
SPLITS = {"minitrain": "train[:5%]", "minival": "val", "eval": "test"}


def get_config(arg=None):
  """big_vision's transfers/science_qa.py; qfmt and afmt choose what prompt and answer contain."""
  a = transfer.parse_arg(arg, tune="decoder", batch_size=128, text_len=512, qfmt="QCM", afmt="A")
  c = transfer.start(a, "science_qa", epochs=20, lr=1e-5)
  image, prompt = transfer.resized(c), transfer.prompt(common.choose("qfmt", a.qfmt, PROMPTS))
  reason = common.choose("afmt", a.afmt, REASONS)
  answer = "The answer is {indexed_answer}." + (f" BECAUSE: {reason}" if reason else "")
  shuffle = "sci_qa_choices_shuffle(choice_str_inkey='choices', ans_inkey='answer')"
  shuffle = f"drop('indexed_choices', 'indexed_answer')|{shuffle}"
  c.input.data = transfer.data(a, "science_qa", "train+val" if a.final_split else "train")
  c.input.pp = common.train_pp(image, shuffle, prompt, transfer.prompt(answer, "suffix"))
  ops = (image, prompt, transfer.prompt(answer, "answer"), transfer.copied("_id", "question_id"))
  pp = common.eval_pp(*ops, keep=("answer", "question_id", "id"))
  for name, split in SPLITS.items():
    data = transfer.data(a, "science_qa", split)
    c.evals[f"science_qa/{name}"] = transfer.answers(c, data, pp, 1 / 8, type="science_qa")
    if name != "eval":
      c.evals[f"science_qa/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  return transfer.finish(c, a, "science_qa")
