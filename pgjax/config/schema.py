"""Which fields does a config have, and what do they accept? Defaults are in configs/common.py."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pgjax import call_syntax
from pgjax.call_syntax import Between
from pgjax.config import synonyms
from pgjax.errors import UserError, cut, did_you_mean

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = (  # Of layers/remat.py.
  "balanced", "nothing_saveable", "least_memory", "mlp_out_saveable", "mlp_out_saveable_chunked",
  "attention_saveable", "outputs_saveable", "mlp_gate_saveable", "products_saveable",
  "dots_with_no_batch_dims_saveable", "dots_saveable", "none",
)  # fmt: skip
ATTENTION = ("auto", "plain", "triton", "flash", "chunked", "cudnn")  # Of kernels/choice.py.
DECAY_TYPES = ("cosine", "linear", "polynomial", "rsqrt", "stair", "const")
EVAL_TYPES = (  # Of evaluation/scorers.py, and perplexity, which does not decode.
  "vqa", "vqav2", "chartqa", "choice", "science_qa", "pope", "tallyqa", "rsvqa", "caption",
  "detection", "segmentation", "instances", "json", "predictions", "perplexity",
)  # fmt: skip


class Field(NamedTuple):
  """A field's type, as in call_syntax, and its help text, which docs/config.md shows."""

  kind: Any
  help: str = ""

  @property
  def wants(self) -> str:
    """The types and ranges in words; ends the sentence `config.x=... must be <wants>`."""
    return call_syntax.describe(self.kind, ranges=True)

  def accepts(self, value: Any) -> bool:
    """Whether the value has one of the types and is in range."""
    return call_syntax.accepts(self.kind, value)


_ANY_TEXT = Annotated[str, Between(0, 100_000)]
_TEXT = Annotated[str, Between(1, 100_000)]
_FROM_0 = Annotated[int, Between(0, 2**31 - 1)]
_COUNT = Annotated[int, Between(1, 1_000_000)]
_ROWS = Annotated[int, Between(1, 65_536)]
_PIXELS = Annotated[int, Between(1, 16_384)]
_VOCAB = Annotated[int, Between(1, 10_000_000)]
_WIDTH = Annotated[int, Between(1, 1_000_000)]
_HEADS = Annotated[int, Between(1, 1024)]
_NUMBER = Annotated[float, Between(-1e18, 1e18)]
_NOT_NEGATIVE = Annotated[float, Between(0, 1e18)]
_POSITIVE = Annotated[float, Between(0, 1e18, but_not=(0,))]
_EPOCHS = Annotated[float, Between(0, 1_000_000)]
_EXAMPLES = Annotated[float, Between(0, 10**12)]
_SHARE = Annotated[float, Between(0, 1)]
_BELOW_1 = Annotated[float, Between(0, 1, but_not=(1,))]
_DTYPE = Literal[DTYPES]
_ANY_DTYPE = Literal[*DTYPES, "float16"]
_REMAT = Literal[REMAT_POLICIES]
_RUN_REMAT = Literal["auto", *REMAT_POLICIES]
_ATTENTION = Literal[ATTENTION]
_REGEX = Annotated[str, "regex"]
_SIZE = Annotated[
  Literal[-1, "host"] | Annotated[int, Between(1, 1_000_000)], "size from 1, or -1, or 'host'"
]
_MESH = (
  Annotated[list[tuple[Annotated[str, "axis"], _SIZE]], Between(1, 8)]
  | Annotated[str, "the name of a preset"]
)
_PARAMS = Annotated[list[tuple[_REGEX, Annotated[str, "spec"]]], Between(1, 1000)]
_STRATEGY = Annotated[list[tuple[_REGEX, Annotated[str, "tactic"]]], Between(0, 1000)]
_LR_MULTS = Annotated[list[tuple[_REGEX, _POSITIVE]], Between(0, 1000)] | None
_WD_MULTS = Annotated[list[tuple[_REGEX, _NOT_NEGATIVE]], Between(0, 1000)] | None
_STAIRS = Annotated[list[_NUMBER], Between(0, 1000)]
_SCHEDULES = Annotated[list[tuple[_REGEX, Mapping | None]], Between(1, 1000)]


