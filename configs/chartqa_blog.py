r"""ChartQA as in Hugging Face's blog about PaliGemma 2: a data set of the hub, the decoder alone.

Two examples a step, accumulated over four, AdamW, and the image tower frozen. The data set and its
images come from the hub (pip install datasets); data=FOLDER reads a copy that save_to_disk wrote.
Then push the model to the hub: python -m pgjax.convert --src=WORKDIR --to=hf --dst=DIR --push=NAME

python -m pgjax.train --config=configs/chartqa_blog.py --workdir=/tmp/chartqa_blog
"""

from configs import common

PROMPT = "Answer the following Question: {query}"


def get_config(arg=None):
  """Arguments are swept or affect several fields; set other fields below."""
  a = common.parse_arg(
    arg, data="hf:HuggingFaceM4/ChartQA", train="train", val="val", res=224, size="3b", variant="",
    text_len=128, batch_size=8, microbatches=4, tune="decoder",
  )  # fmt: skip
  c = common.base()
  c.res, c.text_len = a.res, a.text_len * (2 if a.variant else 1)  # The tiny tokenizer needs more.
  where = dict(name=a.data) if a.data.startswith("hf:") else dict(name="hf", fname=a.data)
  where |= dict(suffix="label", prefix="query")
  image, prompt = common.image_pp(c), f"strfmt({PROMPT!r}, outkey='prefix')"
  learned = common.train_pp(image, prompt)
  c.input.data, c.input.pp = dict(where, split=a.train), learned
  c.input.batch_size, c.microbatches, c.total_epochs = a.batch_size, a.microbatches, 3
  c.lr, c.optax = 2e-5, dict(b2=0.999)
  c.wd, c.wd_mults = 1e-6 * c.lr, [(".*", 1.0)]  # AdamW of torch multiplies decay by the rate.
  common.set_model(c, size=a.size, variant=a.variant)
  common.set_tune(c, a.tune)
  c.schedule = dict(decay_type="linear", warmup_steps=2)

  if a.val:  # val= (empty) trains without evaluation.
    fields = dict(common.EVAL, data=dict(where, split=a.val), batch_size=64, max_decode_len=32)
    pp = common.eval_pp(image, prompt, keep=("suffix", "id"))  # Compared, never in the prompt.
    c.evals["val"] = dict(fields, type="chartqa", answer="suffix", pp=pp, log_percent=0.2)
    c.evals["val/pplx"] = dict(fields, type="perplexity", pp=learned, log_percent=0.1)
  return c
