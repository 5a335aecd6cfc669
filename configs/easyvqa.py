r"""easy-VQA: a tiny PaliGemma learns from scratch to answer questions on 64 x 64 images.

38,575 training and 9,673 test questions with 13 answers; guessing without the image scores 67.0%.
The data comes with `pip install easy-vqa`; no GPU is needed. docs/lora.md uses `answers=half` and
then `tune=lora,init=WORKDIR`.

python -m pgjax.train --config=configs/easyvqa.py[:preset=long] --workdir=/tmp/easyvqa
"""

from configs import common

# On two cores, one image layer learns shapes faster than three, and 8-pixel patches than 16-pixel.
PRESETS = {
  "quick": dict(res=48, shift=4, img_depth=1, epochs=5, lr=2e-3, batch_size=32, every=2_000),
  "long": dict(res=64, shift=6, img_depth=2, epochs=10, lr=1e-3, batch_size=64, every=2_000),
}
HALF = dict(answers=("yes", "no", "circle", "red", "blue", "gray"))  # Some of each kind.


def get_config(arg=None):
  """The package has no validation split, so the first 2,000 training questions serve as one."""
  a = common.parse_arg(arg, preset="quick", batch_size=0, tune="full", init="", answers="all")
  preset, c = common.choose("preset", a.preset, PRESETS), common.base()
  c.res, c.text_len = preset["res"], 14
  image = f"decode|resize({c.res}, antialias=True)"
  move = f"flip_lr|random_shift({preset['shift']})|value_range(-1, 1)"  # No answer changes.
  half = common.choose("answers", a.answers, {"all": {}, "half": HALF})
  common.vqa_input(c, dict(name="easy_vqa", split="train[2000:]", **half), image, move)
  c.input.batch_size = a.batch_size or preset["batch_size"]
  c.input.num_threads, c.input.cache_mb = 2, 256
  common.set_tiny_model(c, width=64, depth=2, patch_size=8, init=a.init)
  c.model.img.depth, c.model.llm.mlp_dim = preset["img_depth"], 128
  c.total_epochs, c.lr, c.optax = preset["epochs"], preset["lr"], dict(b2=0.95)
  common.set_tune(c, a.tune, lora=2)
  for name, split in {"val": "train[:2000]", "test": "test"}.items():
    data, sizes = dict(name="easy_vqa", split=split), dict(batch_size=256, max_decode_len=4)
    every = dict(log_steps=preset["every"], skip_first=True) if name == "val" else {}
    c.evals[name] = common.vqa_eval(c, data, **sizes, **every)  # test: by pgjax.evaluate.
  c.log_training_steps, c.ckpt_steps = 50, preset["every"]
  return c
