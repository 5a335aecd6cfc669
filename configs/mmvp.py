r"""MMVP: pairs of photos that CLIP cannot tell apart, one question each. For a VQAv2 transfer or a mix.

Score: `acc_pair`, both answers of a pair are right. size=mix shows the published scores of the mix
checkpoints. Data: python -m pgjax.prepare mmvp --raw=DIR, or fname= a JSONL with image, question,
choices, answer and pair.

python -m pgjax.evaluate --config=configs/mmvp.py:res=448,size=mix --ckpt=paligemma-3b-mix-448 --out=/tmp/mmvp
"""  # noqa: E501

from configs import common, transfer


def get_config(arg=None):
  """Nothing is trained; prefix= is the prompt, which the papers do not print."""
  a = transfer.parse_arg(arg, text_len=64, prefix="answer en {question}", fname="")
  known, a.size = a.size, "v1" if a.size == "mix" else a.size
  c = transfer.start(a, "mmvp", epochs=None, lr=0.0)
  c.total_steps = 0
  image, prompt = common.image_pp(c), transfer.prompt(a.prefix)
  jsonl = dict(name="jsonl", fname=a.fname)
  c.input.data = jsonl if a.fname else transfer.data(a, "mmvp", "test")
  c.input.pp = common.train_pp(image, prompt, common.VQA_SUFFIX)
  pp = common.eval_pp(image, prompt, keep=("answer", "choices", "pair", "id"))
  c.evals["mmvp/test"] = transfer.answers(c, c.input.data, pp, 1, type="choice")
  a.size = known
  return transfer.finish(c, a, "mmvp")
