r"""easy-VQA: a tiny PaliGemma learns from scratch to answer questions on 64 x 64 images.

38,575 questions to train on, 9,673 to test, 13 answers; the commonest answer to each question is
right for 67.0% of them. The data comes with `pip install easy-vqa`; no GPU is needed.

python -m pgjax.train --config=configs/easyvqa.py[:preset=long] --workdir=/tmp/easyvqa
"""

from configs import common

PRESETS = {
  "quick": dict(epochs=6, lr=2e-3, width=96, depth=3, every=400),
  "long": dict(epochs=40, lr=1e-3, width=128, depth=4, every=2_000),
}


def get_config(arg=None):
  """The package has no validation split, so the first 2,000 training questions serve as one."""
  a = common.parse_arg(arg, preset="quick", batch_size=128)
  preset = common.choose("preset", a.preset, PRESETS)
  c = common.base()

  c.res, c.text_len = 64, 16
  common.vqa_input(c, dict(name="easy_vqa", split="train[2000:]"))
  c.input.batch_size, c.input.num_threads, c.input.cache_mb = a.batch_size, 2, 256
  common.set_tiny_model(c, width=preset["width"], depth=preset["depth"], patch_size=8)
  c.total_epochs = preset["epochs"]
  c.lr, c.wd = preset["lr"], 1e-4

  val = dict(name="easy_vqa", split="train[:2000]")
  test = dict(name="easy_vqa", split="test")
  c.evals["val"] = common.vqa_eval(c, val, log_steps=preset["every"], skip_first=True)
  c.evals["test"] = common.vqa_eval(c, test)  # By pgjax.evaluate.
  for entry in c.evals.values():
    entry.max_decode_len, entry.batch_size = 4, 256
  c.log_training_steps, c.ckpt_steps = 20, preset["every"]
  return c
