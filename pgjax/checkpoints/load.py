"""Loads weights from a checkpoint onto the mesh, adapted to another resolution or vocabulary.

Leaf by leaf, and each process reads only the slices of its devices, so that neither a host nor a
device holds a second copy of the model.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from pgjax.distributed import sharding as sharding_lib
from pgjax.errors import UserError
from pgjax.formats import lazy_array
from pgjax.formats.lazy_array import CHUNK_BYTES, LazyArray, of_array
from pgjax.huggingface import names as hf_names
from pgjax.layers import lora
from pgjax.models import paligemma
from pgjax.params import lazy, names as param_names, tree as param_tree
from pgjax.params.lazy import Adapter
from pgjax.params.storage import StoredParams, scheme_of

log = logging.getLogger("pgjax")

NEW_ROWS_STDDEV = 0.02  # big_vision's value for tokens that the checkpoint lacks.


def abstract_params(leaves: StoredParams, config: Any, mesh: Any) -> dict[str, Any]:
  """Nested dict of the stored shapes, dtypes and shardings; nothing is allocated."""
  stored = leaves.abstract()
  shardings = sharding_lib.shardings(config.sharding_strategy, {"params": stored}, mesh)["params"]
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), stored, shardings
  )


def load(*args: Any, **kwargs: Any) -> dict[str, Any]:
  """Checks and reads at once; see `checked`."""
  return checked(*args, **kwargs)()


def checked(
  arrays: Mapping[str, LazyArray],
  abstract: Mapping[str, Any],
  leaves: StoredParams,
  source: str,
  adapters: Mapping[str, Adapter] | None = None,
  unchanged: Mapping[str, LazyArray] | None = None,
) -> Callable[[], dict[str, Any]]:
  """Checks names, shapes and adapters; the result reads, in any thread.

  It returns a nested dict of the checkpoint's arrays on the mesh: adapted, cast or quantized as
  needed.

  Args:
    arrays: exactly the model's leaves, under our names.
    abstract: nested dict of the arrays to store: shapes, dtypes and shardings.
    leaves: the model's shapes, and how each leaf is stored.
    source: the user's name of the checkpoint, for messages.
    adapters: the checkpoint's. They continue where the run adapts the same leaf and are merged
      elsewhere. The result lacks adapters of the run that the checkpoint does not have.
    unchanged: stored arrays to copy as they are, by their names in the result.
  """
  have = {name: leaf.shape for name, leaf in arrays.items()}
  want = {name: tuple(leaf.shape) for name, leaf in leaves.shapes.items()}
  hf_names.check_same(want, have, f"'{source}'", fits=_fits)
  adapters = adapters or {}
  if merged := [name for name in adapters if leaves.rules[name].kind != "lora"]:
    log.info("The adapters of %d leaves of %s are merged into them.", len(merged), source)
  for name, rule in leaves.rules.items():
    if name in adapters and rule.kind == "lora":
      _check_adapter(name, adapters[name], leaves, source)
    if scheme := scheme_of(rule):
      _check_scheme(name, arrays[name].scheme or scheme, scheme, source)
  wanted = param_tree.flatten(abstract)
  return functools.partial(_read, arrays, wanted, leaves, source, adapters, unchanged or {})


def _read(arrays, wanted, leaves, source, adapters, unchanged):
  """What `checked` describes."""
  loaded = {}

  def put(name, leaf):
    loaded[name] = _placed(
      lazy_array.finite(unchanged.get(name, leaf), f"{source}: {name}"), wanted[name]
    )

  for name, rule in leaves.rules.items():
    leaf = _adapted(name, arrays[name], tuple(leaves.shapes[name].shape))
    if name in adapters and rule.kind == "lora":
      put(f"{param_names.LORA}{name}/a", adapters[name].a)
      put(f"{param_names.LORA}{name}/b", adapters[name].b)
    elif name in adapters:
      leaf = lazy.merge_adapter(name, leaf, adapters[name])
    if scheme_of(rule):
      # Scales first: they show NaN, which has no code.
      for part, coded in reversed(lazy.encode(name, leaf, leaves).items()):
        put(f"{name}/{part}", coded)
    else:
      put(name, leaf.astype(wanted[name].dtype, name))
  return param_tree.unflatten(loaded)


def _check_adapter(name, adapter, leaves, source):
  """The checkpoint's adapters must be those that the run asks for."""
  rule, shape = leaves.rules[name], leaves.shapes[name].shape
  shapes = lora.factor_shapes(param_names.matrix(name), shape, rule.rank)
  have = {"a": adapter.a.shape, "b": adapter.b.shape}
  if adapter.magnitude:
    raise UserError(
      f"'{source}' is an adapter of DoRA (use_dora), which config.params cannot train further:"
      " merge it first, pgjax.convert --merge --to=orbax, or start without lora(...)."
    )
  if have != shapes or adapter.rule.scale != rule.scale:
    raise UserError(
      f"'{source}' has an adapter of {name} with factors {have['a']} and {have['b']}, alpha"
      f" {adapter.rule.alpha:g}, scale {adapter.rule.scale:g}; config.params asks for {shapes['a']}"
      f" and {shapes['b']}, alpha {rule.alpha:g}, scale {rule.scale:g}. Give lora(...) the rank and"
      " alpha of the checkpoint, or start from weights without adapters."
    )


