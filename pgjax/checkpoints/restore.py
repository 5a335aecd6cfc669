"""How does an opened checkpoint become parameters on a mesh, for an evaluation or for answers?

Each parameter keeps the form in which the checkpoint stores it, unless its matrices are to be
quantized. Leaf by leaf: an array that is stored as it is wanted is copied, and its checksum is
compared on the devices; the others are converted on the way (checkpoints/load.py).
"""

from typing import Any

from pgjax.checkpoints import (
  checksums,
  load as load_params,
  orbax_params,
  saver,
  source as source_lib,
  workdir,
)
from pgjax.data import tokenizer as tokenizer_lib
from pgjax.errors import UserError
from pgjax.formats.lazy_array import LazyArray
from pgjax.params import (
  names as param_names,
  of_model,
  rules as param_rules,
  storage,
  tree as param_tree,
)
from pgjax.params.rules import Rule


def tokenizer_of(source: source_lib.Source, config: Any) -> tokenizer_lib.Tokenizer:
  """The checkpoint's own, or the config's where it has none."""
  if source.tokenizer is None:
    return tokenizer_lib.load(config.tokenizer)
  return tokenizer_lib.Tokenizer(source.tokenizer, str(source.path))


def rules(
  source: source_lib.Source, quantize: str | None = None, dtype: str | None = None
) -> dict[str, Rule]:
  """Every leaf frozen in its stored form, or its matrices quantized.

  With dtype="bfloat16", float32 leaves are stored in it. Adapters stay beside their matrix: a merge
  would round it once more.
  """
  if quantize not in (None, *param_rules.QUANTIZED):
    raise UserError(f"--quantize={quantize} must be one of {', '.join(param_rules.QUANTIZED)}.")
  made = {}
  for name, leaf in source.leaves.items():
    narrow = dtype == "bfloat16" and leaf.dtype.itemsize > 2
    form = dict(dtype=dtype if narrow else _dtype(leaf))
    if leaf.scheme:
      form = dict(dtype=leaf.scheme.kind, block=leaf.scheme.block, double=leaf.scheme.double)
    elif quantize:
      form = dict(dtype=quantize if param_names.matrix(name) else "bfloat16")
    made[name] = Rule("freeze", **form)
    if name in source.adapters:
      rule = source.adapters[name].rule
      made[name] = rule._replace(**(dict(dropout=0.0, block=64, double=False) | form))
  return made


def leaves_of(
  source: source_lib.Source, model: Any, config: Any, quantize: str | None = None
) -> storage.StoredParams:
  """What `load` puts on the mesh: a run's parameters as it stored them, or quantized.

  Weights that no run wrote are adapted and quantized as config.params says, and otherwise have the
  dtypes of their files; where an adapter is folded in, float32, as the sum is.
  """
  if quantize or (source.run and "params" in source.run.config):
    stored = rules(source, quantize)
    shapes = of_model.param_shapes(model, config.res)
    return storage.of_rules(shapes, {name: stored.get(name, Rule("freeze")) for name in shapes})
  made = of_model.stored_params(model, config)
  for name, rule in made.rules.items():
    if name in source.adapters and rule.kind != "lora":
      made.rules[name] = rule._replace(dtype="float32")
    elif not storage.scheme_of(rule) and name in source.leaves:
      made.rules[name] = rule._replace(dtype=_dtype(source.leaves[name]))
  return made


def _dtype(leaf: LazyArray) -> str:
  return leaf.dtype.name if leaf.dtype.name in param_rules.STORAGE_DTYPES else "float32"


def load(source: source_lib.Source, abstract: Any, wanted: storage.StoredParams) -> dict[str, Any]:
  """The parameters, nested, born where the shardings of `abstract` say (loading.abstract_params).

  An array of a run whose content has changed on the disk raises.
  """
  run, same, places = source.run, {}, {}
  if run:
    places = orbax_params.places_of(run, averages=source.averages)
    folded = {name for name in source.adapters if wanted.rules[name].kind != "lora"}
    flat = param_tree.flatten(abstract)
    same = {
      name: leaf
      for name, leaf in orbax_params.stored(run, places).items()
      if name in flat.keys() - folded
      and (leaf.shape, leaf.dtype) == (flat[name].shape, flat[name].dtype)
    }
  made = load_params.load(source.leaves, abstract, wanted, source.name, source.adapters, same)
  sums = checksums.jitted_checksums()(
    {n: a for n, a in param_tree.flatten(made).items() if n in same}
  )
  try:
    saver.check_sums(run, {places[name]: value for name, value in sums.items()})
  except workdir.DamagedError as error:
    raise UserError(f"The checkpoint {run.path} is damaged: {error}.") from error
  return made