def _fields(**fields: tuple[Any, str]) -> dict[str, Field]:
  return {name: Field(*field) for name, field in fields.items()}


def durations(**helps: str) -> dict[str, tuple[Any, str]]:
  """The four fields of each duration; config/durations.py converts the one that is set to steps."""
  units = dict(steps=_FROM_0, epochs=_EPOCHS, examples=_EXAMPLES, percent=_SHARE)
  return {
    f"{prefix}_{unit}": (kind | None, help if unit == "steps" else "")
    for prefix, help in helps.items()
    for unit, kind in units.items()
  }


_TOTAL = durations(total="length of the run; one of the three must be set")
del _TOTAL["total_percent"]
RUN = _fields(
  seed=(_FROM_0, "seed of initial weights, data order, random ops, dropout and sampling"),
  res=(_PIXELS, "pixels on each side of an image"),
  num_frames=(
    Annotated[int, Between(0, 1024)],
    "0: one image an example; N: a list of up to N images",
  ),
  text_len=(
    Annotated[int, Between(2, 1_000_000)],
    "tokens of prefix, newline, suffix and `<eos>` together",
  ),
  tokenizer=(
    _TEXT,
    "a `tokenizer.model`, a `tokenizer.json` or a Hugging Face folder; `tiny` ships in pgjax",
  ),
  input=(Mapping, "the training data: the fields of `input`, below"),
  **durations(
    log_training="how often the progress line is logged; unset: 100 times a run",
    ckpt="how often a checkpoint is saved; the last step always is",
    keep_ckpt="checkpoints at multiples of this are never removed",
  ),
  **_TOTAL,
  optax_name=(_TEXT, "the optimizer: optax's, or one in docs/optimizers.md"),
  optax=(Mapping, "arguments of the optimizer, such as `dict(b2=0.95)`"),
  lr=(_NOT_NEGATIVE, "learning rate, multiplied by the schedule"),
  lr_mults=(_LR_MULTS, "factor on `lr` by parameter name, first match; 1 where nothing matches"),
  wd=(_NOT_NEGATIVE, "weight decay, multiplied by the schedule but not by `lr`"),
  wd_mults=(_WD_MULTS, 'factor on `wd`, as `lr_mults`, else 0; None: `[(".*/kernel", 1.0)]`'),
  stochastic_rounding=(bool, "round bfloat16 updates stochastically (docs/optimizers.md)"),
  opt_state_memory=(Literal["device", "host"], "where optimizer state is stored between steps"),
  ema_decay=(_BELOW_1 | None, "average the trained weights with this decay and score the average"),
  grad_clip_norm=(_NOT_NEGATIVE | None, "clip gradients to this global norm; 0 or None: do not"),
  label_smoothing=(_BELOW_1, "share of the target spread over all tokens"),
  schedule=(Mapping | _SCHEDULES, "multiplier of `lr` and `wd`: the fields of `schedule`, below"),
  params=(_PARAMS, "which parameters train, by name, first match (docs/lora.md)"),
  model=(Mapping, "`dict(img=..., llm=...)`: the fields of both towers, below"),
  model_init=(
    _TEXT | Mapping[str, _TEXT] | None,
    "checkpoint to start from (docs/weights.md); None: random init",
  ),
  dtype=(_DTYPE, "of the computation; trained weights are stored in float32"),
  remat=(_RUN_REMAT, "which activations are stored for the backward pass (docs/memory.md)"),
  attention=(_ATTENTION, "how attention is computed (docs/attention.md)"),
  microbatches=(_ROWS, "accumulate gradients over this many parts of a batch"),
  accumulation_dtype=(_DTYPE, "in which `microbatches` accumulate (docs/memory.md)"),
  mesh=(_MESH, "how devices share the work (docs/meshes.md); -1: the remaining devices"),
  sharding_strategy=(
    _STRATEGY,
    "sharding by name: `replicate`, `fsdp(axis)`, `shard_dim(axis, dim)`",
  ),
  decode=(_TEXT, "how answers are generated (docs/decoding.md)"),
  evals=(Mapping, "`{name: entry}`: the evaluators, each with the fields of an entry, below"),
  keep_last=(_COUNT, "how many of the newest checkpoints stay"),
  keep_best=(_ANY_TEXT, 'also keep the best by this metric: "val/acc", or "-val/avg" to minimise'),
)
INPUT = _fields(
  data=(Mapping, "a source, or a mixture `{name: weight}` (docs/data.md)"),
  pp=(_TEXT, "the ops that end with image, prefix and suffix (docs/data.md)"),
  batch_size=(_ROWS, "examples a step, over all devices"),
  num_threads=(Annotated[int, Between(1, 1024)], "threads that decode and resize images"),
  num_workers=(
    Annotated[int, Between(0, 256)],
    "processes for it, if Python itself is the bottleneck",
  ),
  cache_mb=(
    Annotated[int, Between(0, 100_000_000)],
    "memory for decoded images, for small data sets seen many times",
  ),
  allow_truncated=(bool, "accept that more than 1% of the texts are longer than `text_len`"),
)
_TOWER = dict(
  variant=(_TEXT | None, "a named size; the fields below replace parts of it"),
  width=(_WIDTH | None, "width of the residual stream; a multiple of `num_heads`"),
  depth=(Annotated[int, Between(1, 1000)] | None, "number of layers"),
  mlp_dim=(_WIDTH | None, "hidden width of the MLP"),
  num_heads=(_HEADS | None, "attention heads"),
  dropout=(_BELOW_1 | None, "dropout rate while training"),
  scan=(bool | None, "run the layers in one loop: faster to compile"),
  remat_policy=(_REMAT | None, "this tower's `remat`, where it differs from the run's"),
  attention=(_ATTENTION | None, "this tower's `attention`, where it differs from the run's"),
)
IMG = _fields(
  **_TOWER,
  patch_size=(_PIXELS | tuple[_PIXELS, _PIXELS] | None, "pixels of a patch"),
  pool_type=(Literal["none"] | None, "big_vision's field; PaliGemma does not pool"),
  posemb=(Literal["learn"] | None, "big_vision's field; embeddings are learned"),
  dtype_mm=(_ANY_DTYPE | None, "compute dtype of this tower; None: the run's"),
)
LLM = _fields(
  **_TOWER,
  num_kv_heads=(_HEADS | None, "key/value heads; divides `num_heads`"),
  head_dim=(Annotated[int, Between(2, 65_536)] | None, "size of a head; an even number"),
  vocab_size=(_VOCAB | None, "rows of the token table"),
  norm_eps=(_SHARE | None, "epsilon of RMSNorm"),
  attn_logits_softcap=(_NOT_NEGATIVE | None, "soft-cap of attention logits; 0: off"),
  final_logits_softcap=(_NOT_NEGATIVE | None, "soft-cap of output logits; 0: off"),
  query_pre_attn_norm=(
    Literal["rsqrt_head_dim", "rsqrt_emb_per_head"] | _POSITIVE | None,
    "how queries are scaled; a number n: by n ** -0.5",
  ),
  post_norms=(bool | None, "norms after attention and MLP too (Gemma 2)"),
  cache_dtype=(_ANY_DTYPE | None, "dtype of the decoding cache; None: the compute dtype"),
)
MODEL = _fields(
  img=(Mapping, "image tower"),
  llm=(Mapping, "text tower"),
  dtype=(_DTYPE, "set from the run's"),
  remat=(_RUN_REMAT, "set from the run's"),
  attention=(_ATTENTION, "set from the run's"),
)
SCHEDULE = _fields(
  decay_type=(Literal[DECAY_TYPES], "how the multiplier falls after the warm-up"),
  **durations(
    warmup="rise linearly from 0 over this much of the run",
    cooldown="fall linearly to 0 over this much of its end",
  ),
  linear_end=(_NUMBER, "as `end`, for linear and polynomial"),
  end=(_NUMBER, "last value of linear and polynomial; 0 by default"),
  power=(Annotated[float, Between(0, 1000)], "exponent of polynomial; 1 by default"),
  timescale=(_POSITIVE, "steps, of rsqrt; 10,000 by default"),
  timescale_examples=(_POSITIVE, "the same in examples"),
  shift=(_NOT_NEGATIVE, "steps added before the root of rsqrt; 0 by default"),
  steps=(_STAIRS, "at which steps stair changes"),
  mults=(_STAIRS, "its value from each of them on"),
  scale_with_batchsize=(bool, "multiply by batch size / 256"),
)
EVAL = _fields(
  type=(Literal[EVAL_TYPES], "which scores are computed (docs/evaluation.md)"),
  data=(Mapping, "one source (docs/data.md); the whole split is scored"),
  pp=(_TEXT, "ends with image, prefix and the columns that the type needs"),
  batch_size=(_ROWS, "examples at once, over all devices"),
  max_decode_len=(
    Annotated[int, Between(1, 65_536)],
    "tokens of an answer; perplexity does not decode",
  ),
  decode=(_TEXT | None, "how answers are generated; None: as the run's `decode`"),
  grammar=(_TEXT | None, "what answers may look like (docs/decoding.md)"),
  to_lower=(bool, "lower-case both sides first: vqa, chartqa, rsvqa"),
  answer=(_TEXT, "the column with the true answer, or a list of them"),
  caption_metrics=(Annotated[list[str], Between(1, 5)], "scores of type caption"),
  confidence=(
    Literal["box_and_label", "label"],
    "of type detection: the score of a predicted object (docs/boxes.md)",
  ),
  out_question_key=(
    _TEXT | None,
    "the name of a question's id in submission.json, for a test server; None: no such file",
  ),
  out_answer_key=(_TEXT, "the name of the answer in submission.json"),
  mask_weights=(_TEXT, 'of masks: "oi" (PaliGemma\'s) or an .npz file (docs/boxes.md)'),
  published=(
    Mapping[str, float | tuple[float, float]],
    "a paper's scores, each alone or with its deviation over runs, shown beside ours",
  ),
  **durations(log="how often it runs while training; unset: only in pgjax.evaluate"),
  skip_first=(bool, "do not run before the first step"),
)


