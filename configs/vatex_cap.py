r"""VATEX: captions of short videos. Score: CIDEr.

Videos are read from files (docs/data.md, source "video"): data_dir= is their folder.

python -m pgjax.train --config=configs/vatex_cap.py:size=3b,data_dir=DIR --workdir=/tmp/vatex_cap
"""

from configs import transfer

NAME = "vatex"
SIZES = {"train": 22_315, "valid": 2_584}  # Rows; videos disappear.


def get_config(arg=None):
  """big_vision's transfers/vatex_cap.py, the published best of its sweep at 224 px."""
  a = transfer.video_arg(arg, text_len=64, num_frames=16, stride=7)
  c = transfer.start(a, "vatex_cap", epochs=10, lr=3e-6, wd=3e-7, num_frames=a.num_frames)
  prompt = transfer.prompt("caption en")
  suffix = "video_choice(inkey='caption/string', outkey='suffix')"
  transfer.video_input(c, a, NAME, SIZES, prompt, suffix)
  image_id = transfer.copied("example/video_id", "image/id")
  copy = transfer.copied("caption/string", "captions")
  pp = transfer.captions_pp(transfer.frames(c), prompt, image_id, copy)
  for name, data, every in transfer.video_splits(a, NAME):
    c.evals[f"{NAME}/{name}"] = transfer.captions(c, data, pp, every, skip_first=False)
    if name == "minitrain":
      c.evals[f"{NAME}/{name}/pplx"] = transfer.pplx(c, data, 1 / 8)
  return transfer.finish(c, a, "vatex_cap")
