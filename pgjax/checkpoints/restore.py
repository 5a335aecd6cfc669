"""Restores an opened checkpoint onto a mesh, to evaluate it or to answer questions.

Parameters stay as the checkpoint stores them, unless they are to be quantized. Arrays that are
stored in the wanted form are copied and their checksums compared on the devices; load.py converts
the others.
"""

from typing import Any

from pgjax.checkpoints import (
  checksums,
  load as load_params,
  orbax_items,
  orbax_params,
  tokenizers,
  workdir,
)
from pgjax.checkpoints.source import Source
from pgjax.data import tokenizer as tokenizer_lib
from pgjax.errors import UserError
from pgjax.formats.lazy_array import LazyArray
from pgjax.models import gemma
from pgjax.params import names as param_names, of_model, storage, tree as param_tree
from pgjax.params.rules import QUANTIZED, STORAGE_DTYPES, Rule


def tokenizer_of(source: Source, config: Any) -> tokenizer_lib.Tokenizer:
  """The checkpoint's own tokenizer, or the config's if it has none; it must fit the model."""
  if source.tokenizer is None:
    tokenizer = tokenizer_lib.load(config.tokenizer)
  else:
    tokenizer = tokenizer_lib.Tokenizer(source.tokenizer, str(source.path))
  rows = gemma.get(**config.model.llm).vocab_size
  tokenizers.check_size(tokenizer, rows, f"vocab_size of the model {source.path}")
  return tokenizer


def rules(source: Source, quantize: str | None = None, dtype: str | None = None) -> dict[str, Rule]:
  """Rules that freeze every leaf in its stored form, or quantize the matrices.

  With dtype="bfloat16", float32 leaves are stored in it. Adapters are not merged: that would round
  their matrix once more. Those of DoRA are, into float32, as there are no factors to add.
  """
  if quantize not in (None, *QUANTIZED):
    raise UserError(f"--quantize={quantize} must be one of {', '.join(QUANTIZED)}.")
  of_leaves = {}
  for name, leaf in source.leaves.items():
    narrow = dtype == "bfloat16" and leaf.dtype.itemsize > 2
    form = dict(dtype=dtype if narrow else _dtype(leaf))
    if leaf.scheme:
      form = dict(dtype=leaf.scheme.kind, block=leaf.scheme.block, double=leaf.scheme.double)
    elif quantize:
      form = dict(dtype=quantize if param_names.matrix(name) else "bfloat16")
    of_leaves[name] = Rule("freeze", **form)
    if name in source.adapters and source.adapters[name].magnitude:
      of_leaves[name] = Rule("freeze", quantize or "float32")  # DoRA is merged.
    elif name in source.adapters:
      rule = source.adapters[name].rule
      of_leaves[name] = rule._replace(**(dict(dropout=0.0, block=64, double=False) | form))
  return of_leaves


def leaves_of(
  source: Source, model: Any, config: Any, quantize: str | None = None
) -> storage.StoredParams:
  """How `load` stores the parameters: as the run did, or quantized.

  config.params decides for weights that no run wrote; what is neither adapted nor quantized has the
  dtype of its file, or float32 where an adapter is merged.
  """
  if quantize or (source.run and "params" in source.run.config):
    stored = rules(source, quantize)
    shapes = of_model.param_shapes(model, config.res)
    return storage.of_rules(shapes, {name: stored.get(name, Rule("freeze")) for name in shapes})
  leaves = of_model.stored_params(model, config)
  for name, rule in leaves.rules.items():
    adapter = source.adapters.get(name)
    if adapter and adapter.magnitude:
      leaves.rules[name] = Rule("freeze", "float32")
    elif adapter and rule.kind != "lora":
      leaves.rules[name] = rule._replace(dtype="float32")
    elif not storage.scheme_of(rule) and name in source.leaves:
      leaves.rules[name] = rule._replace(dtype=_dtype(source.leaves[name]))
  return leaves


def _dtype(leaf: LazyArray) -> str:
  return leaf.dtype.name if leaf.dtype.name in STORAGE_DTYPES else "float32"


def load(source: Source, abstract: Any, leaves: storage.StoredParams) -> dict[str, Any]:
  """The parameters, nested, with the shardings of `abstract` (load.abstract_params).

  Raises if an array of a run has changed on disk.
  """
  run, unchanged, names = source.run, {}, {}
  if run:
    names = orbax_params.stored_names(run, ema=source.averages)
    merged = {name for name in source.adapters if leaves.rules[name].kind != "lora"}
    flat = param_tree.flatten(abstract)
    unchanged = {
      name: leaf
      for name, leaf in orbax_params.stored(run, names).items()
      if name in flat.keys() - merged
      and (leaf.shape, leaf.dtype) == (flat[name].shape, flat[name].dtype)
    }
  params = load_params.load(
    source.leaves, abstract, leaves, source.name, source.adapters, unchanged
  )
  flat = param_tree.flatten(params)
  sums_of = checksums.jitted_checksums(ordered=run.ordered if run else True)
  sums = sums_of({name: flat[name] for name in unchanged})
  try:
    orbax_items.check_sums(run, {names[name]: value for name, value in sums.items()})
  except workdir.DamagedError as error:
    raise UserError(f"The checkpoint {run.path} is damaged: {error}.") from error
  return params
