"""Checks the arguments of the functions of pgjax.api, and names them in errors."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from pgjax.config import load as config_load, validate as config_validate
from pgjax.errors import UserError


@contextlib.contextmanager
def named_as_in_python() -> Iterator[None]:
  """Rewrites --step=3 in errors of the commands to step=3, except in quoted commands."""
  try:
    yield
  except UserError as error:
    text, *command = re.split("(?=python -m)", str(error), maxsplit=1)
    error.args = (re.sub(r"(?<![\w-])--(?=[a-z])", "", text) + "".join(command),)
    raise


def check(name: str, value: Any, kind: Any, what: str) -> None:
  """Raises UserError if `value` has another type; True and False are not numbers here."""
  if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
    raise UserError(f"{name}={value!r:.80} must be {what}.")


def check_number(name: str, value: Any, least: int, most: int = 2**32 - 1) -> None:
  """Raises UserError unless `value` is a whole number in the range, or None."""
  check(name, value, int | None, f"a whole number from {least} to {most}")
  if value is not None and not least <= value <= most:
    raise UserError(f"{name}={value} must be from {least} to {most}.")


def path(name: str, value: Any) -> str:
  """A path or a name as text."""
  check(name, value, str | os.PathLike, "a path or a name, as text or pathlib.Path")
  return os.fspath(value)


def checkpoint(
  ckpt: Any, step: Any, ema: Any, quantize: Any, base: Any = None, weights: Any = None
) -> str:
  """Checks the arguments that `load` and `score` share; returns the checkpoint's name."""
  check_number("step", step, 0)
  check("ema", ema, bool, "True or False")
  check("quantize", quantize, str | None, "one of nf4, int8")
  check("base", base, str | os.PathLike | None, "a path or a name, as text or pathlib.Path")
  check("weights", weights, str | None, "the name of a file in the folder")
  return path("ckpt", ckpt)


def dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
  """Turns input__batch_size into input.batch_size; names with dots are unchanged."""
  return {n if "." in n else n.replace("__", "."): value for n, value in overrides.items()}


def checked_config(config: Any, overrides: Mapping[str, Any]) -> ConfigDict:
  """The validated config of "configs/x.py:args", a dict or a ConfigDict, with fields replaced."""
  if isinstance(config, Mapping | ConfigDict):
    complete = config_load.from_dict(ConfigDict(config).to_dict())
    return config_validate.validated(config_load.overridden(complete, overrides))
  check("config", config, str, 'text such as "configs/forkme.py:size=3b", a dict or a ConfigDict')
  return config_validate.validated(config_load.load(config, overrides))
