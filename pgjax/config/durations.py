"""Durations in a config: `x_steps`, `x_epochs`, `x_examples` or `x_percent`, as steps."""

from collections.abc import Mapping
from typing import Any

from pgjax.errors import UserError

UNITS = ("steps", "epochs", "examples", "percent")
MAX_STEPS = 2**31 - 1  # The step counter is an int32.


def check_duration(section: Any, prefix: str, where: str) -> None:
  """Raises if a duration is set in more than one unit."""
  given = fields_set(section, prefix)
  if len(given) > 1:
    raise UserError(f"{where}: only one of {' and '.join(given)} can be set.")


def fields_set(section: Any, prefix: str) -> list[str]:
  """Which of `<prefix>_steps|_epochs|_examples|_percent` are set."""
  names = [f"{prefix}_{unit}" for unit in UNITS]
  return [name for name in names if section.get(name) is not None]


def steps(
  section: Mapping[str, Any],
  prefix: str,
  *,
  batch_size: int | None = None,
  num_examples: int | None = None,
  total_steps: int | None = None,
  default: int | None = None,
) -> int | None:
  """The duration `<prefix>_steps|_epochs|_examples|_percent` in steps, or the default if unset.

  Rounded to the nearest step, but at least 1 unless it is 0, as in big_vision's `steps`.
  """
  check_duration(section, prefix, f"the duration {prefix}")
  if not fields_set(section, prefix):
    return default
  [name] = fields_set(section, prefix)
  value = section[name]
  if value < 0 or (name.endswith("_percent") and value > 1):
    raise UserError(f"{name}={value} must be at least 0, and a percentage at most 1 (100%).")
  unit = name.removeprefix(f"{prefix}_")
  if unit == "steps":
    return int(value)
  sizes = dict(num_examples=num_examples, batch_size=batch_size, total_steps=total_steps)
  needed = dict(epochs=("num_examples", "batch_size"), examples=("batch_size",))
  if missing := [size for size in needed.get(unit, ("total_steps",)) if sizes[size] is None]:
    raise UserError(f"{name}={value} needs {' and '.join(missing)}, not known here; use _steps.")
  if unit == "epochs":
    exact = value * num_examples / batch_size
  else:
    exact = value / batch_size if unit == "examples" else value * total_steps
  return max(1, round(exact)) if exact else 0


def total_steps(config: Any, num_examples: int) -> int:
  """The length of the run; `num_examples` is one epoch over all parts of a mixture."""
  total = steps(config, "total", batch_size=config.input.batch_size, num_examples=num_examples)
  if total is None:
    raise UserError("Set one of total_epochs, total_steps or total_examples: how long to train.")
  if total > MAX_STEPS:
    [name] = fields_set(config, "total")
    raise UserError(f"{name}={config[name]:,} is {total:,} steps; a run has up to {MAX_STEPS:,}.")
  return total
