r"""How often do two lines cross? Small models learn from drawings what large ones count wrong.

Data: python -m pgjax.prepare intersections. Test scores of models that were not tuned for it are
near 1/3 to 1/2, that of always saying 1 is 1/3.

python -m pgjax.train --config=configs/intersections.py:size=3b --workdir=/tmp/intersections
"""

from configs import common


def get_config(arg=None):
  """Arguments are swept or affect several fields; set other fields below."""
  a = common.parse_arg(
    arg, res=224, size="3b", variant="", text_len=24, batch_size=64, tune="full", data_dir=""
  )
  c = common.base()
  c.res, c.text_len = a.res, a.text_len * (2 if a.variant else 1)  # The tiny tokenizer needs more.
  place = dict(name="intersections", **({"data_dir": a.data_dir} if a.data_dir else {}))
  common.vqa_input(c, dict(place, split="train"))
  c.input.batch_size, c.total_epochs = a.batch_size, 5
  c.lr, c.wd = 1e-5, 0.0
  common.set_model(c, size=a.size, variant=a.variant)
  common.set_tune(c, a.tune)
  for split, every in (("val", dict(log_percent=0.2)), ("test", {})):  # test: by pgjax.evaluate.
    c.evals[split] = common.vqa_eval(c, dict(place, split=split), **every)
  c.evals["val/pplx"] = common.vqa_pplx(c, dict(place, split="val"), log_percent=0.1)
  return c