def _check_scheme(name, have, scheme, source):
  """Quantized weights are not quantized again in another way."""
  if have != scheme:
    words = [f"{s.kind} in blocks of {s.block}{', double' * s.double}" for s in (have, scheme)]
    raise UserError(
      f"'{source}' stores {name} as {words[0]}, and config.params asks for {words[1]}: rounding it"
      " twice would cost accuracy. Ask for the same, or start from weights that are not quantized."
    )


def _placed(leaf: LazyArray, abstract: Any) -> jax.Array:
  """Reads the rows of this process's devices, block by block, into their slices."""
  sharding, slices = abstract.sharding, {}

  def spans_of(index):
    return tuple(axis.indices(size)[:2] for axis, size in zip(index, leaf.shape, strict=True))

  for index in sharding.addressable_devices_indices_map(leaf.shape).values():
    spans = spans_of(index)
    slices[spans] = np.empty([stop - start for start, stop in spans], leaf.dtype)
  rows = max(1, CHUNK_BYTES * leaf.shape[0] // max(1, leaf.nbytes))
  first, last = min(s[0][0] for s in slices), max(s[0][1] for s in slices)
  for start in range(first, last, rows):
    stop = min(start + rows, last)
    if not any(max(start, s[0][0]) < min(stop, s[0][1]) for s in slices):
      continue
    block = leaf.read(start, stop)
    for spans, array in slices.items():
      (begin, end), *rest = spans
      low, high = max(start, begin), min(stop, end)
      if low < high:
        inside = tuple(slice(*span) for span in rest)
        array[low - begin : high - begin] = block[(slice(low - start, high - start), *inside)]

  array = jax.make_array_from_callback(leaf.shape, sharding, lambda i: slices[spans_of(i)])
  return jax.block_until_ready(array)  # Frees the host's copy.


def _fits(name: str, have: tuple[int, ...], want: tuple[int, ...]) -> bool:
  if name == hf_names.POS_EMBEDDING and len(have) == 3 and have[::2] == want[::2]:
    return all(math.isqrt(n) ** 2 == n for n in (have[1], want[1]))
  if name == paligemma.TOKEN_TABLE and len(have) == 2 and have[1] == want[1]:
    return have[0] <= want[0] or have[0] == want[0] + hf_names.IMAGE_ROWS
  return have == want


def _adapted(name: str, leaf: LazyArray, shape: tuple[int, ...]) -> LazyArray:
  """The leaf in the model's shape; changes are logged."""
  if leaf.shape == shape:
    return leaf
  if name == hf_names.POS_EMBEDDING:
    old, new = math.isqrt(leaf.shape[1]), math.isqrt(shape[1])
    log.info("%s is resampled from %dx%d to %dx%d patches.", name, old, old, new, new)
    return of_array(resample_pos_embedding(leaf.whole(), new))
  have, want = leaf.shape[0], shape[0]
  if want < have:
    log.info("%s: drops the last %d rows, <image> and padding.", name, have - want)
    return hf_names.with_rows(leaf, want)
  more = want - have
  log.info("%s gets %d new rows, normal with stddev %g.", name, more, NEW_ROWS_STDDEV)
  new_rows = np.random.default_rng(0).normal(0, NEW_ROWS_STDDEV, (more, shape[1]))
  return hf_names.with_rows(leaf.astype(np.float32, name), want, new_rows)


def resample_pos_embedding(table_1PD: np.ndarray, new: int) -> np.ndarray:
  """Linear and corner-aligned, like the reference's scipy.ndimage.zoom(order=1); [1, P, D]."""
  old = math.isqrt(table_1PD.shape[1])
  at = np.linspace(0, old - 1, new)
  low = np.minimum(at.astype(int), max(old - 2, 0))
  weights = np.zeros((new, old))  # Row i: the weights of the old positions in new position i.
  weights[np.arange(new), low] = 1 - (at - low)
  if old > 1:
    weights[np.arange(new), low + 1] = at - low
  grid = table_1PD[0].astype(np.float64).reshape(old, old, -1)
  grid = np.einsum("ia,jb,abd->ijd", weights, weights, grid, optimize=True)
  return grid.reshape(1, new * new, -1).astype(np.float32)
