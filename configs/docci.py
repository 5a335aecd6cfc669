r"""DOCCI: descriptions of photos of over a hundred words, at 448 px, as in PaliGemma 2's paper.

The paper's figures, #char and #sent, are the metrics chars and sents; its NES (sentences that do
not follow from the picture) was judged by people. Data: python -m pgjax.prepare docci --raw=DIR

python -m pgjax.train --config=configs/docci.py:size=3b --workdir=/tmp/docci
"""

from configs import common, transfer


def get_config(arg=None):
  """The paper states the resolution and at most 192 tokens when decoding; the rest is ours."""
  a = transfer.parse_arg(arg, res=448, size="3b", text_len=512, batch_size=64)
  c = transfer.start(a, "docci", epochs=10, lr=1e-5)
  prompt = transfer.prompt("caption en")
  image = common.image_pp(c)
  c.input.data = transfer.data(a, "docci", "train")
  c.input.pp = common.train_pp(image, prompt, transfer.one_of("captions"))
  pp = common.eval_pp(image, prompt, keep=("captions", "image/id", "id"))
  scores = ("length", "cider", "bleu", "rouge")
  for name, split, every in (("val", "qual_dev", 0.1), ("test", "test", 1)):
    fields = dict(type="caption", answer="captions", caption_metrics=scores)
    fields |= dict(max_decode_len=192)
    c.evals[f"docci/{name}"] = transfer.answers(
      c, transfer.data(a, "docci", split), pp, every, **fields
    )
    c.evals[f"docci/{name}/pplx"] = transfer.pplx(c, transfer.data(a, "docci", split), every)
  return transfer.finish(c, a, "docci")
