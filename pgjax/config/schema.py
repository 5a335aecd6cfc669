"""Which fields does a config have, and what may stand in each?

One entry a field: what it accepts and what it means; defaults are in configs/common.py. `check`
looks at names, types and ranges; rules between fields are in config/load.py.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pgjax.errors import UserError
from pgjax.params import names as param_names

DTYPES = ("float32", "bfloat16")
EVAL_TYPES = (  # Those of evaluation/scorers.py, and the one that does not decode.
  "vqa", "vqav2", "chartqa", "choice", "science_qa", "pope", "tallyqa", "rsvqa", "caption",
  "detection", "segmentation", "json", "predictions", "perplexity",
)  # fmt: skip


class Field(NamedTuple):
  """One field; `wants` ends the sentence `config.x=... must be <wants>`, `help` is its meaning."""

  wants: str
  accepts: Callable[[Any], bool]
  optional: bool = False  # None is allowed too.
  help: str = ""  # A row of docs/config.md, which is generated from here.


def _whole(low: int, help: str = "", *, optional: bool = False) -> Field:
  def accepts(v):
    return isinstance(v, int) and not isinstance(v, bool) and v >= low

  return Field(f"a whole number >= {low}", accepts, optional, help)


def _number(
  low: float, help: str = "", *, below: float | None = None, optional: bool = False
) -> Field:
  def accepts(v):
    return _is_number(v) and low <= v < (float("inf") if below is None else below)

  wants = f"a number >= {low}" + (f" and < {below}" if below is not None else "")
  return Field(wants, accepts, optional, help)


def _one_of(*allowed: str, help: str, optional: bool = False) -> Field:
  return Field("one of " + ", ".join(allowed), lambda v: v in allowed, optional, help)


def _pairs(
  what: str, accepts_value: Callable[[Any], bool], help: str = "", *, optional: bool = False
) -> Field:
  """A list of (pattern or name, value); JSON turns the tuples into lists."""

  def accepts(v):
    return isinstance(v, list | tuple) and all(
      isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str) and accepts_value(p[1])
      for p in v
    )

  return Field(f"a list of pairs {what}", accepts, optional, help)


def _is_number(v: Any) -> bool:
  return isinstance(v, int | float) and not isinstance(v, bool)


def _is_mapping(v: Any) -> bool:
  return isinstance(v, Mapping) or hasattr(v, "keys")


def _text(help: str, *, optional: bool = False) -> Field:
  return Field("text in quotes", lambda v: isinstance(v, str) and v != "", optional, help)


def _flag(help: str, *, optional: bool = False) -> Field:
  return Field("True or False", lambda v: isinstance(v, bool), optional, help)


def _mapping(help: str) -> Field:
  return Field("a dict", _is_mapping, help=help)


def durations(**helps: str) -> dict[str, Field]:
  """The four fields of each duration; config.steps turns the one that is set into steps."""
  percent = Field("a number from 0 to 1 (1 is 100%)", lambda v: _is_number(v) and 0 <= v <= 1, True)
  fields = {}
  for prefix, help in helps.items():
    fields[f"{prefix}_steps"] = _whole(0, help, optional=True)
    fields[f"{prefix}_epochs"] = fields[f"{prefix}_examples"] = _number(0, optional=True)
    fields[f"{prefix}_percent"] = percent
  return fields


RUN = {
  "seed": _whole(0, "seed of initial weights, data order, random ops, dropout and sampling"),
  "res": _whole(1, "pixels on each side of an image"),
  "num_frames": _whole(0, "0: one image an example; N: a list of up to N images"),
  "text_len": _whole(2, "tokens of prefix, newline, suffix and `<eos>` together"),
  "tokenizer": _text("a `tokenizer.model` file, here or beside the weights; `tiny` ships in pgjax"),
  "input": _mapping("the training data: the fields of `input`, below"),
  **durations(
    log_training="how often the progress line is logged; unset: 100 times a run",
    ckpt="how often a checkpoint is saved; the last step always is",
    keep_ckpt="checkpoints at multiples of this are never removed",
  ),
  **durations(total="length of the run; one of the three must be set"),
  "optax_name": _text("the optimizer: optax's, or one in docs/optimizers.md"),
  "optax": _mapping("arguments of the optimizer, such as `dict(b2=0.95)`"),
  "lr": _number(0, "learning rate, multiplied by the schedule"),
  "lr_mults": _pairs(
    "(regex, number > 0)", lambda v: _is_number(v) and v > 0, optional=True,
    help="factor on `lr` by parameter name, first match; 1 where nothing matches",
  ),
  "wd": _number(0, "weight decay, multiplied by the schedule but not by `lr`"),
  "wd_mults": _pairs(
    "(regex, number >= 0)", lambda v: _is_number(v) and v >= 0, optional=True,
    help='factor on `wd` by parameter name, first match, else 0; None: `[(".*/kernel", 1.0)]`',
  ),
  "stochastic_rounding": _flag("round bfloat16 updates stochastically (docs/optimizers.md)"),
  "opt_state_memory": _one_of(
    "device", "host", help="where the optimizer's state is stored between steps"
  ),
  "ema_decay": _number(
    0, "average the trained weights with this decay and score the average", below=1, optional=True
  ),
  "grad_clip_norm": _number(
    0, "clip gradients to this global norm; 0 or None: no clipping", optional=True
  ),
  "label_smoothing": _number(0, "share of the target spread over all tokens", below=1),
  "schedule": Field(
    "a dict such as dict(decay_type='cosine'), or a list of pairs (regex, dict or None)",
    lambda v: (
      _is_mapping(v)
      or (_pairs("", lambda s: s is None or _is_mapping(s)).accepts(v) and len(v) > 0)
    ),
    help="multiplier of `lr` and `wd` over the run: the fields of `schedule`, below",
  ),
  "params": _pairs(
    '(regex, "train", "freeze(...)" or "lora(...)")', lambda v: isinstance(v, str),
    help="which parameters train, by name, first match (docs/lora.md)",
  ),
  "model": _mapping("`dict(img=..., llm=...)`: the fields of both towers, below"),
  "model_init": Field(
    "a name such as 'pt_224', a path, or a dict of them",
    lambda v: (isinstance(v, str) and v != "") or _is_mapping(v),
    optional=True,
    help="checkpoint to start from (docs/weights.md); None: random weights",
  ),
  "dtype": _one_of(*DTYPES, help="of the computation; trained weights are stored in float32"),
  "remat": _text("which activations are stored for the backward pass (docs/memory.md)"),
  "microbatches": _whole(1, "accumulate gradients over this many parts of a batch"),
  "mesh": _pairs(
    "(axis, size)", lambda v: isinstance(v, int) and not isinstance(v, bool),
    help="the device mesh; a size of -1 takes the remaining devices",
  ),
  "sharding_strategy": _pairs(
    "(regex, tactic)", lambda v: isinstance(v, str),
    help="how each parameter is sharded: `replicate`, `fsdp(axis)` or `shard_dim(axis, dim)`",
  ),
  "decode": _text("how answers are generated (docs/decoding.md)"),
  "evals": _mapping("`{name: entry}`: the evaluators, each with the fields of an entry, below"),
  "keep_last": _whole(1, "how many of the newest checkpoints stay"),
  "keep_best": Field(
    "text in quotes", lambda v: isinstance(v, str),
    help='also keep the best by a metric, such as "val/acc"; "-val/avg" where less is better',
  ),
}  # fmt: skip
del RUN["total_percent"]  # Of itself.
INPUT = {
  "data": _mapping("a source, or a mixture `{name: weight}` (docs/data.md)"),
  "pp": _text("the ops that end with image, prefix and suffix (docs/data.md)"),
  "batch_size": _whole(1, "examples a step, over all devices"),
  "num_threads": _whole(1, "threads that decode and resize images"),
  "num_workers": _whole(0, "processes for it, if Python itself is the bottleneck"),
  "cache_mb": _whole(0, "memory for decoded images, for small data sets seen many times"),
  "allow_truncated": _flag("accept that more than 1% of the texts are longer than `text_len`"),
}
_TOWER = {
  "variant": _text("a named size; the fields below replace parts of it", optional=True),
  "width": _whole(1, "width of the residual stream", optional=True),
  "depth": _whole(1, "number of layers", optional=True),
  "mlp_dim": _whole(1, "hidden width of the MLP", optional=True),
  "num_heads": _whole(1, "attention heads", optional=True),
  "dropout": _number(0, "dropout rate while training", below=1, optional=True),
  "scan": _flag("run the layers in one loop: faster to compile", optional=True),
  "remat_policy": _text("this tower's `remat`, where it differs from the run's", optional=True),
}
IMG = {
  **_TOWER,
  "patch_size": Field(
    "a whole number or a pair (height, width)",
    lambda v: (
      (isinstance(v, int) and v > 0)
      or (isinstance(v, list | tuple) and len(v) == 2 and all(isinstance(n, int) for n in v))
    ),
    optional=True,
    help="pixels of a patch",
  ),
  "pool_type": _one_of("none", optional=True, help="big_vision's field; PaliGemma does not pool"),
  "posemb": _one_of("learn", optional=True, help="big_vision's field; embeddings are learned"),
  "dtype_mm": _one_of(
    *DTYPES, "float16", optional=True, help="compute dtype of this tower; None: the run's"
  ),
}
LLM = {
  **_TOWER,
  "num_kv_heads": _whole(1, "key/value heads; divides `num_heads`", optional=True),
  "head_dim": _whole(1, "size of a head", optional=True),
  "vocab_size": _whole(1, "rows of the token table", optional=True),
  "norm_eps": _number(0, "epsilon of RMSNorm", optional=True),
  "attn_logits_softcap": _number(0, "soft-cap of attention logits; 0: off", optional=True),
  "final_logits_softcap": _number(0, "soft-cap of output logits; 0: off", optional=True),
  "query_pre_attn_norm": Field(
    "rsqrt_head_dim, rsqrt_emb_per_head or a number > 0",
    lambda v: v in ("rsqrt_head_dim", "rsqrt_emb_per_head") or (_is_number(v) and v > 0),
    optional=True,
    help="how queries are scaled; a number n: by n ** -0.5",
  ),
  "post_norms": _flag("norms after attention and MLP too (Gemma 2)", optional=True),
  "cache_dtype": _one_of(
    *DTYPES, "float16", optional=True, help="dtype of the decoding cache; None: the compute dtype"
  ),
}
MODEL = {
  "img": _mapping("image tower"),
  "llm": _mapping("text tower"),
  "dtype": _one_of(*DTYPES, help="set from the run's"),
  "remat": _text("set from the run's"),
}
_STAIR = Field("a list", lambda v: isinstance(v, list | tuple))
SCHEDULE = {
  "decay_type": _text("cosine, linear, polynomial, rsqrt, stair or const"),
  **durations(
    warmup="rise linearly from 0 over this much of the run",
    cooldown="fall linearly to 0 over this much of its end",
  ),
  "linear_end": Field("a number", _is_number, help="as `end`, for linear and polynomial"),
  "end": Field("a number", _is_number, help="last value of linear and polynomial; 0 by default"),
  "power": _number(0, "exponent of polynomial; 1 by default"),
  "timescale": _number(0, "steps, of rsqrt; 10,000 by default"),
  "timescale_examples": _number(0, "the same in examples"),
  "shift": _number(0, "steps added before the root of rsqrt; 0 by default"),
  "steps": _STAIR._replace(help="at which steps stair changes"),
  "mults": _STAIR._replace(help="its value from each of them on"),
  "scale_with_batchsize": _flag("multiply by batch size / 256"),
}
EVAL = {
  "type": _one_of(*EVAL_TYPES, help="which scores are computed (docs/evaluation.md)"),
  "data": _mapping("one source (docs/data.md); the whole split is scored"),
  "pp": _text("ends with image, prefix and the columns that the type needs"),
  "batch_size": _whole(1, "examples at once, over all devices"),
  "max_decode_len": _whole(1, "tokens of an answer; perplexity does not decode"),
  "decode": _text("how answers are generated; None: as the run's `decode`", optional=True),
  "grammar": _text("what answers may look like (docs/decoding.md)", optional=True),
  "to_lower": _flag("lower-case both sides first: vqa, chartqa, rsvqa"),
  "answer": _text("the column with the true answer, or a list of them"),
  "caption_metrics": Field(
    "a list of cider, bleu, rouge, meteor",
    lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(isinstance(n, str) for n in v),
    help="scores of type caption",
  ),
  "mask_weights": _text('of segmentation: "oi" (PaliGemma\'s) or an .npz file (docs/boxes.md)'),
  "published": Field(
    "a dict of numbers by the names of scores",
    lambda v: _is_mapping(v) and all(isinstance(n, str) and _is_number(v[n]) for n in v),
    help="a paper's scores, shown beside ours",
  ),
  **durations(log="how often it runs while training; unset: only in pgjax.evaluate"),
  "skip_first": _flag("do not run before the first step"),
}


def check(section: Any, fields: Mapping[str, Field], where: str) -> None:
  """Every name must be known, every field that is not optional there, every value acceptable."""
  for name, value in section.items():
    if name not in fields:
      raise UserError(f"{where} has no field {name!r}.{did_you_mean(name, fields)}")
    field = fields[name]
    if not (field.optional and value is None) and not field.accepts(value):
      or_none = " (or None)" if field.optional else ""
      raise UserError(f"{where}.{name}={shown(value)} must be {field.wants}{or_none}.")


def require(section: Any, fields: Iterable[str], where: str) -> None:
  """Raises if one of the fields is not there at all."""
  if missing := [name for name in fields if name not in section]:
    raise UserError(f"{where} lacks {', '.join(missing)}; configs/common.py has every field.")


def check_patterns(pairs: Any, where: str) -> None:
  """Regular expressions that do not compile are told before a model exists."""
  for pattern, _ in pairs or ():
    param_names.compile_pattern(pattern, where)


def fields_at(path: tuple[str, ...]) -> Mapping[str, Field] | None:
  """The fields under a dotted path such as ("model", "llm"); None where any name is allowed."""
  known = {
    (): RUN, ("input",): INPUT, ("model",): MODEL, ("model", "img"): IMG, ("model", "llm"): LLM,
    ("schedule",): SCHEDULE,
  }  # fmt: skip
  if path[:1] == ("evals",):
    return EVAL if len(path) == 2 else None
  return known.get(path)


def did_you_mean(name: str, known: Iterable[str], *, always: bool = True) -> str:
  """` Did you mean 'text_len'?`; if no name is near (and always) all of them, if they are few."""
  known = list(known)
  close = difflib.get_close_matches(str(name), known, 1, 0.5)
  if close:
    return f" Did you mean {close[0]!r}?"
  return f" There are: {', '.join(known)}." if always and 0 < len(known) <= 20 else ""


def shown(value: Any) -> str:
  """A value in an error message, cut where it is long."""
  text = repr(value.to_dict() if hasattr(value, "to_dict") else value)
  return text if len(text) <= 80 else text[:77] + "..."
