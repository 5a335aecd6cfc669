r"""MSVD-QA: questions about short videos. Score: accuracy.

Videos are read from files (docs/data.md, source "video"): data_dir= is their folder.

python -m pgjax.train --config=configs/msvd_qa.py:size=3b,data_dir=DIR --workdir=/tmp/msvd_qa
"""

from configs import common, transfer

NAME = "msvd_qa"
SIZES = {"train": 24_670, "valid": 5_107}  # Rows; videos disappear.
QUESTION_ID = "{id}#{example/video_id}[{clip/start/timestamp}-{clip/end/timestamp}]: {question}"


def get_config(arg=None):
  """big_vision's transfers/msvd_qa.py, the published best of its sweep at 224 px."""
  a = transfer.video_arg(arg, text_len=64, num_frames=8, stride=26)
  c = transfer.start(a, "msvd_qa", epochs=1, lr=3e-6, wd=3e-7, num_frames=a.num_frames)
  ops = ("reshape([], key='question')", "reshape([], key='answer')")
  ops = (*ops, transfer.prompt("answer en {question}"))
  transfer.video_input(c, a, NAME, SIZES, *ops, common.VQA_SUFFIX)
  question_id = transfer.prompt(QUESTION_ID, "question_id")
  keep = ("question_id", "answer", "id")
  pp = common.eval_pp(transfer.frames(c), *ops, question_id, keep=keep)
  for name, data, every in transfer.video_splits(a, NAME, first_shards=1):
    fields = dict(type="vqa", skip_first=False)
    c.evals[f"{NAME}/{name}"] = transfer.answers(c, data, pp, every, **fields)
    if name.startswith("mini"):
      c.evals[f"{NAME}/{name}/pplx"] = transfer.pplx(c, data, 1 / 8)
  return transfer.finish(c, a, "msvd_qa")
