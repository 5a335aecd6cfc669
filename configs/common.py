"""Every field that a run has, with its default, and the pieces that configs share.

A config file holds data only: get_config(arg) starts from base(), sets what differs, and returns
it. docs/config.md lists what each field accepts and means. Every duration `x_steps` may also be
given as `x_epochs`, `x_examples` or `x_percent` (of the whole run, from 0 to 1).
"""

import ml_collections

VOCAB_SIZE = 256_000 + 1024 + 128  # Gemma's pieces, <locNNNN>, <segNNN>.
TINY_VOCAB_SIZE = 640 + 1024 + 128  # The small tokenizer that comes with pgjax.
LLM = {"v1": "gemma_2b", "3b": "gemma2_2b", "10b": "gemma2_9b", "28b": "gemma2_27b"}

# Which parameters train: the first pattern that matches the whole name of a parameter wins.
#   train, train("bfloat16")   stored in float32 by default
#   freeze, freeze("nf4")      stored in float32, bfloat16, float16, nf4 or int8 (only matrices; the
#                              rest in bfloat16); by default in the compute dtype
#   lora(rank=8, alpha=16, dropout=0.0, rslora=False, base="nf4")
#                              adapters on the matrices, the rest frozen; base as in freeze
_MATRICES = "llm/layers/(attn|mlp)/.*"
_REST = (".*", 'freeze("bfloat16")')
TUNE = {
  "full": [(".*", "train")],
  "no_vit": [("img/head/.*", "train"), ("img/.*", "freeze"), ("llm/.*", "train")],
  "decoder": [("llm/.*", "train"), ("img/.*", "freeze")],
  "connector": [("img/head/.*", "train"), (".*", "freeze")],
  "attention": [("llm/layers/attn/.*", "train"), _REST],
  "lora": [(_MATRICES, 'lora(rank=8, alpha=16, base="bfloat16")'), _REST],
  "lora_connector": [
    ("img/head/.*", "train"), (_MATRICES, 'lora(rank=8, alpha=16, base="bfloat16")'), _REST
  ],
  "lora_vit": [
    (f"{_MATRICES}|img/.*/kernel", 'lora(rank=8, alpha=16, base="bfloat16")'), _REST
  ],
  "qlora": [
    (_MATRICES, 'lora(rank=8, alpha=16, base="nf4")'), ("img/.*/kernel", 'freeze("nf4")'), _REST
  ],
  "qlora8": [
    (_MATRICES, 'lora(rank=8, alpha=16, base="int8")'), ("img/.*/kernel", 'freeze("int8")'), _REST
  ],
}  # fmt: skip

# How devices share the work (docs/meshes.md): --config.mesh=NAME, or c.update(STRATEGIES[NAME]).
# Sizes: -1 the remaining devices, "host" those of one host. `tensor` splits what it stands for
# under every strategy.
_FSDP = [(".*", 'fsdp(axis="data")')]
_FSDP_2 = [(".*", 'fsdp(axis=["data", "sequence"])')]  # Devices along both share the weights.
STRATEGIES = {
  "fsdp": dict(mesh=[("data", -1)], sharding_strategy=_FSDP),
  "hsdp": dict(mesh=[("replica", -1), ("data", "host")], sharding_strategy=_FSDP),
  "replicated": dict(mesh=[("data", -1)], sharding_strategy=[(".*", "replicate()")]),
  "tensor": dict(mesh=[("data", -1), ("tensor", "host")], sharding_strategy=_FSDP),
  "sequence": dict(mesh=[("data", -1), ("sequence", "host")], sharding_strategy=_FSDP_2),
  "tensor_sequence": dict(
    mesh=[("data", -1), ("tensor", 2), ("sequence", 4)], sharding_strategy=_FSDP_2
  ),
}

