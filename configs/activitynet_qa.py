r"""ActivityNet-QA: questions about long videos. Score: accuracy.

Videos are read from files (docs/data.md, source "video"): data_dir= is their folder.

python -m pgjax.train --config=configs/activitynet_qa.py:size=3b,data_dir=DIR --workdir=/tmp/run
"""

from configs import common, transfer

NAME = "activitynet_qa"
SIZES = {"train": 27_610, "valid": 15_760}  # Rows; videos disappear.
QUESTION_ID = "{id}#{example/video_id}: {question}"


def get_config(arg=None):
  """big_vision's transfers/activitynet_qa.py, the published best of its sweep at 224 px."""
  a = transfer.video_arg(arg, text_len=64, num_frames=16, stride=70)
  c = transfer.start(a, "activitynet_qa", epochs=1, lr=1e-5, wd=1e-6, num_frames=a.num_frames)
  ops = ("reshape([], key='question')", "reshape([], key='answer')")
  ops = (*ops, transfer.prompt("answer en {question}"))
  transfer.video_input(c, a, NAME, SIZES, *ops, common.VQA_SUFFIX)
  question_id = transfer.prompt(QUESTION_ID, "question_id")
  keep = ("question_id", "answer", "id")
  pp = common.eval_pp(transfer.frames(c), *ops, question_id, keep=keep)
  for name, data, every in transfer.video_splits(a, NAME):
    fields = dict(type="vqa")
    c.evals[f"{NAME}/{name}"] = transfer.answers(c, data, pp, every, **fields)
    if name.startswith("mini"):
      c.evals[f"{NAME}/{name}/pplx"] = transfer.pplx(c, data, 1 / 8)
  return transfer.finish(c, a, "activitynet_qa")
