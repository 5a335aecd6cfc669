r"""ChartQA: questions about charts, human-written and augmented. Score: relaxed accuracy.

Papers report the test scores of both parts, "chartqa/{human,augmented}/eval", or their mean.
Data: python -m pgjax.prepare chartqa --raw=DIR; weights: size=v1 (PaliGemma 1) or 3b, 10b, 28b.

python -m pgjax.train --config=configs/chartqa.py:res=448,size=3b --workdir=/tmp/chartqa
"""

from configs import common, transfer

WEIGHTS = {"human": 7_398, "augmented": 20_901}  # Their sizes: arXiv:2203.10244, table 2.
SPLITS = {"minitrain": "train[:5%]", "minival": "val", "eval": "test"}


def get_config(arg=None):
  """big_vision's transfers/chartqa.py, the published best of its sweep at 224 and 448."""
  a = transfer.parse_arg(arg, parts="human+augmented", text_len=48)
  best = dict(epochs=30, lr=1e-5, wd=1e-6, dropout=0.1, label_smoothing=0.2)
  c = transfer.start(a, "chartqa", **best)
  weights = {f"chartqa/{p}": common.choose("parts", p, WEIGHTS) for p in a.parts.split("+")}
  place = {"data_dir": a.data_dir} if a.data_dir else {}
  split = "train+val" if a.final_split else "train"
  common.vqa_input(c, {**weights, "split": split, **place})
  for part in weights:
    for name, split in SPLITS.items():
      data, fields = transfer.data(a, part, split), dict(type="chartqa", to_lower=True)
      c.evals[f"{part}/{name}"] = common.vqa_eval(c, data, log_percent=0.1, **fields)
      c.evals[f"{part}/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  return transfer.finish(c, a, "chartqa")