# One entry of `evals`: c.evals["val"] = dict(EVAL, type="vqa", data=..., pp=...). A whole split is
# scored; docs/scores.md lists the types and the columns that they need. Without log_steps,
# log_epochs, log_examples and log_percent the entry only runs in pgjax.evaluate; with one of them
# also while training and at the last step.
EVAL = dict(
  type="vqa",
  # data: as input.data. pp: ends with image, prefix and the answer's column; for perplexity with
  # image, prefix and suffix. The true answer never enters a prompt.
  batch_size=64,
  max_decode_len=32,  # Tokens; perplexity does not decode.
  decode=None,  # None: the run's, below.
  grammar=None,  # The form of answers: "boxes", "json", ...; see docs/decoding.md.
  answer="answer",  # The column with the true answer, or with a list of them.
  to_lower=False,  # Lower-case both sides before comparing: vqa, chartqa, rsvqa.
  caption_metrics=("cider",),  # And bleu, rouge, meteor, length.
  confidence="box_and_label",  # Or "label", for models that learned noise boxes: docs/boxes.md.
  mask_weights="oi",  # For segmentation: PaliGemma's, or the path of an .npz; see docs/boxes.md.
  out_question_key=None,  # "question_id": also write submission.json, for a test server,
  out_answer_key="answer",  # which has rows {"question_id": ..., "answer": ...}.
  published={},  # {"acc": 0.42} or {"acc": (0.42, 0.003)}: a paper's number, shown beside ours.
  skip_first=False,  # Do not run before the first step.
)


class _Config(ml_collections.ConfigDict):
  """Refuses True where a number was, which ml_collections would turn into 1.0."""

  def __setitem__(self, name, value):
    if isinstance(value, bool) and type(self.get(name)) is float:
      raise ValueError(f"{name}={value} must be a number.")
    super().__setitem__(name, value)


def base():
  """All fields of a run."""
  c = _Config(type_safe=False)
  c.seed = 0  # For initial weights, data order, random ops and dropout.

  # Data. Set input.data: dict(name="jsonl", fname=...), dict(name=..., split=...), or a mixture
  # {name: weight, ...}; and input.pp, a string of ops that ends with image, prefix and suffix.
  c.res = 224  # Pixels per side.
  c.num_frames = 0  # 0: one image per example; N: a list of up to N.
  c.text_len = 64  # Tokens of prefix, newline, suffix and <eos>.
  c.tokenizer = "tokenizer.model"  # Gemma's or PaliGemma's, here or beside the weights; or "tiny".
  c.input = _Config(type_safe=False)
  c.input.batch_size = 32
  c.input.num_threads = 8  # Decode and resize while the devices compute.
  c.input.num_workers = 0  # Use processes instead, if Python itself is the bottleneck.
  c.input.cache_mb = 0  # Memory for decoded images of small data sets.
  c.input.allow_truncated = False  # More than 1% of texts longer than text_len is an error.

  # Length of the run: set one of total_epochs, total_steps, total_examples.
  c.log_training_steps = 50
  c.ckpt_steps = 1_000
  c.keep_ckpt_steps = None  # Checkpoints that are never removed.
  c.keep_last = 2  # Number of other checkpoints; with 2, a damaged one has a predecessor.
  c.keep_best = ""  # Also the best by a metric such as "val/acc", or "-val/avg" to minimise.

  # Update = -schedule(step) * (lr * optimizer(gradient) + wd * parameter).
  # One of optax, big_vision.{sgd,momentum_hp,scale_by_adafactor}, pgjax.{adam8bit,adam_bf16}.
  c.optax_name = "scale_by_adam"
  c.optax = {}
  c.lr = 1e-5
  c.lr_mults = None  # [(regex, factor)], first match, else 1.
  c.wd = 0.0
  c.wd_mults = None  # None: [(".*/kernel", 1.0)], the image tower's matrices, as the reference.
  c.stochastic_rounding = False  # For weights trained in bfloat16: see docs/optimizers.md.
  c.opt_state_memory = "device"  # "host": store the optimizer state there between steps.
  c.ema_decay = None  # 0.999: also store EMA weights, which are then scored.
  c.grad_clip_norm = 1.0
  c.label_smoothing = 0.0
  c.schedule = dict(decay_type="cosine", warmup_percent=0.05)  # Or [(regex, dict), ...].
  c.params = TUNE["full"]

  c.model = dict(img={}, llm={})
  c.model_init = None  # "pt_224", a path, or None: from scratch.
  c.dtype = "float32"  # Compute dtype; trained parameters are stored in float32.
  c.remat = "balanced"  # Activations stored for the backward pass; "auto": as many as fit.
  c.attention = "auto"  # Or "plain", "triton", "flash", "chunked", "cudnn": see docs/attention.md.
  c.microbatches = 1  # Splits a batch that does not fit; results stay the same.
  c.accumulation_dtype = "float32"  # "bfloat16": half the memory for their sum of gradients.
  c.mesh = [("data", -1)]  # Or the name of one of STRATEGIES, or "auto".
  c.sharding_strategy = list(_FSDP)

  # Or beam(3), nucleus(0.9), top_k(40, t=0.7), temperature(1.0), best_of(4, nucleus(0.9)).
  c.decode = "greedy"
  c.evals = {}
  return c


