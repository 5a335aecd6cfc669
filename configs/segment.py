r"""Masks of your own classes, from a COCO file with polygons or run lengths: copy and change it.

The prompt "segment cat ; dog" names all classes of the training file; the answer has the box, the
mask and the class of each object. masks= is a file with the weights of a mask VQ-VAE, if it is not
PaliGemma's (docs/boxes.md).

python -m pgjax.train --workdir=/tmp/segment --config=configs/segment.py:train=data/train.json,val=data/valid.json
"""  # noqa: E501

from configs import common


def get_config(arg=None):
  """Arguments are swept or affect several fields; set other fields below."""
  a = common.parse_arg(
    arg, train="data/train.json", val="data/valid.json", images="", classes="", masks="oi",
    order="random", res=448, size="3b", variant="", text_len=256, batch_size=32, tune="full",
  )  # fmt: skip
  c = common.base()
  c.res, c.text_len = a.res, a.text_len * (2 if a.variant else 1)  # The tiny tokenizer needs more.
  prompt = 'strfmt("segment {classes}", outkey="prefix")'
  answer = f"masks_to_suffix({a.masks!r}, order={{!r}})"
  c.input.data, _ = common.boxes_data(a, a.train)
  c.input.pp = common.train_pp(common.image_pp(c), prompt, answer.format(a.order))
  c.input.batch_size, c.total_epochs = a.batch_size, 15
  c.lr, c.wd, c.ckpt_steps = 1e-5, 3e-7, 200
  common.set_model(c, size=a.size, variant=a.variant)
  common.set_tune(c, a.tune)

  if a.val:  # val= (empty) trains without evaluation.
    data, _ = common.boxes_data(a, a.val, "val", classes_from=a.train)
    fields = dict(common.EVAL, data=data, batch_size=a.batch_size)
    columns = ("id", "boxes", "labels", "segmentations", "height", "width")
    pp = common.eval_pp(common.image_pp(c), prompt, keep=columns)
    answers = dict(type="instances", pp=pp, grammar="masks", mask_weights=a.masks)
    c.evals["val"] = fields | answers | dict(max_decode_len=c.text_len, log_percent=0.5)
    pp = common.train_pp(common.image_pp(c), prompt, answer.format("position"))
    c.evals["val/pplx"] = fields | dict(type="perplexity", pp=pp, log_percent=0.1)
  return c
