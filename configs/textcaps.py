r"""TextCaps: captions that read the text in a photo. Score: CIDEr.

Data: python -m pgjax.prepare text_caps --raw=DIR

python -m pgjax.train --config=configs/textcaps.py:res=448,size=3b --workdir=/tmp/textcaps
"""

from configs import common, transfer

SPLITS = {"minitrain": "train[:2%]", "minival": "train[-2%:]", "eval": "val"}


def get_config(arg=None):
  """big_vision's transfers/textcaps.py; final_split also trains on minival."""
  a = transfer.parse_arg(arg, crop="rs", beam_size=3)
  c = transfer.start(a, "textcaps", epochs=5, lr=1e-5, wd=1e-6)
  prompt = transfer.prompt("caption en")
  c.input.data = transfer.data(a, "text_caps", "train" if a.final_split else "train[:98%]")
  suffix = (transfer.one_of("texts"), prompt, 'lower(key="suffix")')
  c.input.pp = common.train_pp(transfer.cropped(c, a.crop), *suffix)
  copy = transfer.copied("texts", "captions")
  pp = transfer.captions_pp(transfer.resized(c), "flatten", copy, prompt)
  fields = dict(decode=f"beam({a.beam_size})") if a.beam_size else {}
  for name, split in SPLITS.items():
    data = transfer.data(a, "text_caps", split)
    c.evals[f"textcaps/{name}/pplx"] = transfer.pplx(c, data, 0.05)
    c.evals[f"textcaps/{name}"] = transfer.captions(c, data, pp, 0.1, **fields)
  return transfer.finish(c, a, "textcaps")
