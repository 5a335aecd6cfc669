r"""GQA: questions about what is where, scored there and in 8 languages of xGQA. Score: accuracy.

Data: python -m pgjax.prepare gqa --raw=DIR, python -m pgjax.prepare xgqa --raw=DIR

python -m pgjax.train --config=configs/gqa.py:res=448,size=3b --workdir=/tmp/gqa
"""

from configs import common, published, transfer

SPLITS = [
  ("minitrain", "train_balanced[:10000]", dict(log_percent=1 / 8)),
  ("val_balanced", "val_balanced", dict(log_percent=1 / 8, skip_first=True)),
  ("testdev_balanced", "testdev_balanced", dict(log_percent=1.0, skip_first=True)),
]
SUBMISSION = dict(out_question_key="question_id", out_answer_key="prediction")


def get_config(arg=None):
  """big_vision's transfers/gqa.py; tune= (empty) freezes the image tower at 448 px."""
  a = transfer.parse_arg(arg, tune="", prefix="answer en {question}")
  a.tune = a.tune or transfer.at(a.res, {224: "full", 448: "decoder"})
  c = transfer.start(a, "gqa", epochs=1, lr=1e-5)
  image, prompt = transfer.resized(c), transfer.prompt(a.prefix)
  split = "train_balanced+val_balanced" if a.final_split else "train_balanced"
  c.input.data = transfer.data(a, "gqa", split)
  c.input.pp = common.train_pp(image, prompt, common.VQA_SUFFIX)
  keep = ("answer", "question_id", "id")
  pp = common.eval_pp(image, transfer.copied("example_id", "question_id"), prompt, keep=keep)
  for name, split, when in SPLITS:
    data = transfer.data(a, "gqa", split)
    c.evals[f"gqa/{name}/decode"] = transfer.answers(
      c, data, pp, 1 / 8, type="vqa", **when, **SUBMISSION
    )
  for name, split in dict(minitrain="train_balanced", minival="val_balanced").items():
    c.evals[f"gqa/{name}/pplx"] = transfer.pplx(c, transfer.data(a, "gqa", f"{split}[:5%]"), 0.05)
  for split in [f"test_zs_{language}" for language in published.LANGUAGES["xgqa"].split()]:
    data = transfer.data(a, "xgqa", split)
    c.evals[f"xgqa/{split}/decode"] = transfer.answers(c, data, pp, 1 / 8, type="vqa")
  return transfer.finish(c, a, "gqa")
