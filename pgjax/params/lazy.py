"""How do quantized leaves and adapters pass through a host, a layer at a time?

The same forms as in params/storage.py, of arrays that are not read yet. A checkpoint's quantized
leaf is decoded to float32, a leaf to be quantized is encoded while it is read, and an adapter can
be merged into its matrix.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pgjax.formats.lazy_array import LazyArray
from pgjax.layers import lora, quantization
from pgjax.params import names as param_names
from pgjax.params.names import LORA
from pgjax.params.rules import Rule
from pgjax.params.storage import StoredParams, scheme_of

PIECE = 1 << 22  # Numbers that are coded at a time: whole blocks, and little memory on the way.


class Adapter(NamedTuple):
  """The factors of one leaf; the rule has rank, alpha and what follows from them."""

  a: LazyArray
  b: LazyArray
  rule: Rule


def decode_all(
  kept: Mapping[str, LazyArray], leaves: StoredParams
) -> tuple[dict[str, LazyArray], dict[str, Adapter]]:
  """(the model's leaves, quantized ones as float32; adapters by the name of their leaf)."""
  found, adapters = {}, {}
  for name in leaves.shapes:
    scheme, rule = scheme_of(leaves.rules[name]), leaves.rules[name]
    found[name] = _decoded(name, kept, leaves, scheme) if scheme else kept[name]
    if rule.kind == "lora":
      adapters[name] = Adapter(*(kept[f"{LORA}{name}/{factor}"] for factor in "ab"), rule)
  return found, adapters


def _decoded(name, kept, leaves, scheme):
  shape = tuple(leaves.shapes[name].shape)
  parts = {part: kept[f"{name}/{part}"] for part in leaves.parts(name)}
  stacked = name.startswith(param_names.STACKED)

  def layer(i):
    return quantization.decode(
      {part: leaf.read(i, i + 1)[0] for part, leaf in parts.items()},
      scheme,
      shape[1:] if stacked else shape,
      np,
    )

  def read(start, stop):
    return np.stack([layer(i) for i in range(start, stop)]) if stacked else layer(0)[start:stop]

  return LazyArray(shape, np.dtype(np.float32), read, scheme)


def encode(name: str, leaf: LazyArray, leaves: StoredParams) -> dict[str, LazyArray]:
  """{part: Leaf} of a leaf that is to be kept quantized; read twice, coded as it is read."""
  scheme = scheme_of(leaves.rules[name])
  stacked = name.startswith(param_names.STACKED)

  def part(part_name, wanted):
    def read(start, stop):
      rows = [leaf.read(i, i + 1) if stacked else leaf.whole() for i in range(start, stop)]
      return np.concatenate([_coded(row.reshape(1, -1), part_name, scheme) for row in rows])

    return LazyArray(tuple(wanted.shape), np.dtype(wanted.dtype), read)

  return {n: part(n, wanted) for n, wanted in leaves.parts(name).items()}


def _coded(x_1n, part, scheme):
  """One part of one layer."""
  pieces = [x_1n[:, start : start + PIECE] for start in range(0, x_1n.shape[1], PIECE)]
  if part == scheme.kind:
    return np.concatenate([quantization.codes(piece, scheme, np) for piece in pieces], axis=1)
  scales = [quantization.scales(piece, scheme, np) for piece in pieces]
  return quantization.kept_scales(np.concatenate(scales, axis=1), scheme, np)[part]


def merge_adapter(name: str, leaf: LazyArray, adapter: Adapter) -> LazyArray:
  """The leaf with its adapter folded in, in float32."""
  matrix, scale = param_names.matrix(name), adapter.rule.scale
  stacked = name.startswith(param_names.STACKED)

  def read(start, stop):
    base = leaf.read(start, stop).astype(np.float32)
    if stacked:
      a, b = adapter.a.read(start, stop), adapter.b.read(start, stop)
      return base + lora.added(matrix, a, b, scale, np)
    return base + lora.added(matrix, adapter.a.whole(), adapter.b.whole(), scale, np)[start:stop]

  return LazyArray(leaf.shape, np.dtype(np.float32), read)
