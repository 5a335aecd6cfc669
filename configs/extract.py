r"""JSON from documents, such as receipts and forms, from JSONL files as Roboflow exports them.

Each line is {"image": "a.png", "prefix": "extract data in JSON format", "suffix": "{...}"}. Answers
are searched with beams, as valid JSON, and scored by field, and as text by BLEU and ROUGE-L (with
meteor=true by METEOR, which needs Java). tune= is lora, qlora, or no_vit (all but the image tower).

python -m pgjax.train --workdir=/tmp/extract --config=configs/extract.py:train=data/_annotations.train.jsonl,val=data/_annotations.valid.jsonl
"""  # noqa: E501

from configs import common


def get_config(arg=None):
  """Arguments are swept or affect several fields; set other fields below."""
  a = common.parse_arg(
    arg, train="data/_annotations.train.jsonl", val="data/_annotations.valid.jsonl", root="",
    res=448, size="3b", variant="", text_len=512, batch_size=8, tune="lora", beams=3, meteor=False,
  )  # fmt: skip
  c = common.base()
  c.res, c.text_len = a.res, a.text_len * (2 if a.variant else 1)  # The tiny tokenizer needs more.
  root = dict(root=a.root) if a.root else {}
  c.input.data = dict(name="jsonl", fname=a.train, **root)
  c.input.pp = common.train_pp(common.image_pp(c))
  c.input.batch_size, c.total_epochs = a.batch_size, 10
  c.lr, c.wd, c.ckpt_steps = 2e-5, 1e-6, 200
  common.set_model(c, size=a.size, variant=a.variant)
  common.set_tune(c, a.tune)
  c.decode = f"beam({a.beams})" if a.beams > 1 else "greedy"

  if a.val:  # val= (empty) trains without evaluation.
    data = dict(name="jsonl", fname=a.val, **root)
    pp = common.eval_pp(common.image_pp(c), keep=("suffix", "id"))  # Compared, never in the prompt.
    fields = dict(common.EVAL, data=data, batch_size=a.batch_size, max_decode_len=c.text_len)
    answers = dict(pp=pp, answer="suffix", grammar="json")
    c.evals["val"] = fields | answers | dict(type="json", log_percent=0.5)
    scores = ("bleu", "rouge", "meteor")[: 3 if a.meteor else 2]
    c.evals["val/text"] = fields | answers | dict(type="caption", caption_metrics=scores)
    c.evals["val/pplx"] = fields | dict(type="perplexity", pp=c.input.pp, log_percent=0.1)
  return c
