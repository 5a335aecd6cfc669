r"""NLVR2: is a sentence about two photos true? Scored there and on MaRVL. Score: accuracy.

MaRVL asks in five languages. Data: python -m pgjax.prepare nlvr2 --raw=DIR, also marvl.

python -m pgjax.train --config=configs/nlvr2.py:res=448,size=3b --workdir=/tmp/nlvr2
"""

from configs import common, published, transfer

BEST = {224: dict(epochs=3, lr=1e-5, wd=1e-6), 448: dict(epochs=10, lr=3e-6, wd=3e-7)}
SPLITS = {"minitrain": "train[:10000]", "dev": "dev", "test": "test"}


def get_config(arg=None):
  """big_vision's transfers/nlvr2.py: the two images are two frames, left first."""
  a = transfer.parse_arg(arg, text_len=64)
  c = transfer.start(a, "nlvr2", **transfer.at(a.res, BEST), num_frames=2)
  ops = (
    *(f"resize({c.res}, key='{side}')" for side in ("image_left", "image_right")),
    "stack_images(inkeys=['image_left', 'image_right'], outkey='image')|value_range(-1, 1)",
    f"video_ensure_shape('image', {(2, c.res, c.res, 3)})",
    transfer.prompt("answer en {sentence}"),
  )
  c.input.data = transfer.data(a, "nlvr2", "train+dev" if a.final_split else "train")
  c.input.pp = common.train_pp(*ops, transfer.copied("label", "suffix"))
  answer = (transfer.copied("label", "answer"), transfer.copied("example_id", "question_id"))
  pp = common.eval_pp(*ops, *answer, keep=("answer", "question_id", "id"))
  scored = {f"nlvr2/{name}": transfer.data(a, "nlvr2", split) for name, split in SPLITS.items()}
  for language in published.LANGUAGES["marvl"].split():
    scored[f"marvl/test_{language}"] = transfer.data(a, "marvl", f"test_{language}")
  for name, data in scored.items():
    c.evals[name] = transfer.answers(c, data, pp, 0.1, type="vqa")
  return transfer.finish(c, a, "nlvr2")
