"""The optimizer of a config: one optax chain over a flat dict {name: array} of trainable leaves.

With s the schedule's multiplier (0..1), the update is
  - s(step) * (lr * lr_mult * optimizer(clipped gradient) + wd * wd_mult * parameter),
so weight decay follows the schedule but not `lr`, as in big_vision (its optax.py, utils.py).
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgjax.errors import UserError, did_you_mean
from pgjax.params import names as param_names
from pgjax.training import adam8bit, schedules as schedules_lib, stochastic_rounding

# optax's complete optimizers that are linear in their learning rate, which config.lr replaces.
# Others (fromage, rprop) or those that need the loss (lbfgs, polyak_sgd) do not fit the chain.
COMPLETE = (
  *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan"),
  *("amsgrad", "lamb", "lars", "lion", "nadam", "nadamw", "novograd"),
  *("radam", "rmsprop", "sgd", "sm3", "yogi"),
)


def make(
  config: Any, total_steps: int, names: Iterable[str], *, num_examples: int | None = None
) -> optax.GradientTransformation:
  """The chain for the trainable leaves `names`; num_examples is the size of one epoch."""
  names = list(names)
  if not names:
    raise UserError('config.params trains nothing: give at least one pattern the value "train".')
  parts = []
  if config.grad_clip_norm:
    parts.append(optax.clip_by_global_norm(config.grad_clip_norm))
  parts.append(_optimizer(config.optax_name, dict(config.optax)))
  parts.append(optax.scale(config.lr))
  lr_mults, wd_mults = dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.0)
  if config.lr_mults:
    lr_mults = _per_name(config.lr_mults, names, "config.lr_mults", default=1.0)
    parts.append(_scale_each(lr_mults))
  if config.wd:
    wd_mults = _wd_mults(config, names)
    parts.append(_decay_each(config.wd, wd_mults))
  schedules = schedules_lib.for_names(config, total_steps, names, num_examples)
  parts.append(_schedule_each(schedules))
  parts.append(optax.scale(-1.0))
  chain = Chain(*_in_float32(optax.chain(*parts)))
  if config.optax_name == "scale_by_adam" and not set(config.optax) - {"b1", "b2", "eps"}:
    rates = {n: (config.lr * lr_mults[n], (config.wd or 0.0) * wd_mults[n]) for n in names}
    chain.adam = Adam(**config.optax, rates=rates, schedules=schedules)
  return chain


class Adam(NamedTuple):
  """All numbers of a chain whose optimizer is Adam, for one_pass.py; its state is optax's."""

  rates: Mapping[str, tuple[float, float]]  # (learning rate, weight decay) of each leaf.
  schedules: Mapping[str, schedules_lib.Schedule]
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8


class Chain(optax.GradientTransformation):
  """What `make` returns."""

  adam: Adam | None = None  # None: another optimizer.


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """State and updates in float32: optax would use the dtype of bfloat16 weights."""
  wide = functools.partial(jax.tree.map, lambda x: x.astype(jnp.float32))

  def update(grads, state, leaves=None):
    return tx.update(wide(grads), state, None if leaves is None else wide(leaves))

  return optax.GradientTransformation(lambda leaves: tx.init(wide(leaves)), update)


def _per_name(
  patterns: Iterable[tuple[str, float]], names: list[str], where: str, default: float
) -> dict[str, float]:
  """The value of the first pattern that matches each name, else the default."""
  patterns = list(patterns)
  matches = param_names.first_match([p for p, _ in patterns], names, where)
  param_names.check_used([p for p, _ in patterns], matches, where)
  return {name: default if i is None else patterns[i][1] for name, i in matches.items()}


def _wd_mults(config: Any, names: list[str]) -> dict[str, float]:
  if config.wd_mults is not None:
    return _per_name(config.wd_mults, names, "config.wd_mults", default=0.0)
  return {name: float(name.endswith("/kernel")) for name in names}  # The image tower and its head.


def _scale_each(mults: Mapping[str, float]) -> optax.GradientTransformation:
  return optax.stateless(lambda updates, _: {n: u * mults[n] for n, u in updates.items()})


def _decay_each(wd: float, mults: Mapping[str, float]) -> optax.GradientTransformation:
  return optax.stateless(
    lambda updates, values: {
      n: u + wd * mults[n] * values[n] if mults[n] else u for n, u in updates.items()
    }
  )


def _schedule_each(schedules: Mapping[str, schedules_lib.Schedule]) -> optax.GradientTransformation:
  def update(updates, state, values=None):
    mults = {fn: fn(state.count) for fn in set(schedules.values())}
    scaled = {n: u * mults[schedules[n]].astype(u.dtype) for n, u in updates.items()}
    return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

  return optax.GradientTransformation(
    lambda _: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update
  )


