r"""ActivityNet Captions: what happens in a part of a video? Score: CIDEr.

Videos are read from files (docs/data.md, source "video"): data_dir= is their folder.

python -m pgjax.train --config=configs/activitynet_cap.py:size=3b,data_dir=DIR --workdir=/tmp/run
"""

from configs import transfer

NAME = "activitynet_captions_mr"
SIZES = {"train": 30_545, "valid": 14_338}  # Rows; videos disappear.


def get_config(arg=None):
  """big_vision's transfers/activitynet_cap.py, the published best of its sweep at 224 px."""
  a = transfer.video_arg(arg, tune="decoder", text_len=64, num_frames=16, stride=30)
  c = transfer.start(a, "activitynet_cap", epochs=1, lr=1e-5, wd=1e-6, num_frames=a.num_frames)
  prompt = transfer.prompt("caption en")
  suffix = "video_choice(inkey='caption/string', outkey='suffix')"
  transfer.video_input(c, a, NAME, SIZES, prompt, suffix)
  image_id = transfer.prompt("{example/video_id}[{segment_start}-{segment_end}]", "image/id")
  copy = transfer.copied("caption/string", "captions")
  pp = transfer.captions_pp(transfer.frames(c), prompt, image_id, copy)
  for name, data, every in transfer.video_splits(a, NAME):
    c.evals[f"{NAME}/{name}"] = transfer.captions(c, data, pp, every, skip_first=False)
    if name == "minitrain":
      c.evals[f"{NAME}/{name}/pplx"] = transfer.pplx(c, data, 1 / 8)
  return transfer.finish(c, a, "activitynet_cap")