def check(
  section: Any, fields: Mapping[str, Field], where: str, required: Iterable[str] = ()
) -> None:
  """Raises for a missing or unknown name, and for a value of a wrong type or range."""
  if missing := [name for name in required if name not in section]:
    raise UserError(f"{where} lacks {', '.join(missing)}; configs/common.py has every field.")
  for name, value in section.items():
    if name not in fields:
      raise UserError(f"{where} has no field {name!r}.{hint(name, fields)}")
    check_text(value, f"{where}.{name}")
    if not fields[name].accepts(value):
      raise UserError(f"{where}.{name}={shown(value)} must be {fields[name].wants}.")


def hint(name: str, known: Iterable[str], value: str | None = None) -> str:
  """What an unknown name may mean: a field of another section, a synonym, a close spelling."""
  sections = {
    "": RUN, "input.": INPUT, "schedule.": SCHEDULE, "evals.NAME.": EVAL, "model.llm.": LLM,
    "model.img.": IMG,
  }  # fmt: skip
  path = next((section + name for section, fields in sections.items() if name in fields), None)
  return synonyms.hint(path or name, value, field=path) or did_you_mean(name, known)


def check_text(value: Any, where: str) -> None:
  """Raises for a text that cannot be printed or be the name of a file."""
  if odd := isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
    what = "a NUL character" if odd[0] == "\0" else "half of a surrogate pair"
    raise UserError(f"{where}={shown(value)} has {what}; remove it.")


def fields_at(path: tuple[str, ...]) -> Mapping[str, Field] | None:
  """The fields under a dotted path such as ("model", "llm"); None where any name is allowed."""
  if path[:1] == ("evals",):
    return EVAL if len(path) == 2 else None
  sections = {
    (): RUN, ("input",): INPUT, ("model",): MODEL, ("model", "img"): IMG, ("model", "llm"): LLM,
    ("schedule",): SCHEDULE,
  }  # fmt: skip
  return sections.get(path)


def shown(value: Any) -> str:
  """A value for an error message, shortened."""
  try:
    return cut(repr(value.to_dict() if hasattr(value, "to_dict") else value))
  except ValueError:  # Python prints no integer of over 4300 digits.
    return "a huge number"
