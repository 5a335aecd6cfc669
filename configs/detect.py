r"""Boxes around your own classes: copy this file and change it.

train= and val= are COCO files, PaliGemma's JSONL, YOLO's data.yaml, voc:FOLDER, roboflow:FOLDER ...
Images are in the folder of each file, or in images=. Prompts name the training data's classes, or
classes=cat+dog. num_boxes=30 fills answers up with noise boxes, as PaliGemma 2 (docs/boxes.md).

python -m pgjax.train --workdir=/tmp/detect --config=configs/detect.py:train=data/train.json,val=data/valid.json
"""  # noqa: E501

from configs import common


def get_config(arg=None):
  """Arguments are swept or affect several fields; set other fields below."""
  a = common.parse_arg(
    arg, train="data/train.json", val="data/valid.json", images="", classes="", order="random",
    num_boxes=0, res=448, size="3b", variant="", text_len=256, batch_size=32, tune="full",
  )  # fmt: skip
  c = common.base()
  c.res, c.text_len = a.res, a.text_len * (2 if a.variant else 1)  # The tiny tokenizer needs more.
  c.input.data, boxes = common.boxes_data(a, a.train)
  filled = f", num_boxes={a.num_boxes}" if a.num_boxes else ""
  answer = f"boxes_to_suffix(order={a.order!r}{filled})"
  c.input.pp = common.train_pp(common.image_pp(c), *boxes, answer)
  c.input.batch_size, c.total_epochs = a.batch_size, 50 if filled else 15
  c.lr, c.wd, c.ckpt_steps = 1e-5, 3e-7, 200
  common.set_model(c, size=a.size, variant=a.variant)
  common.set_tune(c, a.tune)

  if a.val:  # val= (empty) trains without evaluation.
    data, boxes = common.boxes_data(a, a.val, "val", classes_from=a.train)
    fields = dict(common.EVAL, data=data, batch_size=a.batch_size)
    columns = ("id", "boxes", "labels", "height", "width")
    pp = common.eval_pp("image_size", common.image_pp(c), *boxes, keep=columns)
    how = dict(grammar=f"boxes(num_boxes={a.num_boxes})", confidence="label") if filled else {}
    answers = dict(type="detection", pp=pp, grammar="boxes", max_decode_len=c.text_len)
    c.evals["val"] = fields | answers | how | dict(log_percent=0.5)
    pp = common.train_pp(common.image_pp(c), *boxes, "boxes_to_suffix(order='position')")
    c.evals["val/pplx"] = fields | dict(type="perplexity", pp=pp, log_percent=0.1)
  return c
