r"""RefCOCO, RefCOCO+, RefCOCOg: the mask of what an expression refers to. Score: mean IoU.

The answer is 4 <loc> and 16 <seg> tokens (docs/boxes.md). Data: python -m pgjax.prepare ref_coco_bv
--raw=DIR

python -m pgjax.train --config=configs/refcoco_seg.py:res=448,size=3b --workdir=/tmp/refcoco_seg
"""

from configs import common, transfer

BATCH_SIZE = {224: 256, 896: 64}
BEST = {224: dict(lr=3e-5, dropout=0.1), 448: dict(lr=1e-5)}
SETS = {"refcoco": "refcoco_unc", "refcocop": "refcocoplus_unc", "refcocog": "refcocog_umd"}
PARTS = {"val": "validation", "testA": "testA", "testB": "testB", "test": "test"}
OBJECT = '"objects/mask", "objects/bbox", "objects/refs/sentence"'


def get_config(arg=None):
  """big_vision's transfers/refcoco_seg.py; batch_size=0 is the published one of the resolution."""
  a = transfer.parse_arg(arg, batch_size=0, text_len=48)
  best = dict(transfer.at(a.res, BEST), batch_size=transfer.at(a.res, BATCH_SIZE))
  c = transfer.start(a, "refcoco_seg", epochs=100, label_smoothing=0.3, **best)
  c.input.data = transfer.data(a, "ref_coco_bv/refcocox_combined:1.4.0", "train")
  objects = (f"choice_no_replacement(key=[{OBJECT}])", 'choice(key=["objects/refs/sentence"])')
  c.input.pp = common.train_pp("flatten", *objects, transfer.resized(c), "refcoco_mask2str")
  prompt = 'choice(key=["objects/refs/sentence"], outkey="prefix")'
  keep = ("objects/mask", "objects/bbox", "width", "height", "id")
  pp = ("flatten", f"choice(key=[{OBJECT}])", prompt, transfer.resized(c))
  for name, of in SETS.items():
    for part in ("val", "test") if name == "refcocog" else ("val", "testA", "testB"):
      data, first = transfer.data(a, f"ref_coco_bv/{of}:1.4.0", f"{PARTS[part]}_flat"), not c.evals
      entry = transfer.answers(c, data, common.eval_pp(*pp, keep=keep), 0.2 if first else 1)
      c.evals[f"seg/{name}/{part}"] = {**entry, "type": "segmentation"}
  for name, split in dict(minitrain="train[:5%]", val="validation").items():
    data = transfer.data(a, "ref_coco_bv/refcocox_combined:1.4.0", split)
    c.evals[f"refcoco_seg/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  return transfer.finish(c, a, "refcoco_seg")