def parse_arg(arg, **defaults):
  """`res=448,tune=attention,flag` as fields, each of its default's type; others are an error.

  A value with a comma is written in quotes: `train="a,b.jsonl"`.
  """
  c = ml_collections.ConfigDict(defaults, type_safe=False)
  for part in _parts(arg or ""):
    name, equals, text = part.partition("=")
    if name not in defaults:
      quotes = "" if equals else " A value with a comma is written in quotes: name='a,b'."
      raise ValueError(f"it takes no argument {name[:80]!r}.{quotes}", name, list(defaults), text)
    if text[:1] in ("'", '"'):
      text = text[1:-1]
    c[name] = _typed(name, text if equals else "true", defaults[name])
  return c


def _parts(arg):
  """Splits at commas, except those in a value that begins with a quote."""
  rest, parts = arg, []
  while rest:
    name, equals, value = rest.partition("=")
    quote = value[:1] if equals and "," not in name else ""
    if quote in ("'", '"'):
      end = value.find(quote, 1)
      after = value[end + 1 :]
      if end < 0 or after[:1] not in ("", ","):
        raise ValueError(
          f"the value of {name}={value[:60]} begins with {quote} and must end with it."
        )
      parts.append(f"{name}={value[: end + 1]}")
      rest = after[1:]
    else:
      part, _, rest = rest.partition(",")
      parts.append(part)
  return filter(None, parts)


def _typed(name, text, default):
  if isinstance(default, bool):
    if text.lower() not in ("true", "false", "1", "0"):
      raise ValueError(f"argument {name}={text[:60]} must be true or false.")
    return text.lower() in ("true", "1")
  if not isinstance(default, int | float):
    return text
  try:
    return type(default)(text)
  except ValueError:
    kind = "a whole number" if isinstance(default, int) else "a number"
    raise ValueError(f"argument {name}={text[:60]} must be {kind}.") from None


def choose(name, value, options):
  """options[value], for an argument that names one of them."""
  if value not in options:
    raise ValueError(f"argument {name}={value[:60]} must be one of {', '.join(options)}.")
  return options[value]


def set_model(c, *, size="v1", variant="", dropout=0.0):
  """A pre-trained PaliGemma 1 (size v1) or 2 (3b, 10b, 28b), or a tiny one from scratch."""
  if variant:
    choose("variant", variant, {"tiny": None})
    set_tiny_model(c, width=64, depth=2, patch_size=16, dropout=dropout)
    return
  c.model.img = dict(variant="So400m/14", pool_type="none", scan=True)
  c.model.llm = dict(
    variant=choose("size", size or "v1", LLM), vocab_size=VOCAB_SIZE, dropout=dropout
  )
  if size in ("", "v1"):
    c.model_init = f"pt_{c.res}"
  else:
    c.model.llm.final_logits_softcap = 0.0  # Better for transfer, as in the reference's forkme.
    c.model_init = f"pt_{size}_{c.res}"
  c.dtype = "bfloat16"


def set_tiny_model(c, *, width, depth, patch_size, num_heads=4, dropout=0.0, init=""):
  """A PaliGemma of any size, from scratch or `init`, with the small tokenizer of pgjax."""
  tower = dict(variant="tiny", width=width, depth=depth, mlp_dim=4 * width, num_heads=num_heads)
  c.model.img = dict(**tower, patch_size=patch_size)
  c.model.llm = dict(
    **tower,
    num_kv_heads=1,
    head_dim=width // num_heads,
    vocab_size=TINY_VOCAB_SIZE,
    dropout=dropout,
  )
  c.tokenizer, c.model_init, c.dtype, c.remat = "tiny", init or None, "float32", "none"


