r"""SciCap: captions of figures in papers, the first sentence. Score: CIDEr and BLEU-4.

Data: python -m pgjax.prepare scicap --raw=DIR

python -m pgjax.train --config=configs/scicap.py:res=448,size=3b --workdir=/tmp/scicap
"""

from configs import common, transfer

NAME = "scicap/first_sentence_subfig_no"
CAPTION = "caption/lowercase_and_token_and_remove_figure_index"
SPLITS = {"minitrain": "train[:5%]", "val": "val", "test": "test"}


def get_config(arg=None):
  """big_vision's transfers/scicap.py, the published best of its sweep."""
  a = transfer.parse_arg(arg, text_len=96)
  c = transfer.start(a, "scicap", epochs=80, lr=3e-5, dropout=0.1, label_smoothing=0.1)
  image, prompt = transfer.resized(c), transfer.prompt("caption en")
  c.input.data = transfer.data(a, NAME, "train+val" if a.final_split else "train")
  c.input.pp = common.train_pp(image, prompt, transfer.copied(CAPTION, "suffix"))
  pp = transfer.captions_pp(f'reshape([1], inkey="{CAPTION}", outkey="captions")', image, prompt)
  for name, split in SPLITS.items():
    data, fields = transfer.data(a, NAME, split), dict(caption_metrics=("cider", "bleu"))
    c.evals[f"scicap/{name}"] = transfer.captions(c, data, pp, 0.3, **fields)
    c.evals[f"scicap/{name}/pplx"] = transfer.pplx(c, data, 0.05)
  return transfer.finish(c, a, "scicap")
