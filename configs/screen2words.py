r"""Screen2Words: what is an app's screen for? Score: CIDEr.

Data: python -m pgjax.prepare screen2_words --raw=DIR

python -m pgjax.train --config=configs/screen2words.py:res=448,size=3b --workdir=/tmp/screen2words
"""

from configs import common, transfer

SPLITS = {"minitrain": "train[:5%]", "dev": "dev", "test": "test"}


def get_config(arg=None):
  """big_vision's transfers/screen2words.py, the published best of its sweep."""
  a = transfer.parse_arg(arg, text_len=24)
  c = transfer.start(a, "screen2words", epochs=10, lr=1e-5, dropout=0.3, label_smoothing=0.2)
  image, prompt = transfer.resized(c), transfer.prompt("caption en")
  c.input.data = transfer.data(a, "screen2_words", "train+dev" if a.final_split else "train")
  c.input.pp = common.train_pp(image, prompt, transfer.one_of("summary"))
  pp = transfer.captions_pp(transfer.copied("summary", "captions"), image, prompt)
  for name, split in SPLITS.items():
    data = transfer.data(a, "screen2_words", split)
    c.evals[f"screen2words/{name}"] = transfer.captions(c, data, pp, 0.1)
    c.evals[f"screen2words/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  return transfer.finish(c, a, "screen2words")
