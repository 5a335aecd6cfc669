r"""Widget Captioning: what does the marked element of an app's screen do? Score: CIDEr.

A red box marks the element. Data: python -m pgjax.prepare widgetcap --raw=DIR

python -m pgjax.train --config=configs/widgetcap.py:res=448,size=3b --workdir=/tmp/widgetcap
"""

from configs import common, transfer

PPLX = {"minitrain": "train[:5%]", "minival": "dev", "eval": "test"}


def get_config(arg=None):
  """big_vision's transfers/widgetcap.py, the published best of its sweep."""
  a = transfer.parse_arg(arg, batch_size=64)
  best = dict(epochs=4, lr=3e-6, wd=3e-7, dropout=0.1, label_smoothing=0.1)
  c = transfer.start(a, "widgetcap", **best)
  image = f"decode|resize({c.res}, antialias=True)|draw_bbox|value_range(-1, 1)"
  ops = (image, transfer.prompt("caption en"))
  c.input.data = transfer.data(a, "widgetcap", "train+dev" if a.final_split else "train")
  c.input.pp = common.train_pp(*ops, transfer.one_of("texts"))
  pp = transfer.captions_pp(transfer.copied("texts", "captions"), *ops)
  for name, split in dict(val="dev", eval="test").items():
    c.evals[f"widgetcap/{name}"] = transfer.captions(
      c, transfer.data(a, "widgetcap", split), pp, 0.1
    )
  for name, split in PPLX.items():
    c.evals[f"widgetcap/{name}/pplx"] = transfer.pplx(c, transfer.data(a, "widgetcap", split), 0.05)
  return transfer.finish(c, a, "widgetcap")
