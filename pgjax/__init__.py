"""Fine-tuning PaliGemma 1 and PaliGemma 2 in JAX; docs/python.md documents the four names here."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # For editors. At run time each is imported at its first use: JAX takes seconds.
  from pgjax.api.model import load as load
  from pgjax.api.runs import fit as fit, score as score
  from pgjax.errors import UserError as UserError

__version__ = "0.1.0"
_HOMES = {"load": "api.model", "fit": "api.runs", "score": "api.runs", "UserError": "errors"}


def __getattr__(name):
  if name not in _HOMES:
    raise AttributeError(f"module 'pgjax' has no attribute {name!r}")
  return getattr(importlib.import_module(f"pgjax.{_HOMES[name]}"), name)


def __dir__():
  return sorted({*globals(), *_HOMES})
