"""Which fields does a config have, and what may stand in each?

One entry a field; what a field means and its default are in configs/common.py. `check` looks at
names, types and ranges; rules between fields are in config/load.py.
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
  """What may stand in a field; `wants` ends the sentence `config.x=... must be <wants>`."""

  wants: str
  accepts: Callable[[Any], bool]
  optional: bool = False  # None is allowed too.


def _whole(low: int, *, optional: bool = False) -> Field:
  def accepts(v):
    return isinstance(v, int) and not isinstance(v, bool) and v >= low

  return Field(f"a whole number >= {low}", accepts, optional)


def _number(low: float, below: float | None = None, *, optional: bool = False) -> Field:
  def accepts(v):
    number = isinstance(v, int | float) and not isinstance(v, bool)
    return number and low <= v < (float("inf") if below is None else below)

  wants = f"a number >= {low}" + (f" and < {below}" if below is not None else "")
  return Field(wants, accepts, optional)


def _one_of(*allowed: str, optional: bool = False) -> Field:
  return Field("one of " + ", ".join(allowed), lambda v: v in allowed, optional)


def _pairs(what: str, accepts_value: Callable[[Any], bool], *, optional: bool = False) -> Field:
  """A list of (pattern or name, value); JSON turns the tuples into lists."""

  def accepts(v):
    return isinstance(v, list | tuple) and all(
      isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str) and accepts_value(p[1])
      for p in v
    )

  return Field(f"a list of pairs {what}", accepts, optional)


def _is_number(v: Any) -> bool:
  return isinstance(v, int | float) and not isinstance(v, bool)


def _is_mapping(v: Any) -> bool:
  return isinstance(v, Mapping) or hasattr(v, "keys")


TEXT = Field("text in quotes", lambda v: isinstance(v, str) and v != "")
ANY_TEXT = Field("text in quotes", lambda v: isinstance(v, str))
OPTIONAL_TEXT = TEXT._replace(optional=True)
FLAG = Field("True or False", lambda v: isinstance(v, bool))
OPTIONAL_FLAG = FLAG._replace(optional=True)
MAPPING = Field("a dict", _is_mapping)


def durations(*prefixes: str) -> dict[str, Field]:
  """The four fields of each duration; config.steps turns the one that is set into steps."""
  percent = Field("a number from 0 to 1 (1 is 100%)", lambda v: _is_number(v) and 0 <= v <= 1, True)
  fields = {}
  for prefix in prefixes:
    fields[f"{prefix}_steps"] = _whole(0, optional=True)
    fields[f"{prefix}_epochs"] = fields[f"{prefix}_examples"] = _number(0, optional=True)
    fields[f"{prefix}_percent"] = percent
  return fields


RUN = {
  "seed": _whole(0),
  "res": _whole(1),
  "num_frames": _whole(0),
  "text_len": _whole(2),
  "tokenizer": TEXT,
  "input": MAPPING,
  **durations("log_training", "ckpt", "keep_ckpt"),
  **{name: field for name, field in durations("total").items() if name != "total_percent"},
  "optax_name": TEXT,
  "optax": MAPPING,
  "lr": _number(0),
  "lr_mults": _pairs("(regex, number > 0)", lambda v: _is_number(v) and v > 0, optional=True),
  "wd": _number(0),
  "wd_mults": _pairs("(regex, number >= 0)", lambda v: _is_number(v) and v >= 0, optional=True),
  "stochastic_rounding": FLAG,
  "opt_state_memory": _one_of("device", "host"),
  "ema_decay": _number(0, 1, optional=True),
  "grad_clip_norm": _number(0, optional=True),
  "label_smoothing": _number(0, 1),
  "schedule": Field(
    "a dict such as dict(decay_type='cosine'), or a list of pairs (regex, dict or None)",
    lambda v: (
      _is_mapping(v)
      or (_pairs("", lambda s: s is None or _is_mapping(s)).accepts(v) and len(v) > 0)
    ),
  ),
  "params": _pairs('(regex, "train", "freeze(...)" or "lora(...)")', lambda v: isinstance(v, str)),
  "model": MAPPING,
  "model_init": Field(
    "a name such as 'pt_224', a path, or a dict of them",
    lambda v: (isinstance(v, str) and v != "") or _is_mapping(v),
    optional=True,
  ),
  "dtype": _one_of(*DTYPES),
  "remat": TEXT,
  "microbatches": _whole(1),
  "mesh": _pairs("(axis, size)", lambda v: isinstance(v, int) and not isinstance(v, bool)),
  "sharding_strategy": _pairs("(regex, tactic)", lambda v: isinstance(v, str)),
  "decode": TEXT,
  "evals": MAPPING,
  "keep_last": _whole(1),
  "keep_best": ANY_TEXT,
}
INPUT = {
  "data": MAPPING,
  "pp": TEXT,
  "batch_size": _whole(1),
  "num_threads": _whole(1),
  "num_workers": _whole(0),
  "cache_mb": _whole(0),
  "allow_truncated": FLAG,
}
_TOWER = {
  "variant": OPTIONAL_TEXT,
  **dict.fromkeys(("width", "depth", "mlp_dim", "num_heads"), _whole(1, optional=True)),
  "dropout": _number(0, 1, optional=True),
  "scan": OPTIONAL_FLAG,
  "remat_policy": OPTIONAL_TEXT,
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
  ),
  "pool_type": _one_of("none", optional=True),
  "posemb": _one_of("learn", optional=True),
  "dtype_mm": _one_of(*DTYPES, "float16", optional=True),
}
LLM = {
  **_TOWER,
  **dict.fromkeys(("num_kv_heads", "head_dim", "vocab_size"), _whole(1, optional=True)),
  "norm_eps": _number(0, optional=True),
  "attn_logits_softcap": _number(0, optional=True),
  "final_logits_softcap": _number(0, optional=True),
  "query_pre_attn_norm": Field(
    "rsqrt_head_dim, rsqrt_emb_per_head or a number > 0",
    lambda v: v in ("rsqrt_head_dim", "rsqrt_emb_per_head") or (_is_number(v) and v > 0),
    optional=True,
  ),
  "post_norms": OPTIONAL_FLAG,
  "cache_dtype": _one_of(*DTYPES, "float16", optional=True),
}
MODEL = {"img": MAPPING, "llm": MAPPING, "dtype": _one_of(*DTYPES), "remat": TEXT}
SCHEDULE = {
  "decay_type": TEXT,
  **durations("warmup", "cooldown"),
  **dict.fromkeys(("linear_end", "end"), Field("a number", _is_number)),
  **dict.fromkeys(("power", "timescale", "timescale_examples", "shift"), _number(0)),
  **dict.fromkeys(("steps", "mults"), Field("a list", lambda v: isinstance(v, list | tuple))),
  "scale_with_batchsize": FLAG,
}
EVAL = {
  "type": _one_of(*EVAL_TYPES),
  "data": MAPPING,
  "pp": TEXT,
  "batch_size": _whole(1),
  "max_decode_len": _whole(1),
  "decode": OPTIONAL_TEXT,
  "grammar": OPTIONAL_TEXT,
  "to_lower": FLAG,
  "answer": TEXT,
  "caption_metrics": Field(
    "a list of cider, bleu, rouge, meteor",
    lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(isinstance(n, str) for n in v),
  ),
  "mask_weights": TEXT,
  "published": Field(
    "a dict of numbers by the names of scores",
    lambda v: _is_mapping(v) and all(isinstance(n, str) and _is_number(v[n]) for n in v),
  ),
  **durations("log"),
  "skip_first": FLAG,
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
