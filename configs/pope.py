r"""POPE: is an object in the image? For a VQAv2 transfer or a mix checkpoint; nothing is trained.

size=mix shows the published scores of the mix checkpoints. Data: python -m pgjax.prepare pope_random
--raw=DIR

python -m pgjax.evaluate --config=configs/pope.py:res=448,size=mix --ckpt=paligemma-3b-mix-448 --out=/tmp/pope
"""  # noqa: E501

from configs import common, transfer

SETS = ("pope_random", "pope_popular", "pope_adversarial")


def get_config(arg=None):
  """big_vision's transfers/pope.py; prefix= is the prompt, which the papers do not print."""
  a = transfer.parse_arg(arg, text_len=48, prefix="{question}")
  known, a.size = a.size, "v1" if a.size == "mix" else a.size
  c = transfer.start(a, "pope", epochs=None, lr=0.0)
  c.total_steps = 0
  image, prompt = transfer.resized(c), transfer.prompt(a.prefix)
  c.input.data = {name: dict(transfer.data(a, name, "test"), weight=1) for name in SETS}
  c.input.pp = common.train_pp(image, prompt, common.VQA_SUFFIX)
  pp = common.eval_pp(image, prompt, keep=("question_id", "answer", "id"))
  for name in SETS:
    data = transfer.data(a, name, "test")
    fields = dict(type="pope", skip_first=False)
    c.evals[f"pope/{name}"] = transfer.answers(c, data, pp, 1, **fields)
  a.size = known
  return transfer.finish(c, a, "pope")
