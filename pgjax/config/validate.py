"""Is a config valid? Checked before JAX, data or weights are touched."""

import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from pgjax.config import contents, decode_method, durations, load, model_init, schema
from pgjax.errors import UserError, cut
from pgjax.params import names as param_names, rules as param_rules

MAX_BATCH_BYTES = 128 << 30
# Columns of a batch (data/pipeline.py), which no column of the data may have.
RESERVED_COLUMNS = ("image", "image_mask", "mask_ar", "mask_loss", "mask_input")


def validated(config: ConfigDict) -> ConfigDict:
  """A complete, locked copy with checked names, types, ranges and rules between fields."""
  config = ConfigDict(config.to_dict(), type_safe=False)
  _merge_frozen(config)
  schema.check(config, schema.RUN, "config", _no_durations(schema.RUN))
  schema.check(config.input, schema.INPUT, "config.input", schema.INPUT)
  config.model.dtype, config.model.remat = config.dtype, config.remat
  config.model.attention = config.attention
  schema.check(config.model, schema.MODEL, "config.model", ("img", "llm"))
  schema.check(config.model.img, schema.IMG, "config.model.img")
  schema.check(config.model.llm, schema.LLM, "config.model.llm")
  _check_training(config)
  _check_attention(config)
  _check_sizes(config)
  _check_model_init(config.model_init)
  decode_method.parse(config.decode, "config.decode")
  contents.check_eval_names(config.evals)
  for name, entry in config.evals.items():
    _check_eval(entry, f"config.evals[{name!r}]")
  contents.check_keep_best(config.keep_best, config.evals)
  contents.check_data(config.input.data, "config.input.data")
  _check_files(config)
  contents.check_plain(config, "config")
  return config.lock()


def _check_model_init(value: Any) -> None:
  specs = [value] if isinstance(value, str) else (value or {}).values()
  for spec in specs:
    if isinstance(spec, str):
      model_init.parse(spec)


def _no_durations(fields: Iterable[str]) -> list[str]:
  return [name for name in fields if not name.endswith(durations.UNITS)]


def _merge_frozen(config: ConfigDict) -> None:
  """Moves big_vision's way to freeze, schedule=[(regex, None)], to `params`."""
  listed = isinstance(config.schedule, list | tuple)
  if not listed or not schema.RUN["schedule"].accepts(config.schedule):
    return  # `check` reports a wrong one.
  frozen, rest = param_rules.from_schedule(config.schedule)
  if frozen is None:
    return
  params = [tuple(pair) for pair in config.params]
  if params not in ([(".*", "train")], frozen):
    raise UserError(
      f"config.schedule freezes {[p for p, v in config.schedule if v is None]} with None, which "
      f"contradicts config.params={params}; set what trains in one of the two."
    )
  if not rest:
    raise UserError("config.schedule freezes everything: at least one pattern needs a schedule.")
  config.params, config.schedule = frozen, rest


def _check_training(config: ConfigDict) -> None:
  for prefix in ("total", "log_training", "ckpt", "keep_ckpt"):
    durations.check_duration(config, prefix, "config")
  if not durations.fields_set(config, "total"):
    raise UserError(
      "The config does not set how long to train: set one of total_epochs, total_steps or "
      "total_examples."
    )
  for _, spec in config.params:
    param_rules.parse_spec(spec)
  contents.check_optax(config.optax, "config.optax")
  load.set_mesh(config)
  for name in ("params", "lr_mults", "wd_mults", "sharding_strategy"):
    for pattern, _ in config[name] or ():
      param_names.compile_pattern(pattern, f"config.{name}")
  single = isinstance(config.schedule, ConfigDict)
  for pattern, fields in [("", config.schedule)] if single else config.schedule:
    where = f"config.schedule[{pattern!r}]" if pattern else "config.schedule"
    param_names.compile_pattern(pattern, "config.schedule")
    schema.check(fields, schema.SCHEDULE, where)
    for prefix in ("warmup", "cooldown"):
      durations.check_duration(fields, prefix, where)
    starts = list(fields.get("steps") or ())
    if starts != sorted(starts):
      raise UserError(f"{where}.steps={schema.shown(starts)} must be in ascending order.")