def set_tune(c, name, lora=10):
  """Sets which parameters train, and their optimizer and rate; c.lr is for full training.

  Adapters need a higher rate than full training, by the factor `lora`.
  """
  c.params = choose("tune", name, TUNE)
  if name == "attention":  # As big_vision's Colab: plain SGD.
    c.optax_name, c.optax, c.lr = "big_vision.sgd", {}, 0.03
    c.grad_clip_norm, c.wd = None, 0.0
  if "lora" in name:
    c.lr, c.wd = lora * c.lr, 0.0


def image_pp(c):
  """Decodes and squeezes an image to c.res, as in most transfers of the reference."""
  return f"decode|resize({c.res}, antialias=True)|value_range(-1, 1)"


def train_pp(*ops):
  """Ops that end with image, prefix and suffix, which pgjax tokenizes and masks."""
  return "|".join([*ops, 'keep("image", "prefix", "suffix")'])


def eval_pp(*ops, keep=("answer", "id")):
  """Ops that end with image, prefix and the columns for the evaluator or the predictions."""
  columns = ", ".join(f'"{name}"' for name in ("image", "prefix", *keep))
  return "|".join([*ops, f"keep({columns})"])


BOX_FILES = {".jsonl": "jsonl", ".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
BOX_SOURCES = ("coco", "yolo", "voc", "kitti", "labelme", "roboflow")


def boxes_data(a, place, split="train", classes_from=""):
  """(data, the ops that read boxes from its answers), of a file or folder with boxes.

  `place` is a file, or NAME:FILE or NAME:FILE:SPLIT with a name of BOX_SOURCES, such as
  voc:VOC2012:val; without SPLIT, `split`. The arguments `a` have images and classes; else sources
  whose splits may have other classes take those of `classes_from`, the training data's place.
  """
  name, fname, own = _box_source(place)
  data = dict(name=name, fname=fname)
  if name == "jsonl":  # Image, prefix "detect cat ; dog", suffix "<loc0100>... cat ; ...".
    if a.classes:
      raise ValueError(
        "argument classes= is for files of boxes; a JSONL names them in its prefixes."
      )
    return data | (dict(root=a.images) if a.images else {}), ["suffix_to_boxes"]
  if own or name in ("yolo", "voc", "roboflow"):  # Other files and folders are their own split.
    data["split"] = own or split
  if a.images:
    data["root" if name == "yolo" else "images"] = a.images
  if a.classes:
    data["classes"] = a.classes.split("+")
  elif classes_from and name in ("coco", "voc", "kitti", "labelme"):
    other, file, _ = _box_source(classes_from)
    data |= dict(classes_from=file) if other == name else {}
  return data, []


def _box_source(place):
  """(source, file, split, if it is named)."""
  name, _, rest = place.partition(":")
  if name in BOX_SOURCES and rest:
    file, _, own = rest.partition(":")
    return name, file, own
  return (next((kind for end, kind in BOX_FILES.items() if place.endswith(end)), "coco"), place, "")


VQA_PREFIX = 'copy(inkey="question", outkey="prefix")'
VQA_SUFFIX = 'copy(inkey="answer", outkey="suffix")'


def vqa_input(c, data, *ops):
  """Sets input: question is prefix, answer is suffix; image_pp unless other ops are given."""
  c.input.data = data
  c.input.pp = train_pp(*(ops or [image_pp(c)]), VQA_PREFIX, VQA_SUFFIX)


def vqa_eval(c, data, **fields):
  """An entry of evals that scores the generated answer to the question."""
  pp = eval_pp(image_pp(c), VQA_PREFIX, keep=("answer", "id", "question_id"))
  sizes = dict(batch_size=c.input.batch_size, max_decode_len=c.text_len)
  return {**EVAL, "data": data, "pp": pp, **sizes, **fields}


def vqa_pplx(c, data, **fields):
  """An entry of evals for the perplexity of the true answer."""
  pp = train_pp(image_pp(c), VQA_PREFIX, VQA_SUFFIX)
  sizes = dict(batch_size=c.input.batch_size)
  return {**EVAL, "type": "perplexity", "data": data, "pp": pp, **sizes, **fields}
