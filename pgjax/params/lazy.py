"""Decodes and encodes quantized leaves and merges adapters, as lazy arrays, layer by layer."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pgjax.formats.lazy_array import LazyArray
from pgjax.layers import lora, quantization
from pgjax.params import names as param_names
from pgjax.params.names import LORA
from pgjax.params.rules import Rule
from pgjax.params.storage import StoredParams, order_of, scheme_of

PIECE = 1 << 22  # Numbers encoded at a time: whole blocks, and small temporaries.


class Adapter(NamedTuple):
  """The factors of one leaf; the rule has rank and alpha."""

  a: LazyArray
  b: LazyArray
  rule: Rule
  magnitude: LazyArray | None = None  # DoRA's: the norms of the sum (layers/lora.with_norms).


def decode_all(
  stored: Mapping[str, LazyArray], leaves: StoredParams
) -> tuple[dict[str, LazyArray], dict[str, Adapter]]:
  """(the model's leaves, quantized ones as float32; adapters by the name of their leaf)."""
  arrays, adapters = {}, {}
  for name in leaves.shapes:
    rule = leaves.rules[name]
    arrays[name] = _decoded(name, stored, leaves) if scheme_of(rule) else stored[name]
    if rule.kind == "lora":
      adapters[name] = Adapter(*(stored[f"{LORA}{name}/{factor}"] for factor in "ab"), rule)
  return arrays, adapters


def _decoded(name, stored, leaves):
  shape, scheme = tuple(leaves.shapes[name].shape), scheme_of(leaves.rules[name])
  parts = {part: stored[f"{name}/{part}"] for part in leaves.parts(name)}
  stacked = name.startswith(param_names.STACKED)
  inside = shape[1:] if stacked else shape
  order = order_of(name, inside)

  def layer(i):
    values = {part: leaf.read(i, i + 1)[0] for part, leaf in parts.items()}
    return quantization.decode_layer(values, scheme, inside, order, np)

  def read(start, stop):
    return np.stack([layer(i) for i in range(start, stop)]) if stacked else layer(0)[start:stop]

  return LazyArray(shape, np.dtype(np.float32), read, scheme)


def encode(name: str, leaf: LazyArray, leaves: StoredParams) -> dict[str, LazyArray]:
  """{part: array} of a leaf, quantized as it is read; each part reads the whole leaf."""
  scheme = scheme_of(leaves.rules[name])
  stacked = name.startswith(param_names.STACKED)
  order = order_of(name, leaf.shape[1:] if stacked else leaf.shape)

  def part(part_name, expected):
    def read(start, stop):
      layers = (leaf.read(i, i + 1) if stacked else leaf.whole()[None] for i in range(start, stop))
      rows = (_encoded(order.rows(layer, np), part_name, scheme) for layer in layers)
      return np.concatenate([row.reshape(1, -1) for row in rows])

    return LazyArray(tuple(expected.shape), np.dtype(expected.dtype), read)

  return {n: part(n, expected) for n, expected in leaves.parts(name).items()}


def _encoded(x_Cn, part, scheme):
  """One part of the matrices of one layer."""
  pieces = [x_Cn[:, start : start + PIECE] for start in range(0, x_Cn.shape[1], PIECE)]
  if part == scheme.kind:
    return np.concatenate([quantization.codes(piece, scheme, np) for piece in pieces], axis=1)
  scales = [quantization.scales(piece, scheme, np) for piece in pieces]
  return quantization.stored_scales(np.concatenate(scales, axis=1), scheme, np)[part]


def merge_adapter(name: str, leaf: LazyArray, adapter: Adapter) -> LazyArray:
  """The leaf with its adapter merged, in float32."""
  matrix, scale = param_names.matrix(name), adapter.rule.scale
  stacked = name.startswith(param_names.STACKED)

  def read(start, stop):
    def rows(array):
      return array.read(start, stop) if stacked else array.whole()

    added = lora.added(matrix, rows(adapter.a), rows(adapter.b), scale, np)
    if adapter.magnitude is None:
      return leaf.read(start, stop).astype(np.float32) + (added if stacked else added[start:stop])
    total = rows(leaf).astype(np.float32) + added
    total = lora.with_norms(matrix, total, rows(adapter.magnitude), np)
    return total if stacked else total[start:stop]

  return LazyArray(leaf.shape, np.dtype(np.float32), read)
