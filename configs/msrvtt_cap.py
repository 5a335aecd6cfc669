r"""MSR-VTT: captions of short videos. Score: CIDEr.

Videos are read from files (docs/data.md, source "video"): data_dir= is their folder.

python -m pgjax.train --config=configs/msrvtt_cap.py:size=3b,data_dir=DIR --workdir=/tmp/msrvtt_cap
"""

from configs import transfer

NAME = "msrvtt"
SIZES = {"train": 4_663, "valid": 316}  # Rows; videos disappear.


def get_config(arg=None):
  """big_vision's transfers/msrvtt_cap.py, the published best of its sweep at 224 px."""
  a = transfer.video_arg(arg, tune="decoder", text_len=32, num_frames=16, stride=9)
  c = transfer.start(a, "msrvtt_cap", epochs=20, lr=1e-5, num_frames=a.num_frames)
  prompt = transfer.prompt("caption en")
  suffix = "video_choice(inkey='caption/string', outkey='suffix')"
  transfer.video_input(c, a, NAME, SIZES, prompt, suffix)
  image_id = transfer.prompt(
    "{example/video_id}[{clip/start/timestamp}-{clip/end/timestamp}]", "image/id"
  )
  copy = transfer.copied("caption/string", "captions")
  pp = transfer.captions_pp(transfer.frames(c), prompt, image_id, copy)
  for name, data, every in transfer.video_splits(a, NAME):
    c.evals[f"{NAME}/{name}"] = transfer.captions(c, data, pp, every, skip_first=False)
    if name.startswith("mini"):
      c.evals[f"{NAME}/{name}/pplx"] = transfer.pplx(c, data, 1 / 8)
  return transfer.finish(c, a, "msrvtt_cap")
