"""What the transfers of the papers share: their arguments, settings by resolution, evaluators.

A config of a transfer is big_vision's file of the same name with the published best of its sweep
(`sweep_best`) for PaliGemma 1, and with the learning rates of PaliGemma 2; its evaluators have the
original's names, splits and ops. docs/transfers.md lists all of them.
"""

from configs import common, published


def parse_arg(arg, **defaults):
  """The arguments of every transfer, and those of one; `defaults` may replace both."""
  shared = dict(res=224, size="v1", variant="", tune="full", batch_size=256, text_len=32)
  last = dict(data_dir="", final_split=False)
  return common.parse_arg(arg, **(shared | defaults | last))


def at(res, by_res):
  """The setting of the largest resolution that is listed and not above `res`."""
  return by_res[max([r for r in by_res if r <= res], default=min(by_res))]


def start(
  a, task, *, epochs, lr, wd=0.0, dropout=0.0, label_smoothing=0.0, batch_size=0, num_frames=0
):
  """The config of a transfer without data; settings that differ by resolution are from `at`.

  PaliGemma 2 has its own learning rates; weight decay keeps its ratio to them (0 or 0.1).
  """
  c = common.base()
  c.res, c.num_frames = a.res, num_frames
  c.text_len = a.text_len * (2 if a.variant else 1)  # The tiny tokenizer needs more.
  c.input.batch_size = a.batch_size or batch_size
  c.total_epochs = epochs
  c.optax_name, c.optax = "scale_by_adam", dict(b2=0.999)
  c.lr = published.learning_rate(task, a.size, lr)
  c.wd = wd if c.lr == lr else c.lr / 10 if wd else 0.0
  c.label_smoothing = label_smoothing
  common.set_model(c, size=a.size, variant=a.variant, dropout=dropout)
  common.set_tune(c, a.tune)
  return c


def data(a, name, split, **fields):
  """A split of a data set, in the folder of the argument data_dir if it is given."""
  return dict(name=name, split=split, **fields, **(dict(data_dir=a.data_dir) if a.data_dir else {}))


def resized(c, antialias=False):
  """Decodes and squeezes an image to c.res."""
  return common.image_pp(c) if antialias else f"decode|resize({c.res})|value_range(-1, 1)"


def cropped(c, crop):
  """As `resized`; a random crop of crop="ic" (distorted) or "rc" is for training."""
  crops = {
    "rs": f"resize({c.res})",
    "ic": f"inception_crop({c.res}, area_min=50)",
    "rc": f"resize_small({c.res * 8 // 7})|random_crop({c.res})",
  }
  return f"flatten|decode|{common.choose('crop', crop, crops)}|value_range(-1, 1)"


def prompt(template, outkey="prefix"):
  """The op that makes the prompt, or another text, of a template."""
  return f"strfmt({template!r}, outkey={outkey!r})"


def one_of(column):
  """The op that trains on all answers of a column in turn."""
  return f'choice_no_replacement(inkey="{column}", outkey="suffix")'


def copied(inkey, outkey):
  """The op that copies a column."""
  return f'copy(inkey="{inkey}", outkey="{outkey}")'


def answers(c, data, pp, every, **fields):
  """An entry of evals with generated answers; `every`: a share of the run, 1 for its end only."""
  sizes = dict(batch_size=c.input.batch_size, max_decode_len=c.text_len)
  when = dict(log_percent=every, skip_first=every == 1)
  return {**common.EVAL, "data": data, "pp": pp, **sizes, **when, **fields}


def captions(c, data, pp, every, **fields):
  """An entry of evals that scores captions by image."""
  return answers(c, data, pp, every, **{"type": "caption", "answer": "captions", **fields})


def captions_pp(*ops):
  """Ops that end with what scoring captions needs."""
  return common.eval_pp(*ops, keep=("image/id", "captions", "id"))


def pplx(c, data, every):
  """An entry of evals with the perplexity of the true answer, made as in training."""
  sizes = dict(batch_size=c.input.batch_size, log_percent=every)
  return {**common.EVAL, "type": "perplexity", "data": data, "pp": c.input.pp, **sizes}


def finish(c, a, task):
  """The config, with the published scores of its size and resolution beside ours."""
  for name, entry in c.evals.items() if not a.variant else ():
    known = published.of(task, name, a.size, a.res)
    entry["published"] = {k: mean if sd is None else (mean, sd) for k, (mean, sd) in known.items()}
  return c


def video_arg(arg, **defaults):
  """The arguments of a transfer on videos."""
  return parse_arg(arg, **(dict(batch_size=128) | defaults))


def video(a, dataset, split, **fields):
  """A split of a data set of videos; training starts at a random frame (docs/data.md)."""
  frames = dict(dataset_name=dataset, num_frames=a.num_frames, stride=a.stride)
  return data(a, "video", split, **frames, **dict(deterministic_fs=True) | fields)


def video_input(c, a, dataset, sizes, *ops):
  """Sets input to frames and the ops that make prefix and suffix; sizes: {split: rows}."""
  parts = {s: n for s, n in sizes.items() if a.final_split or s == "train"}
  c.input.data = {
    s: dict(video(a, dataset, s, deterministic_fs=False), weight=n) for s, n in parts.items()
  }
  c.input.pp = common.train_pp(frames(c), *ops)


def frames(c):
  """Decodes num_frames frames to c.res; short clips loop."""
  n, res = c.num_frames, c.res
  return (
    f"video_decode({res})|video_replicate_img({n}, {n})"
    f'|video_ensure_shape("image", {(n, res, res, 3)})'
  )


def video_splits(a, dataset, first_shards=2):
  """(evaluator, data, how often) of the four evaluators of a transfer on videos."""
  few = dict(first_k_shards=first_shards)
  yield "minitrain", video(a, dataset, "train", **few), 1 / 8
  yield "minival", video(a, dataset, "valid", **few), 1 / 4
  yield "val", video(a, dataset, "valid"), 1
  yield "eval", video(a, dataset, "test"), 1
