"""The learning rate's multiplier by step: big_vision's create_learning_rate_schedule (utils.py)."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.config import durations
from pgjax.errors import UserError, did_you_mean
from pgjax.params import names as param_names

DECAY_TYPES = ("cosine", "linear", "polynomial", "rsqrt", "stair", "const")
Schedule = Callable[[Any], jax.Array]


def make_schedule(
  fields: Any, config: Any, total_steps: int, num_examples: int | None = None
) -> Schedule:
  """The function that fields such as dict(decay_type="cosine", warmup_percent=0.05) describe."""
  fields, batch_size = dict(fields), config.input.batch_size
  sizes = dict(batch_size=batch_size, num_examples=num_examples, total_steps=total_steps)
  warmup = durations.steps(fields, "warmup", default=0, **sizes)
  cooldown = durations.steps(fields, "cooldown", default=0, **sizes)
  if total_steps > 1 and warmup >= total_steps:
    raise UserError(
      f"config.schedule: the warm-up of {warmup} steps must be shorter than the run of "
      f"{total_steps} steps; lower warmup_* or train longer."
    )
  decay = _decay(fields, batch_size, warmup)
  mult = batch_size / 256 if fields.get("scale_with_batchsize") else 1.0

  def schedule(step: Any) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - warmup) / max(1.0, total_steps - warmup), 0.0, 1.0)
    value = mult * decay(step, progress)
    if warmup:
      value = value * jnp.minimum(1.0, step / warmup)
    if cooldown:
      value = value * jnp.minimum(1.0, (total_steps - step) / cooldown)
    return jnp.asarray(value, jnp.float32)

  return schedule


def _decay(fields: Mapping[str, Any], batch_size: int, warmup: int) -> Callable:
  """(step, progress) -> multiplier but for warm-up and cool-down; progress: 0..1 after warm-up."""
  kind = fields.get("decay_type", "stair")
  if kind in ("linear", "polynomial"):
    end, power = fields.get("end", fields.get("linear_end", 0.0)), fields.get("power", 1.0)
    return lambda step, progress: end + (1.0 - end) * (1.0 - progress) ** power
  if kind == "cosine":
    return lambda step, progress: 0.5 * (1.0 + jnp.cos(math.pi * progress))
  if kind == "rsqrt":
    examples, shift = fields.get("timescale_examples"), fields.get("shift", 0)
    scale = examples / batch_size if examples else fields.get("timescale", 10_000)
    # During warm-up the value is constant, that of the decay's beginning.
    return lambda step, progress: 1 / jnp.sqrt(1 + (jnp.maximum(step - warmup, 0) + shift) / scale)
  if kind == "stair":
    starts = jnp.array(fields.get("steps", ()), jnp.float32)
    mults = jnp.array([1.0, *fields.get("mults", ())], jnp.float32)
    if len(mults) != len(starts) + 1:
      raise UserError(
        f'config.schedule: decay_type "stair" needs as many mults ({len(mults) - 1}) as steps '
        f"({len(starts)})."
      )
    return lambda step, progress: mults[jnp.searchsorted(starts, step + 1)]
  if kind == "const":
    return lambda step, progress: jnp.ones(())
  raise UserError(f"config.schedule: unknown decay_type {kind!r}.{did_you_mean(kind, DECAY_TYPES)}")


def for_names(
  config: Any, total_steps: int, names: list[str], num_examples: int | None
) -> dict[str, Schedule]:
  """A schedule for each trainable name."""
  patterns, where = config.schedule, "config.schedule"
  patterns = [(".*", patterns)] if hasattr(patterns, "keys") else list(patterns)
  matches = param_names.first_match([p for p, _ in patterns], names, where)
  for name, i in matches.items():
    if i is None or patterns[i][1] is None:
      how = "no pattern covers it" if i is None else f"{patterns[i][0]!r} freezes it"
      raise UserError(f"{where}: {name} trains (config.params), but {how}.")
  live = [i for i, (_, fields) in enumerate(patterns) if fields is not None]
  renumbered = {name: live.index(i) for name, i in matches.items()}
  param_names.check_used([patterns[i][0] for i in live], renumbered, where)
  schedules = {i: make_schedule(patterns[i][1], config, total_steps, num_examples) for i in live}
  return {name: schedules[i] for name, i in matches.items()}


def learns_nothing(
  config: Any, total_steps: int, names: Iterable[str], num_examples: int | None
) -> bool:
  """Whether every step multiplies its update by 0, as the only step of a run with a warm-up."""
  if not config.lr and not config.wd:
    return True
  steps = np.unique(np.linspace(0, total_steps - 1, min(total_steps, 1000)).astype(np.int64))
  schedules = set(for_names(config, total_steps, list(names), num_examples).values())
  return not any(np.asarray(jax.jit(schedule)(steps)).any() for schedule in schedules)
