r"""ChartQA: questions about charts, human-written and augmented. Score: relaxed accuracy.

Papers report the test scores of both parts, "chartqa/{human,augmented}/eval", or their mean.
Data: python -m pgjax.prepare chartqa --raw=DIR; weights: size=v1 (PaliGemma 1) or 3b, 10b, 28b.

python -m pgjax.train --config=configs/chartqa.py:res=448,size=3b --workdir=/tmp/chartqa
"""

from configs import common, published

WEIGHTS = {"human": 7_398, "augmented": 20_901}  # Their sizes: arXiv:2203.10244, table 2.
SPLITS = {"minitrain": "train[:5%]", "minival": "val", "eval": "test"}


def get_config(arg=None):
  """big_vision's transfers/chartqa.py, the published best of its sweep at 224 and 448."""
  a = common.parse_arg(
    arg, res=224, size="v1", variant="", parts="human+augmented", tune="full", batch_size=256,
    text_len=48, data_dir="", final_split=False,
  )  # fmt: skip
  c = common.base()
  c.res, c.text_len = a.res, a.text_len * (2 if a.variant else 1)  # The tiny tokenizer needs more.
  weights = {f"chartqa/{p}": common.choose("parts", p, WEIGHTS) for p in a.parts.split("+")}
  place = {"data_dir": a.data_dir} if a.data_dir else {}
  common.vqa_input(c, {**weights, "split": "train+val" if a.final_split else "train", **place})
  c.input.batch_size = a.batch_size
  c.total_epochs = 30
  c.optax_name, c.optax = "scale_by_adam", dict(b2=0.999)
  c.lr, c.wd, c.label_smoothing = 1e-5, 1e-6, 0.2
  common.set_model(c, size=a.size, variant=a.variant, dropout=0.1)
  common.set_tune(c, a.tune)
  for part in weights:
    for name, split in SPLITS.items():
      data = dict(name=part, split=split, **place)
      known = published.of(part, a.size, a.res) if name == "eval" and not a.variant else {}
      fields = dict(type="chartqa", to_lower=True, log_percent=0.1, published=known)
      c.evals[f"{part}/{name}"] = common.vqa_eval(c, data, **fields)
      c.evals[f"{part}/{name}/pplx"] = common.vqa_pplx(c, data, log_percent=0.05)
  return c
