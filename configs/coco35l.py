r"""COCO-35L, captions in 35 languages, scored there and on XM3600 (36 languages). Score: CIDEr.

Data: python -m pgjax.prepare coco35l --raw=DIR, python -m pgjax.prepare xm3600 --raw=DIR

python -m pgjax.train --config=configs/coco35l.py:res=448,size=3b --workdir=/tmp/coco35l
"""

from configs import common, published, transfer

LANGUAGES = published.LANGUAGES["coco35l"].split()
OFTEN = ("ar", "bn", "en", "id", "sw", "tr", "zh")  # Scored while training; all at its end.
SPLITS = {"minitrain": "train_en[:2%]", "minival": "dev_en[:5%]", "eval": "dev_en"}


def get_config(arg=None):
  """big_vision's transfers/coco35l.py, the published best of its sweep."""
  a = transfer.parse_arg(arg, crop="rs", beam_size=0, eval_xm3600=True)
  c = transfer.start(a, "coco35l", epochs=None, lr=1e-5, wd=1e-6)
  c.total_examples = 25 * 113_287  # As often as COCO's images in 25 epochs.
  parts = {f"train_{lang}": transfer.data(a, "coco35l", f"train_{lang}") for lang in LANGUAGES}
  c.input.data = {name: dict(part, weight=1) for name, part in parts.items()}
  prompt = transfer.prompt("caption {language}")
  c.input.pp = common.train_pp(transfer.cropped(c, a.crop), transfer.one_of("captions"), prompt)
  for name, split in SPLITS.items():
    data = transfer.data(a, "coco35l", split)
    c.evals[f"coco35l/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  fields = dict(decode=f"beam({a.beam_size})") if a.beam_size else {}
  scored = [("coco35l", lang, f"dev_{lang}") for lang in LANGUAGES]
  scored += [("xm3600", lang, lang) for lang in [*LANGUAGES, "quz"] if a.eval_xm3600]
  for name, lang, split in scored:
    pp = transfer.captions_pp("flatten", transfer.resized(c), transfer.prompt(f"caption {lang}"))
    data, every = transfer.data(a, name, split), 1 / 4 if lang in OFTEN else 1
    c.evals[f"{name}/{lang}"] = transfer.captions(c, data, pp, every, **fields)
  return transfer.finish(c, a, "coco35l")
