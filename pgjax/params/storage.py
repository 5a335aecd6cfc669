"""How is each parameter stored, and in which form do modules read it?

config.params decides. A run stores a nested dict of plain arrays: a parameter itself, a quantized
one in parts ("llm/layers/mlp/linear/nf4" and ".../scale"), an adapter's factors under "lora"
("lora/llm/layers/mlp/linear/a"). layers/read_weight.py reads the modules' form.
"""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from pgjax.layers import lora, quantization
from pgjax.params import names as param_names, rules as param_rules, tree as param_tree
from pgjax.params.names import LORA
from pgjax.params.rules import QUANTIZED, Rule


class StoredParams(NamedTuple):
  """The parameters of a model and the rule of each: flat dicts by name."""

  shapes: dict[str, jax.ShapeDtypeStruct]  # Those of the model, in float32.
  rules: dict[str, Rule]

  def abstract(self) -> dict[str, Any]:
    """The stored shapes and dtypes, nested."""
    stored = {}
    for name, leaf in self.shapes.items():
      stored |= {_join(name, part): a for part, a in self.parts(name).items()}
      if self.rules[name].kind == "lora":
        factors = lora.factor_shapes(param_names.matrix(name), leaf.shape, self.rules[name].rank)
        stored |= {_factor(name, f): jax.ShapeDtypeStruct(s, "float32") for f, s in factors.items()}
    return param_tree.unflatten(dict(sorted(stored.items())))

  def parts(self, name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The stored parts of a parameter, without factors; a whole one has the part ""."""
    leaf, rule = self.shapes[name], self.rules[name]
    if scheme := scheme_of(rule):
      layers, shape = _layers(name, leaf.shape)
      return quantization.part_shapes(layers, shape, scheme, order_of(name, shape).parts)
    return {"": jax.ShapeDtypeStruct(leaf.shape, rule.dtype or leaf.dtype)}

  def encode(self, values: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The stored arrays of nested parameters, nested, with fresh factors. Inside a jit."""
    flat, stored = param_tree.flatten(values), {}
    for name, leaf in self.shapes.items():
      rule = self.rules[name]
      if scheme := scheme_of(rule):
        layers, shape = _layers(name, leaf.shape)
        rows = order_of(name, shape).rows(flat[name].reshape(layers, *shape))
        encoded = quantization.encode(rows, scheme)
        stored |= {_join(name, part): a.reshape(layers, -1) for part, a in encoded.items()}
      else:
        stored[name] = flat[name].astype(rule.dtype or leaf.dtype)
    return param_tree.unflatten(dict(sorted({**stored, **self.fresh_factors(seed)}.items())))

  def fresh_factors(self, seed: int) -> dict[str, Any]:
    """The initial factors, a flat dict; those of a leaf depend on its name and the seed."""
    fresh = {}
    for name, rule in self.rules.items():
      if rule.kind == "lora":
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        shape = self.shapes[name].shape
        factors = lora.fresh_factors(param_names.matrix(name), shape, rule.rank, key)
        fresh |= {_factor(name, factor): a for factor, a in factors.items()}
    return fresh

  def for_model(self, flat: Mapping[str, Any], place: Any = None) -> dict[str, Any]:
    """The model's nested parameters, from flat stored ones; quantized ones gathered in `place`."""
    read = {}
    for name, leaf in self.shapes.items():
      rule, value = self.rules[name], flat.get(name)
      if scheme := scheme_of(rule):
        parts = {part: flat[_join(name, part)] for part in self.parts(name)}
        if not name.startswith(param_names.STACKED):
          parts = {part: a[0] for part, a in parts.items()}
        shape = _layers(name, leaf.shape)[1]
        value = quantization.Quantized(parts, scheme, shape, order_of(name, shape), place)
      if rule.kind == "lora":
        factors = (flat[_factor(name, f)] for f in "ab")
        value = lora.Adapted(value, *factors, rule.scale, rule.dropout)
      read[name] = value
    return param_tree.unflatten(read)


def of(shapes: Mapping[str, tuple[int, ...]], patterns: Any, dtype: str) -> StoredParams:
  """A model's leaves, {name: shape}, under config.params; `dtype` is the compute dtype."""
  rules = param_rules.rules(patterns, shapes)
  for name, rule in rules.items():
    if rule.kind != "train" and rule.dtype is None:
      rules[name] = rule._replace(dtype=dtype)
  return of_rules(shapes, rules)


def of_rules(shapes: Mapping[str, tuple[int, ...]], rules: dict[str, Rule]) -> StoredParams:
  """A model's leaves, {name: shape}, with these rules."""
  float32 = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
  return StoredParams(float32, rules)


def scheme_of(rule: Rule) -> quantization.Scheme | None:
  """How a leaf of that rule is quantized; None if it is not."""
  if rule.dtype not in QUANTIZED:
    return None
  return quantization.Scheme(rule.dtype, rule.block, rule.double)


def order_of(name: str, shape: tuple[int, ...]) -> quantization.Order:
  """The order in which a layer of this shape is quantized: that of Hugging Face's tensors."""
  matrix = param_names.matrix(name)
  axes, fused = matrix.axes.removeprefix("L"), matrix.shared.removeprefix("L")
  parts = shape[axes.index(fused)] if fused else 1
  return quantization.Order(
    tuple(axes.index(axis) for axis in fused + matrix.new + matrix.summed), parts
  )


def _layers(name, shape):
  """(number of layers, shape of one); an unstacked leaf is one layer."""
  return (shape[0], shape[1:]) if name.startswith(param_names.STACKED) else (1, tuple(shape))


def _join(name, part):
  return f"{name}/{part}" if part else name


def _factor(name, factor):
  return f"{LORA}{name}/{factor}"
