"""What is an adapter outside of a run, and what weights does it make with its base?

Factors and full weights are Leaves: nothing is read before it is asked for, so that merging a model
of any size takes the memory of one layer. What LoRA is says models/lora.py, how PEFT writes it
peft.py, how a run keeps it leaves.py.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pgjax import params
from pgjax.models import lora
from pgjax.params import Rule
from pgjax.weight_files import Leaf


class Adapter(NamedTuple):
  """Factors for some leaves of a model."""

  rules: dict[str, Rule]  # Of each adapted leaf.
  factors: dict[str, Leaf]  # "LEAF/a" and "LEAF/b", float32, with our axes.
  whole: dict[str, Leaf]  # Leaves that were trained themselves.
  base: str | None  # The CKPT that it was trained on, if that is known.
  uneven: tuple[str, ...] = ()  # Leaves of which Hugging Face's parts differ in rank or scale.


def merged(base: Mapping[str, Leaf], adapter: Adapter) -> dict[str, Leaf]:
  """The full weights: the sums are formed in float32 as they are read, a layer at a time."""
  whole = {**base, **adapter.whole}
  return whole | {name: _sum(name, base[name], adapter) for name in adapter.rules}


def _sum(name: str, base: Leaf, adapter: Adapter) -> Leaf:
  a, b = (adapter.factors[f"{name}/{factor}"] for factor in "ab")
  scale = adapter.rules[name].scale
  stacked = name.startswith(params.STACKED)

  def read(start, stop):
    b_rows = b.read(start, stop) if stacked else b.whole()
    added = lora.added(params.matrix(name), a.read(start, stop), b_rows, scale, np)
    return base.read(start, stop).astype(np.float32) + added

  return Leaf(base.shape, np.dtype(np.float32), read)