def _check_attention(config: ConfigDict) -> None:
  towers = dict(img=config.model.img.get("dtype_mm") or config.dtype, llm=config.dtype)
  dtypes = {f"config.model.{name}.attention": towers[name] for name in towers}
  wanted = {
    f"config.model.{name}.attention": config.model[name].get("attention") for name in towers
  }
  if all(dtype == "float32" for dtype in towers.values()):
    wanted["config.attention"], dtypes["config.attention"] = config.attention, "float32"
  for where, name in wanted.items():
    if name in ("triton", "flash", "cudnn") and dtypes[where] == "float32":
      raise UserError(
        f'{where}="{name}" computes in bfloat16, and config.dtype is "float32"; set'
        ' config.dtype="bfloat16", or take "chunked", which needs no more memory.'
      )


def _check_sizes(config: ConfigDict) -> None:
  batch_size = config.input.batch_size
  if batch_size % config.microbatches:
    raise UserError(
      f"config.microbatches={config.microbatches} must divide config.input.batch_size={batch_size}."
    )
  image_bytes = batch_size * max(1, config.num_frames) * config.res**2 * 12
  if image_bytes > MAX_BATCH_BYTES:
    raise UserError(
      f"The images of one batch would take {image_bytes / 2**30:,.0f} GiB (config.input.batch_size="
      f"{batch_size:,} of {config.res} x {config.res} pixels in float32, over all processes); at"
      f" most {MAX_BATCH_BYTES >> 30} GiB are allowed."
    )
  for part in ("img", "llm"):
    _check_tower(config.model[part], f"config.model.{part}")
  img = config.model.img
  patch = img.patch_size if "patch_size" in img else None
  if patch is None:  # From a name such as "So400m/14".
    match = re.fullmatch(r".*/(\d+)", img.variant if "variant" in img else "")
    patch = int(match[1]) if match else 1
  for size in [patch] if isinstance(patch, int) else patch:
    if config.res % size:
      near = config.res // size * size
      raise UserError(
        f"config.res={config.res} must be a multiple of the patch size {size}; "
        f"try {near or size} or {near + size}."
      )


def _check_tower(fields: ConfigDict, where: str) -> None:
  """Rules between the sizes that are given; the models check those of a variant."""
  width, heads, kv_heads, head_dim = (
    fields.get(name) for name in ("width", "num_heads", "num_kv_heads", "head_dim")
  )
  if width and heads and width % heads:
    raise UserError(f"{where}.width={width} must be a multiple of num_heads={heads}.")
  if heads and kv_heads and heads % kv_heads:
    raise UserError(f"{where}.num_heads={heads} must be a multiple of num_kv_heads={kv_heads}.")
  if head_dim and head_dim % 2:
    raise UserError(
      f"{where}.head_dim={head_dim} must be even: its halves are rotated against each other."
    )


def _check_files(config: ConfigDict) -> None:
  contents.check_readable(config.tokenizer, "config.tokenizer")
  weights = config.model_init
  for part in weights.values() if isinstance(weights, ConfigDict) else [weights]:
    contents.check_readable(part, "config.model_init")
  for name, entry in config.evals.items():
    contents.check_readable(entry.mask_weights, f"config.evals[{name!r}].mask_weights")


def _check_eval(entry: Any, where: str) -> None:
  if not isinstance(entry, ConfigDict):
    raise UserError(f"{where}={schema.shown(entry)} must be a dict; see configs/common.py.")
  schema.check(entry, schema.EVAL, where, _no_durations(schema.EVAL))
  durations.check_duration(entry, "log", where)
  if entry.answer.startswith("_") or entry.answer in RESERVED_COLUMNS:
    raise UserError(
      f"{where}.answer={cut(repr(entry.answer))} is a name that pgjax uses itself, as are"
      f" {', '.join(RESERVED_COLUMNS)} and names that begin with an underscore; rename the column."
    )
  contents.check_data(entry.data, f"{where}.data")
  if entry.decode is not None:
    decode_method.parse(entry.decode, f"{where}.decode")
