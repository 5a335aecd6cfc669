r"""COCO captions (Karpathy's splits), scored there and on NoCaps. Score: CIDEr.

Data: python -m pgjax.prepare coco_captions --raw=DIR, python -m pgjax.prepare nocaps --raw=DIR

python -m pgjax.train --config=configs/cococap.py:res=448,size=3b --workdir=/tmp/cococap
"""

from configs import common, transfer

SPLITS = {"minitrain": "train[:2%]", "minival": "train[-2%:]", "eval": "val"}


def get_config(arg=None):
  """big_vision's transfers/cococap.py; final_split also trains on minival."""
  a = transfer.parse_arg(arg, crop="rs", beam_size=2)
  c = transfer.start(a, "cococap", epochs=5, lr=1e-5, wd=1e-6)
  prompt = transfer.prompt("caption en")
  split = "train+restval" if a.final_split else "train[:98%]+restval"
  c.input.data = transfer.data(a, "coco_captions", split)
  c.input.pp = common.train_pp(
    transfer.cropped(c, a.crop), transfer.one_of("captions/text"), prompt
  )
  copy = transfer.copied("captions/text", "captions")
  pp = transfer.captions_pp("flatten", copy, transfer.resized(c), prompt)
  fields = dict(decode=f"beam({a.beam_size})") if a.beam_size else {}
  for name, split in SPLITS.items():
    data = transfer.data(a, "coco_captions", split)
    c.evals[f"cococap/{name}/pplx"] = transfer.pplx(c, data, 0.05)
    c.evals[f"cococap/{name}"] = transfer.captions(c, data, pp, 0.1, **fields)
  pp = transfer.captions_pp(transfer.copied("texts", "captions"), transfer.resized(c), prompt)
  data = transfer.data(a, "nocaps", "val")
  c.evals["nocaps/eval"] = transfer.captions(c, data, pp, 0.1, **fields)
  return transfer.finish(c, a, "cococap")