def _optimizer(name: str, arguments: dict[str, Any]) -> optax.GradientTransformation:
  """The transformation between clipping and `lr`: an optax `scale_by_*` or complete optimizer."""
  make_tx = _NAMED.get(name) or getattr(optax, name, None)
  if not callable(make_tx) or name.startswith("_"):
    known = [*_NAMED, *COMPLETE, *(n for n in dir(optax) if n.startswith("scale_by_"))]
    hint = did_you_mean(name, known)
    raise UserError(f"config.optax_name={name!r} is no optimizer of optax or big_vision.{hint}")
  if name in COMPLETE:
    arguments = _complete_arguments(name, make_tx, arguments)
  elif name not in _NAMED and "learning_rate" in inspect.signature(make_tx).parameters:
    raise UserError(
      f"config.optax_name={name!r} does not fit between config.lr and config.schedule; "
      f"use a scale_by_* of optax, or one of {', '.join(COMPLETE)}."
    )
  try:
    tx = make_tx(**{key: _dtype(key, value) for key, value in arguments.items()})
  except TypeError:
    known = ", ".join(inspect.signature(make_tx).parameters) or "nothing"
    sentence = f"config.optax={arguments} does not fit {name}, which takes: {known}."
    raise UserError(sentence) from None
  except UserError:
    raise
  except Exception as e:  # Of optax, about a value.
    raise UserError(f"config.optax={arguments} does not fit {name}: {e}") from None
  try:  # One update of a toy, shapes only, to fail before compilation.
    toy = {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    jax.eval_shape(lambda w: tx.update(w, tx.init(w), w), toy)
  except Exception as e:
    raise UserError(
      f"config.optax_name={name!r} cannot turn gradients into updates by itself ({e}); "
      "try scale_by_adam, scale_by_lion or big_vision.sgd."
    ) from None
  return tx


def _complete_arguments(name: str, make_tx: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
  """Disables its own rate and decay: config.lr, config.schedule and config.wd set them."""
  instead = ("config.lr and config.schedule", "config.wd and config.wd_mults")
  for key, fields in zip(("learning_rate", "weight_decay"), instead, strict=True):
    if key in arguments:
      raise UserError(f"config.optax.{key} has no effect with {name}: use {fields}.")
  known = inspect.signature(make_tx).parameters
  no_decay = {k: 0.0 for k in ("weight_decay", "weight_decay_rate") if k in known}
  # optax multiplies by minus the rate at the end; the chain negates itself, so undo the sign.
  return {"learning_rate": -1.0, **no_decay, **arguments}


def _dtype(key: str, value: Any) -> Any:
  """The dtype that a config spells as text, such as mu_dtype="bfloat16"; others as they are."""
  if "dtype" not in key or not isinstance(value, str):
    return value
  try:
    return jnp.dtype(value)
  except TypeError:
    raise UserError(f"config.optax.{key}={value!r} is not a dtype; try 'bfloat16'.") from None


def _scale_by_adafactor(
  min_dim_size_to_factor: int = 32,
  decay_rate: float = 0.8,
  decay_offset: int = 0,
  beta2_cap: float = 0.999,
  clipping_threshold: float | None = None,
  momentum: float | None = 0.9,
  dtype_momentum: Any = jnp.bfloat16,
  eps: float = 1e-30,
) -> optax.GradientTransformation:
  """big_vision's Adafactor (arXiv:2106.04560, section 3.4): beta2 capped, bfloat16 momentum."""

  def beta2(step, exponent):
    return jnp.minimum(beta2_cap, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -exponent)

  parts = [
    optax.scale_by_factored_rms(
      min_dim_size_to_factor=min_dim_size_to_factor,
      decay_rate=decay_rate,
      step_offset=decay_offset,
      epsilon=eps,
      decay_rate_fn=beta2,
    )
  ]
  if clipping_threshold:
    parts.append(optax.clip_by_block_rms(clipping_threshold))
  if momentum:
    parts.append(optax.ema(momentum, debias=False, accumulator_dtype=dtype_momentum))
  return optax.chain(*parts)


def _momentum_hp(
  momentum: float = 0.9, dtype: Any = jnp.bfloat16, nesterov: bool = False
) -> optax.GradientTransformation:
  return optax.trace(decay=momentum, nesterov=nesterov, accumulator_dtype=dtype)


_NAMED = {
  "big_vision.sgd": optax.identity,
  "big_vision.momentum_hp": _momentum_hp,
  "big_vision.scale_by_adafactor": _scale_by_adafactor,
  "pgjax.adam8bit": adam8bit.adam8bit,
  "pgjax.adam_bf16": stochastic_rounding.adam_bf16,
}
